import errno
import uuid
from struct import pack

import pytest

from devices.contract import GuestMemoryError
from devices.testing import FakePinnedPages
from devices.virtio_gpu import GpuOptions
from devices.virtio_gpu.resources import MAX_ENTRIES, MAX_RESOURCES, MAX_TOTAL_ENTRIES

from .guest import (
    ASSIGN_UUID,
    ATTACH,
    BAD_PARAMETER,
    BAD_RESOURCE,
    NO_MEMORY,
    OK,
    OK_UUID,
    PAGE,
    UNSPEC,
    Guest,
    mem_entries,
)


def small(max_hostmem: int) -> Guest:
    return Guest(GpuOptions(width=64, height=64, max_hostmem=max_hostmem))


def test_resource_zero_and_an_id_in_use_are_invalid() -> None:
    guest = Guest()
    assert guest.create_2d(0) == BAD_RESOURCE
    assert guest.create_2d(1) == OK
    assert guest.create_2d(1) == BAD_RESOURCE
    assert guest.create_blob(1, PAGE, [(0, PAGE)]) == BAD_RESOURCE
    assert guest.create_2d(0xFFFFFFFF) == OK


@pytest.mark.parametrize(
    ("width", "height"), [(0, 4), (4, 0), (16385, 1), (1, 16385), (0xFFFFFFFF, 0xFFFFFFFF)]
)
def test_an_image_has_1_to_16384_pixels_a_side(width: int, height: int) -> None:
    guest = Guest()
    assert guest.create_2d(1, width=width, height=height) == BAD_PARAMETER
    assert guest.create_2d(1, width=1, height=16384) == OK


def test_images_are_counted_against_the_limit_on_host_memory() -> None:
    guest = small(64 * 64 * 4)
    assert guest.create_2d(1, width=64, height=63) == OK
    assert guest.count("hostmem") == 64 * 63 * 4
    assert guest.create_2d(2, width=64, height=2) == NO_MEMORY
    assert guest.create_2d(2, width=64, height=1) == OK
    assert guest.create_2d(3, width=1, height=1) == NO_MEMORY
    assert guest.unref(1) == OK
    assert guest.count("hostmem") == 256
    assert guest.create_2d(3, width=1, height=1) == OK


def test_the_largest_image_needs_more_than_the_default_limit() -> None:
    assert Guest().create_2d(1, width=16384, height=16384) == NO_MEMORY


def test_the_number_of_resources_is_bounded() -> None:
    guest = Guest()
    for resource in range(1, MAX_RESOURCES + 1):
        assert guest.create_blob(resource, 1, []) == OK
    assert guest.create_2d(MAX_RESOURCES + 1, width=1, height=1) == NO_MEMORY
    assert guest.create_blob(MAX_RESOURCES + 1, 1, []) == NO_MEMORY


def test_unref_of_an_unknown_resource_is_invalid() -> None:
    guest = Guest()
    assert guest.unref(1) == BAD_RESOURCE
    guest.create_2d(1)
    assert (guest.unref(1), guest.unref(1)) == (OK, BAD_RESOURCE)


def test_attaching_pins_the_pages_for_reading_and_detaching_releases_them() -> None:
    guest = Guest()
    guest.create_2d(1, width=64, height=64)
    assert guest.attach(1, [(0x5000, PAGE), (0x9000, 3 * PAGE)]) == OK
    (pins,) = guest.host.memory.pins
    assert pins.ranges == ((0x5000, PAGE), (0x9000, 3 * PAGE))
    assert pins.prot == 1
    assert guest.count("pages_pinned") == 4
    assert guest.detach(1) == OK
    assert guest.host.memory.pins == []
    assert guest.count("pages_pinned") == 0


def test_entries_that_follow_each_other_are_pinned_as_one_range() -> None:
    guest = Guest()
    guest.create_2d(1)
    assert guest.attach(1, [(0, PAGE), (PAGE, PAGE), (0x8000, 16), (0x8010, 0), (0x8010, 16)]) == OK
    assert guest.host.memory.pins[0].ranges == ((0, 2 * PAGE), (0x8000, 32))


def test_a_backing_that_starts_or_ends_within_a_page_counts_the_page() -> None:
    guest = Guest()
    guest.create_2d(1)
    assert guest.attach(1, [(0xFFF, 2)]) == OK
    assert guest.count("pages_pinned") == 2


def test_unref_releases_the_pages() -> None:
    guest = Guest()
    guest.create_2d(1)
    guest.attach(1, [(0, PAGE)])
    assert guest.unref(1) == OK
    assert guest.host.memory.pins == []


def test_a_resource_has_one_backing_at_a_time() -> None:
    guest = Guest()
    guest.create_2d(1)
    assert guest.detach(1) == UNSPEC
    assert guest.attach(1, [(0, PAGE)]) == OK
    assert guest.attach(1, [(0, PAGE)]) == UNSPEC
    assert len(guest.host.memory.pins) == 1
    assert guest.detach(1) == OK
    assert guest.attach(1, [(PAGE, PAGE)]) == OK


def test_a_backing_needs_a_resource_and_bytes() -> None:
    guest = Guest()
    assert guest.attach(1, [(0, PAGE)]) == BAD_RESOURCE
    assert guest.detach(1) == BAD_RESOURCE
    guest.create_2d(1)
    assert guest.attach(1, []) == BAD_PARAMETER
    assert guest.attach(1, [(0, 0)]) == BAD_PARAMETER


@pytest.mark.parametrize("entry", [(1 << 20, PAGE), (0xFF000, 2 * PAGE), (0xFFFFFFFFFFFFF000, PAGE)])
def test_memory_that_is_not_mapped_cannot_be_attached(entry: tuple[int, int]) -> None:
    guest = Guest()
    guest.create_2d(1)
    assert guest.attach(1, [(0, PAGE), entry]) == UNSPEC
    assert guest.host.memory.pins == []
    assert guest.attach(1, [(0, PAGE)]) == OK


def test_pages_over_the_limit_on_locked_pages_are_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest()
    guest.create_2d(1)

    def over_the_limit(*_: object) -> FakePinnedPages:
        raise GuestMemoryError(errno.ENOMEM, "too many locked pages")

    monkeypatch.setattr(guest.host.memory, "pin_pages", over_the_limit)
    assert guest.attach(1, [(0, PAGE)]) == NO_MEMORY
    monkeypatch.undo()
    assert guest.attach(1, [(0, PAGE)]) == OK


def test_fewer_entries_than_promised_are_an_error() -> None:
    guest = Guest()
    guest.create_2d(1)
    body = pack("<II", 1, 2) + mem_entries([(0, PAGE), (PAGE, PAGE)])
    assert guest.send(ATTACH, body[:-1]) == UNSPEC
    assert guest.send(ATTACH, body) == OK


def test_the_number_of_entries_is_checked_before_anything_is_read() -> None:
    guest = Guest()
    guest.create_2d(1)
    assert guest.send(ATTACH, pack("<II", 1, 0xFFFFFFFF)) == NO_MEMORY
    assert guest.send(ATTACH, pack("<II", 1, MAX_ENTRIES)) == UNSPEC


def test_the_entries_of_all_resources_together_are_bounded() -> None:
    guest = Guest(memory=4 * MAX_ENTRIES)
    scattered = [(4 * index, 1) for index in range(MAX_ENTRIES)]
    for resource in range(1, MAX_TOTAL_ENTRIES // MAX_ENTRIES + 1):
        guest.create_2d(resource)
        assert guest.attach(resource, scattered) == OK
    guest.create_2d(9)
    assert guest.attach(9, [(0, 1)]) == NO_MEMORY
    assert guest.detach(1) == OK
    assert guest.attach(9, [(0, 1)]) == OK


def test_a_uuid_belongs_to_one_resource_and_stays() -> None:
    guest = Guest(GpuOptions(identity="test"))

    def uuid_of(resource: int) -> bytes:
        reply = guest.ask(ASSIGN_UUID, pack("<II", resource, 0))
        assert reply.type == OK_UUID
        return reply.data

    guest.create_2d(1)
    guest.create_2d(2)
    first, second = uuid_of(1), uuid_of(2)
    assert len(first) == 16
    assert uuid.UUID(bytes=first).variant == uuid.RFC_4122
    assert uuid_of(1) == first != second
    guest.unref(1)
    guest.create_2d(1)
    assert uuid_of(1) not in (first, second)
    guest.gpu.reset()
    guest.gpu.activate(1 << 2)
    guest.create_2d(1)
    assert uuid_of(1) not in (first, second)
    assert guest.ask(ASSIGN_UUID, pack("<II", 3, 0)).type == BAD_RESOURCE


def test_uuids_are_the_same_again_for_the_same_identity_and_differ_without_one() -> None:
    def first_uuid(identity: str) -> bytes:
        guest = Guest(GpuOptions(identity=identity))
        guest.create_2d(1)
        return guest.ask(ASSIGN_UUID, pack("<II", 1, 0)).data

    assert first_uuid("a") == first_uuid("a") != first_uuid("b")
    assert first_uuid("") != first_uuid("")

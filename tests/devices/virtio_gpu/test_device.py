from collections.abc import Coroutine
from typing import Any

import pytest

from devices.display import NothingOnScanout
from devices.virtio_gpu import GpuOptions, VirtioGpu
from devices.work import ReadMessage, read_message

from .guest import (
    CURSOR,
    GET_DISPLAY_INFO,
    OK,
    PAGE,
    UNSPEC,
    UPDATE_CURSOR,
    FakeChain,
    Guest,
    header,
    noise,
    parse,
)


def test_it_is_a_virtio_gpu() -> None:
    gpu = VirtioGpu()
    assert (gpu.name, gpu.device_id, gpu.pci_class) == ("virtio-gpu", 16, 0x038000)
    assert gpu.queue_sizes == (256, 16)
    assert gpu.display is gpu


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"scanouts": 0}, "choose 1 to 16"),
        ({"scanouts": 17}, "choose 1 to 16"),
        ({"width": 63}, "choose 64 to 16384 pixels"),
        ({"height": 16385}, "choose 64 to 16384 pixels"),
        ({"max_hostmem": 4095999}, "give at least 4096000 bytes"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line_that_names_the_fix(
    options: dict[str, Any], fix: str
) -> None:
    with pytest.raises(ValueError, match=fix) as error:
        GpuOptions(**options)
    assert "\n" not in str(error.value)


def test_the_configuration_has_the_number_of_screens_and_no_capability_sets() -> None:
    guest = Guest(GpuOptions(scanouts=3))
    assert guest.gpu.config_read(0, 16) == bytes.fromhex("00000000 00000000 03000000 00000000")
    assert guest.gpu.config_read(8, 1) == b"\x03"
    assert guest.gpu.config_read(12, 8) == bytes(8)
    assert guest.gpu.config_read(100, 4) == bytes(4)


def test_a_new_mode_raises_a_display_event_that_the_driver_clears() -> None:
    guest = Guest()
    guest.gpu.set_mode(0, 1920, 1080)
    assert guest.transport.config_changes == 1
    assert guest.gpu.config_read(0, 4) == b"\x01\0\0\0"
    guest.gpu.config_write(0, b"\0\0\0\0")
    guest.gpu.config_write(4, b"\xfe\xff\xff\xff")
    assert guest.gpu.config_read(0, 4) == b"\x01\0\0\0"
    guest.gpu.config_write(4, b"\x01\0\0\0")
    assert guest.gpu.config_read(0, 8) == bytes(8)
    info = guest.gpu.scanouts[0]
    assert (info.connected, info.preferred_width, info.preferred_height) == (True, 1920, 1080)


@pytest.mark.parametrize(("offset", "data"), [(2, b"\0\0\x01"), (4, b"\x01"), (0, b"\xff" * 64)])
def test_an_event_is_cleared_by_any_write_that_covers_its_bit(offset: int, data: bytes) -> None:
    guest = Guest()
    guest.gpu.set_mode(0, 1920, 1080)
    guest.gpu.config_write(offset, data)
    assert guest.gpu.config_read(0, 4) == bytes(4)


@pytest.mark.parametrize(
    ("offset", "data"), [(5, b"\x01"), (8, b"\x01\0\0\0"), (16, b"\xff" * 4), (999, b"\xff")]
)
def test_other_writes_to_the_configuration_change_nothing(offset: int, data: bytes) -> None:
    guest = Guest()
    guest.gpu.set_mode(0, 1920, 1080)
    before = guest.gpu.config_read(0, 16)
    guest.gpu.config_write(offset, data)
    assert guest.gpu.config_read(0, 16) == before


def test_a_mode_can_be_set_before_there_is_a_driver() -> None:
    gpu = VirtioGpu()
    gpu.set_mode(0, 800, 600)
    assert gpu.scanouts[0].preferred_width == 800


def test_modes_that_no_screen_can_have_are_refused() -> None:
    guest = Guest()
    for width, height in ((0, 600), (800, 16385), (-1, 600)):
        with pytest.raises(ValueError, match="64 to 16384"):
            guest.gpu.set_mode(0, width, height)
    with pytest.raises(IndexError, match="no scanout 1"):
        guest.gpu.set_mode(1, 800, 600)
    assert guest.transport.config_changes == 0


def test_a_mode_that_no_picture_of_the_guest_can_fill_is_refused() -> None:
    guest = Guest(GpuOptions(width=640, height=480, max_hostmem=640 * 480 * 4))
    with pytest.raises(ValueError, match="max_hostmem"):
        guest.gpu.set_mode(0, 640, 481)
    guest.gpu.set_mode(0, 480, 640)


def busy_guest(*, shared: bool = True) -> Guest:
    """Screen 0 shows an image, screen 1 a blob; the cursor is on both."""
    guest = Guest(GpuOptions(scanouts=2), shared=shared)
    guest.poke(0, noise(64 * PAGE))
    guest.show(1, width=64, height=64)
    guest.attach(1, [(PAGE, 4 * PAGE)])
    guest.transfer(1, (0, 0, 64, 64))
    guest.create_blob(2, 4 * PAGE, [(8 * PAGE, 4 * PAGE)])
    guest.set_scanout_blob(1, 2, (0, 0, 64, 64), width=64, height=64, stride=256)
    for scanout in (0, 1):
        guest.cursor(UPDATE_CURSOR, scanout=scanout, resource=1)
    return guest


def test_reset_frees_everything_and_keeps_the_modes() -> None:
    guest = busy_guest()
    guest.gpu.set_mode(1, 640, 480, connected=False)
    guest.gpu.reset()
    assert guest.host.memory.pins == []
    assert {name: guest.status[name] for name in ("hostmem", "resources", "pages_pinned")} == {
        "hostmem": 0,
        "resources": 0,
        "pages_pinned": 0,
    }
    assert guest.gpu.config_read(0, 4) == bytes(4)
    info = guest.gpu.scanouts[1]
    assert (info.connected, info.preferred_width, info.preferred_height, info.width) == (False, 640, 480, 0)
    for scanout in (0, 1):
        with pytest.raises(NothingOnScanout):
            guest.capture(scanout)


def test_after_reset_no_event_is_raised_until_a_driver_is_there_again() -> None:
    guest = Guest()
    guest.gpu.reset()
    guest.gpu.set_mode(0, 640, 480)
    assert guest.transport.config_changes == 0
    guest.gpu.activate(0)
    guest.gpu.set_mode(0, 800, 600)
    assert guest.transport.config_changes == 1


@pytest.mark.parametrize("shared", [True, False])
def test_disconnecting_releases_the_pages_and_keeps_the_picture_of_images(shared: bool) -> None:
    guest = busy_guest(shared=shared)
    before = guest.capture(0)
    guest.gpu.disconnect()
    guest.transport.connected = False
    assert guest.host.memory.pins == []
    assert guest.capture(0) == before
    guest.gpu.set_mode(0, 640, 480)
    assert guest.transport.config_changes == 0


def test_disconnecting_keeps_the_last_picture_of_a_blob() -> None:
    guest = busy_guest()
    before = guest.capture(1)
    guest.gpu.disconnect()
    guest.transport.connected = False
    guest.poke(8 * PAGE, bytes(PAGE))
    assert guest.capture(1) == before
    guest.gpu.disconnect()
    assert guest.capture(1) == before


def test_a_blob_out_of_reach_at_the_end_leaves_no_picture() -> None:
    guest = busy_guest(shared=False)
    guest.gpu.disconnect()
    guest.transport.connected = False
    with pytest.raises(NothingOnScanout, match="went with the client"):
        guest.capture(1)


def test_a_picture_of_an_earlier_client_is_not_shown_for_a_later_one() -> None:
    guest = busy_guest()
    guest.gpu.disconnect()
    guest.ask(GET_DISPLAY_INFO)
    guest.host.memory.unmap(8 * PAGE, PAGE)
    guest.gpu.disconnect()
    with pytest.raises(NothingOnScanout):
        guest.capture(1)


def test_a_screen_that_was_turned_off_and_on_between_clients_has_no_old_picture() -> None:
    guest = busy_guest()
    guest.gpu.disconnect()
    guest.gpu.reset()
    guest.gpu.disconnect()
    with pytest.raises(NothingOnScanout):
        guest.capture(1)


def test_a_command_that_outlives_its_client_is_refused() -> None:
    guest = busy_guest(shared=False)
    guest.create_2d(3, width=64, height=64)
    guest.attach(3, [(0, PAGE), (8 * PAGE, 3 * PAGE)])
    request = (
        header(0x105) + bytes.fromhex("00000000 00000000 40000000 40000000") + bytes(8) + b"\x03" + bytes(7)
    )
    chain = FakeChain(request, 24)
    work = guest.gpu.handle(0, chain)
    wanted = start(work)
    guest.gpu.disconnect()
    guest.transport.connected = False
    with pytest.raises(StopIteration):
        work.send(bytes(wanted.length))
    assert parse(bytes(chain.response)).type == UNSPEC


def test_the_next_client_goes_on_with_the_state_of_the_last() -> None:
    guest = busy_guest()
    guest.gpu.disconnect()
    guest.poke(PAGE, b"new!")
    guest.poke(8 * PAGE, b"blob")
    assert guest.transfer(1, (0, 0, 64, 64)) == OK
    assert guest.capture(0).buffer.pixels[:4] == b"new!"
    assert guest.capture(1).buffer.pixels[:4] == b"blob"
    assert len(guest.host.memory.pins) == 2


def start(work: Coroutine[Any, Any, Any]) -> ReadMessage:
    """Run ``work`` until it waits for guest memory."""
    request = work.send(None)
    assert isinstance(request, ReadMessage)
    return request


@pytest.mark.parametrize("event", ["reset", "disconnect"])
def test_a_transfer_that_waits_for_memory_survives_what_happens_meanwhile(event: str) -> None:
    guest = busy_guest(shared=False)
    request = (
        header(0x105) + bytes.fromhex("00000000 00000000 40000000 40000000") + bytes(8) + b"\x01" + bytes(7)
    )
    work = guest.gpu.handle(0, FakeChain(request, 24))
    wanted = start(work)
    assert wanted.length == 4 * PAGE
    getattr(guest.gpu, event)()
    with pytest.raises(StopIteration):
        work.send(bytes(wanted.length))


def test_a_cursor_that_waits_for_memory_over_a_reset_is_not_shown() -> None:
    guest = busy_guest(shared=False)
    request = header(UPDATE_CURSOR) + bytes(16) + b"\x02" + bytes(15)
    work = guest.gpu.handle(CURSOR, FakeChain(request, 24))
    wanted = start(work)
    guest.gpu.reset()
    with pytest.raises(StopIteration):
        work.send(bytes(wanted.length))
    guest.gpu.activate(0)
    guest.show(1, width=64, height=64)
    assert guest.capture().cursor is None


class SlowChain(FakeChain):
    """A buffer in memory that the client did not share."""

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().read(offset, length)
        await read_message(0, len(data))
        return data


def test_a_request_that_was_on_its_way_at_a_reset_is_not_executed() -> None:
    guest = Guest()
    request = header(0x101) + bytes.fromhex("01000000 02000000 04000000 04000000")
    chain = SlowChain(request, 24)
    work = guest.gpu.handle(0, chain)
    start(work)
    guest.gpu.reset()
    with pytest.raises(StopIteration) as stop:
        work.send(b"")
    assert stop.value.value == 0
    assert guest.status["resources"] == 0


def test_entries_that_were_on_their_way_at_a_reset_are_not_attached() -> None:
    guest = Guest()
    body = bytes.fromhex("01000000 01000000 02000000 01000000") + bytes(8) + b"\0\x10" + bytes(6)
    chain = SlowChain(header(0x10C) + body + bytes(8) + b"\0\x10" + bytes(6), 24)
    work = guest.gpu.handle(0, chain)
    start(work)
    work.send(b"")
    guest.gpu.reset()
    with pytest.raises(StopIteration):
        work.send(b"")
    assert guest.status["resources"] == 0
    assert guest.host.memory.pins == []


def test_the_same_blob_is_made_where_nothing_comes_between() -> None:
    guest = Guest()
    body = bytes.fromhex("01000000 01000000 02000000 01000000") + bytes(8) + b"\0\x10" + bytes(6)
    chain = SlowChain(header(0x10C) + body + bytes(8) + b"\0\x10" + bytes(6), 24)
    guest.host.drive(guest.gpu.handle(0, chain))
    assert guest.status["resources"] == 1


def test_status_tells_what_each_screen_prefers_and_shows() -> None:
    guest = Guest()
    guest.show(1, width=320, height=200)
    assert guest.status["scanouts"] == [
        {
            "index": 0,
            "connected": True,
            "preferred_width": 1280,
            "preferred_height": 800,
            "width": 320,
            "height": 200,
            "x": 0,
            "y": 0,
            "flips": 1,
            "flushes": 0,
        }
    ]


def test_nothing_is_logged_per_command() -> None:
    guest = busy_guest()
    guest.ask(GET_DISPLAY_INFO)
    guest.ask(0xBAD)
    assert guest.host.log.events == []

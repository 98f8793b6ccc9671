from struct import pack

import pytest

from devices.display import NothingOnScanout, PixelLayout

from .guest import (
    ARGB,
    BAD_PARAMETER,
    BAD_RESOURCE,
    BAD_SCANOUT,
    NO_MEMORY,
    OK,
    PAGE,
    UNSPEC,
    Entries,
    Guest,
    Rect,
    noise,
)

WIDTH, HEIGHT, STRIDE = 60, 32, 256
SIZE = STRIDE * HEIGHT
WHOLE = (0, 0, WIDTH, HEIGHT)
ONE_PIECE = [(PAGE, SIZE)]
SCATTERED = [(5 * PAGE, 1000), (PAGE, 3000), (9 * PAGE, SIZE)]


def guest_with_blob(entries: Entries = ONE_PIECE, *, shared: bool = True) -> tuple[Guest, bytes]:
    guest = Guest(memory=32 * PAGE, shared=shared)
    guest.poke(0, noise(32 * PAGE))
    assert guest.create_blob(1, SIZE, entries) == OK
    return guest, b"".join(bytes(guest.host.memory.data[at : at + length]) for at, length in entries)


def show(guest: Guest, rect: Rect = WHOLE, *, offset: int = 0, height: int = HEIGHT) -> int:
    return guest.set_scanout_blob(
        0, 1, rect, width=WIDTH, height=height, stride=STRIDE, offset=offset, pixel_format=ARGB
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("entries", [ONE_PIECE, SCATTERED])
@pytest.mark.parametrize(
    ("rect", "offset"), [((0, 0, WIDTH, HEIGHT - 1), 0), ((7, 3, 20, 10), 0), ((0, 0, WIDTH, 4), 16)]
)
def test_a_blob_is_shown_from_the_guests_memory(
    shared: bool, entries: Entries, rect: Rect, offset: int
) -> None:
    guest, source = guest_with_blob(entries, shared=shared)
    assert show(guest, rect, offset=offset, height=HEIGHT - 1) == OK
    x, y, width, height = rect
    rows = (source[offset + (y + row) * STRIDE + 4 * x :][: 4 * width] for row in range(height))
    buffer = guest.capture().buffer
    assert buffer.pixels == b"".join(rows)
    assert (buffer.width, buffer.height, buffer.stride) == (width, height, 4 * width)
    assert buffer.layout is PixelLayout.XRGB


def test_what_the_guest_draws_is_on_the_screen_without_any_command() -> None:
    guest, _ = guest_with_blob()
    show(guest)
    guest.poke(PAGE, b"abcd")
    assert guest.capture().buffer.pixels[:4] == b"abcd"
    assert guest.flush(1, (0, 0, 9999, 9999)) == OK
    assert (guest.status["bytes_transferred"], guest.status["flushes"]) == (0, 1)


def test_a_blob_takes_no_memory_from_the_host() -> None:
    guest, _ = guest_with_blob()
    assert guest.status["hostmem"] == 0
    assert guest.status["pages_pinned"] == 2


@pytest.mark.parametrize("blob_mem", [0, 2, 3, 4])
def test_blobs_of_host_memory_are_an_invalid_parameter(blob_mem: int) -> None:
    assert Guest().create_blob(1, PAGE, [(0, PAGE)], blob_mem=blob_mem) == BAD_PARAMETER


def test_blob_flags_that_do_not_exist_are_an_invalid_parameter() -> None:
    guest = Guest()
    assert guest.create_blob(1, PAGE, [(0, PAGE)], flags=8) == BAD_PARAMETER
    assert guest.create_blob(1, PAGE, [(0, PAGE)], flags=7) == OK


@pytest.mark.parametrize(
    ("size", "entries", "answer"),
    [
        (0, [(0, PAGE)], BAD_PARAMETER),
        (PAGE + 1, [(0, PAGE)], BAD_PARAMETER),
        (PAGE, [(0, 0)], BAD_PARAMETER),
        (0xFFFFFFFFFFFFFFFF, [(0, PAGE)], BAD_PARAMETER),
        (PAGE, [(1 << 40, PAGE)], UNSPEC),
        (PAGE - 1, [(0, PAGE)], OK),
    ],
)
def test_the_entries_of_a_blob_must_hold_it(size: int, entries: Entries, answer: int) -> None:
    guest = Guest()
    assert guest.create_blob(1, size, entries) == answer
    assert guest.status["resources"] == int(answer == OK)
    assert len(guest.host.memory.pins) == int(answer == OK)


def test_resource_zero_is_no_blob() -> None:
    assert Guest().create_blob(0, PAGE, [(0, PAGE)]) == BAD_RESOURCE


def test_a_blob_can_get_its_memory_later() -> None:
    guest = Guest()
    assert guest.create_blob(1, SIZE, []) == OK
    assert show(guest) == UNSPEC
    assert guest.attach(1, [(0, PAGE)]) == BAD_PARAMETER
    assert guest.attach(1, ONE_PIECE) == OK
    assert show(guest) == OK


def test_a_blob_whose_memory_was_detached_shows_nothing() -> None:
    guest, _ = guest_with_blob()
    show(guest)
    assert guest.detach(1) == OK
    with pytest.raises(NothingOnScanout, match="taken back"):
        guest.capture()


def test_a_blob_whose_memory_was_unmapped_shows_nothing_until_it_is_back() -> None:
    guest, source = guest_with_blob()
    show(guest)
    guest.host.memory.unmap(PAGE, PAGE)
    with pytest.raises(NothingOnScanout, match="cannot be read"):
        guest.capture()
    guest.host.memory.holes.clear()
    assert guest.capture().buffer.pixels[:240] == source[:240]


def test_the_framebuffer_must_lie_in_the_blob() -> None:
    guest, _ = guest_with_blob()
    # The last row ends with its last pixel: 60 pixels of 64 that fit the stride.
    assert show(guest, offset=16) == OK
    assert show(guest, offset=17) == BAD_PARAMETER
    assert show(guest, height=HEIGHT + 1) == BAD_PARAMETER
    assert show(guest, offset=0xFFFFFFFF) == BAD_PARAMETER


@pytest.mark.parametrize(
    ("width", "height", "stride", "pixel_format"),
    [
        (WIDTH, HEIGHT, 4 * WIDTH - 1, 2),
        (WIDTH, HEIGHT, 0, 2),
        (WIDTH, HEIGHT, 0xFFFFFFFF, 2),
        (WIDTH, HEIGHT, STRIDE, 5),
        (16385, 1, 65540, 2),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 2),
        (3, 4, STRIDE, 2),
        (4, 3, STRIDE, 2),
        (0, 0, STRIDE, 2),
    ],
)
def test_a_framebuffer_that_cannot_be_is_an_invalid_parameter(
    width: int, height: int, stride: int, pixel_format: int
) -> None:
    guest, _ = guest_with_blob()
    answer = guest.set_scanout_blob(
        0, 1, (0, 0, 4, 4), width=width, height=height, stride=stride, pixel_format=pixel_format
    )
    assert answer == BAD_PARAMETER


def test_a_blob_scanout_needs_a_screen_and_a_blob() -> None:
    guest, _ = guest_with_blob()
    guest.create_2d(2)
    kwargs = {"width": 4, "height": 4, "stride": 16}
    assert guest.set_scanout_blob(1, 1, (0, 0, 4, 4), **kwargs) == BAD_SCANOUT
    assert guest.set_scanout_blob(0, 9, (0, 0, 4, 4), **kwargs) == BAD_RESOURCE
    assert guest.set_scanout_blob(0, 2, (0, 0, 4, 4), **kwargs) == BAD_RESOURCE
    assert guest.set_scanout(0, 1, (0, 0, 4, 4)) == BAD_RESOURCE


def test_resource_zero_turns_a_blob_scanout_off() -> None:
    guest, _ = guest_with_blob()
    show(guest)
    assert guest.set_scanout_blob(0, 0, (0, 0, 0, 0), width=0, height=0, stride=0) == OK
    with pytest.raises(NothingOnScanout):
        guest.capture()


def test_flipping_between_two_blobs_moves_no_pixel() -> None:
    guest, _ = guest_with_blob()
    assert guest.create_blob(2, SIZE, [(16 * PAGE, SIZE)]) == OK
    for resource in (1, 2) * 5:
        answer = guest.set_scanout_blob(0, resource, WHOLE, width=WIDTH, height=HEIGHT, stride=STRIDE)
        assert answer == OK
        guest.flush(resource, WHOLE)
    assert (guest.status["flips"], guest.status["flushes"], guest.status["bytes_transferred"]) == (10, 10, 0)
    assert len(guest.host.memory.pins) == 2


def test_too_many_entries_are_out_of_memory() -> None:

    guest = Guest()
    assert guest.send(0x10C, pack("<IIIIQQ", 1, 1, 2, 0xFFFFFFFF, 0, PAGE)) == NO_MEMORY

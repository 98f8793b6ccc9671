import pytest

from devices.display import NothingOnScanout, PixelLayout
from devices.virtio_gpu import GpuOptions

from .guest import BAD_PARAMETER, BAD_RESOURCE, BAD_SCANOUT, BGRA, OK, PAGE, Guest, Rect, noise

WIDTH, HEIGHT = 32, 16
WHOLE = (0, 0, WIDTH, HEIGHT)


def guest_with_image(scanouts: int = 1) -> tuple[Guest, bytes]:
    """An image of random pixels that no scanout shows, and the pixels."""
    guest = Guest(GpuOptions(scanouts=scanouts))
    pixels = noise(WIDTH * HEIGHT * 4)
    guest.poke(PAGE, pixels)
    guest.create_2d(1, width=WIDTH, height=HEIGHT, pixel_format=BGRA)
    guest.attach(1, [(PAGE, len(pixels))])
    guest.transfer(1, WHOLE)
    return guest, pixels


def cut(pixels: bytes, rect: Rect) -> bytes:
    x, y, width, height = rect
    rows = (pixels[4 * (WIDTH * (y + row) + x) :][: 4 * width] for row in range(height))
    return b"".join(rows)


def test_nothing_is_on_a_scanout_at_first() -> None:
    guest = Guest()
    with pytest.raises(NothingOnScanout, match="scanout 0"):
        guest.capture()
    assert (guest.gpu.scanouts[0].width, guest.gpu.scanouts[0].height) == (0, 0)


@pytest.mark.parametrize("rect", [WHOLE, (8, 4, 16, 8), (31, 15, 1, 1), (0, 15, WIDTH, 1)])
def test_a_scanout_shows_its_rectangle_of_the_image(rect: Rect) -> None:
    guest, pixels = guest_with_image()
    assert guest.set_scanout(0, 1, rect) == OK
    frame = guest.capture()
    assert frame.scanout == 0
    assert (frame.buffer.width, frame.buffer.height, frame.buffer.stride) == (rect[2], rect[3], 4 * rect[2])
    assert frame.buffer.pixels == cut(pixels, rect)
    info = guest.gpu.scanouts[0]
    assert (info.x, info.y, info.width, info.height) == rect


def test_alpha_does_not_shine_through_a_scanout() -> None:
    guest, _ = guest_with_image()
    guest.set_scanout(0, 1, WHOLE)
    assert guest.capture().buffer.layout is PixelLayout.BGRX


@pytest.mark.parametrize(
    "rect",
    [
        (0, 0, 0, 0),
        (0, 0, 0, HEIGHT),
        (0, 0, WIDTH, 0),
        (1, 0, WIDTH, HEIGHT),
        (0, 1, WIDTH, HEIGHT),
        (0xFFFFFFFF, 0, 1, 1),
        (0, 0, 0xFFFFFFFF, 1),
    ],
)
def test_a_rectangle_that_the_image_does_not_cover_is_an_invalid_parameter(rect: Rect) -> None:
    guest, _ = guest_with_image()
    guest.set_scanout(0, 1, (0, 0, 4, 4))
    assert guest.set_scanout(0, 1, rect) == BAD_PARAMETER
    assert guest.capture().buffer.width == 4


def test_a_scanout_and_a_resource_must_exist() -> None:
    guest, _ = guest_with_image(scanouts=2)
    assert guest.set_scanout(2, 1, WHOLE) == BAD_SCANOUT
    assert guest.set_scanout(2, 0) == BAD_SCANOUT
    assert guest.set_scanout(0, 2, WHOLE) == BAD_RESOURCE


def test_resource_zero_turns_a_scanout_off() -> None:
    guest, _ = guest_with_image()
    guest.set_scanout(0, 1, WHOLE)
    assert guest.set_scanout(0, 0) == OK
    with pytest.raises(NothingOnScanout):
        guest.capture()


def test_unref_turns_off_every_scanout_that_shows_the_resource_and_no_other() -> None:
    guest, _ = guest_with_image(scanouts=3)
    guest.set_scanout(0, 1, WHOLE)
    guest.set_scanout(1, 1, (0, 0, 4, 4))
    guest.create_2d(2)
    guest.set_scanout(2, 2, (0, 0, 4, 4))
    assert guest.unref(1) == OK
    assert [info.width for info in guest.gpu.scanouts] == [0, 0, 4]
    assert guest.unref(2) == OK


def test_an_image_stays_on_the_screen_when_its_backing_goes() -> None:
    guest, pixels = guest_with_image()
    guest.set_scanout(0, 1, WHOLE)
    guest.detach(1)
    assert guest.capture().buffer.pixels == pixels


def test_sixteen_scanouts_can_show_parts_of_one_image() -> None:
    guest, pixels = guest_with_image(scanouts=16)
    for index in range(16):
        assert guest.set_scanout(index, 1, (2 * index, index, 2, 1)) == OK
    for index in range(16):
        assert guest.capture(index).buffer.pixels == cut(pixels, (2 * index, index, 2, 1))


def test_flips_and_flushes_are_counted_for_what_is_shown() -> None:
    guest, _ = guest_with_image(scanouts=2)
    assert guest.flush(1, WHOLE) == OK
    guest.set_scanout(0, 1, WHOLE)
    guest.set_scanout(1, 1, WHOLE)
    assert guest.flush(1, (1, 1, 3, 3)) == OK
    guest.set_scanout(1, 0)
    assert guest.flush(1, WHOLE) == OK
    assert (guest.status["flips"], guest.status["flushes"]) == (2, 3)


@pytest.mark.parametrize("rect", [(1, 0, WIDTH, HEIGHT), (0, 1, WIDTH, HEIGHT), (0xFFFFFFFF, 0, 1, 1)])
def test_a_flush_outside_of_the_image_is_an_invalid_parameter(rect: Rect) -> None:
    guest, _ = guest_with_image()
    assert guest.flush(1, rect) == BAD_PARAMETER
    assert guest.flush(9, WHOLE) == BAD_RESOURCE


@pytest.mark.parametrize("scanout", [1, -1])
def test_capturing_a_scanout_that_is_not_there_is_an_index_error(scanout: int) -> None:
    with pytest.raises(IndexError, match="this device has 1"):
        Guest().capture(scanout)

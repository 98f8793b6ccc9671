import pytest

from devices.display import CursorImage, PixelLayout
from devices.virtio_gpu import GpuOptions

from .guest import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    BAD_SCANOUT,
    CURSOR,
    MOVE_CURSOR,
    OK,
    PAGE,
    RGBA,
    UNSPEC,
    UPDATE_CURSOR,
    Guest,
    header,
    noise,
)

SIDE = 64
SIZE = SIDE * SIDE * 4
IMAGE = noise(SIZE)


def guest_with_cursor(*, shared: bool = True) -> Guest:
    """Resource 1 is on the screen, 320 by 200; resource 2 is a cursor."""
    guest = Guest(GpuOptions(scanouts=2), shared=shared)
    guest.show(1, width=320, height=200)
    guest.poke(PAGE, IMAGE)
    guest.create_2d(2, width=SIDE, height=SIDE, pixel_format=RGBA)
    guest.attach(2, [(PAGE, SIZE)])
    guest.transfer(2, (0, 0, SIDE, SIDE))
    return guest


def cursor_of(guest: Guest) -> CursorImage:
    cursor = guest.capture().cursor
    assert cursor is not None
    return cursor


def test_a_cursor_is_at_its_position_less_its_hot_spot() -> None:
    guest = guest_with_cursor()
    assert guest.cursor(UPDATE_CURSOR, x=100, y=50, resource=2, hot=(10, 20)) == OK
    cursor = cursor_of(guest)
    assert (cursor.x, cursor.y) == (90, 30)
    assert cursor.image.pixels == IMAGE
    assert (cursor.image.width, cursor.image.height, cursor.image.stride) == (64, 64, 256)
    assert cursor.image.layout is PixelLayout.RGBA


def test_moving_keeps_the_image_and_the_hot_spot() -> None:
    guest = guest_with_cursor()
    guest.cursor(UPDATE_CURSOR, x=100, y=50, resource=2, hot=(10, 20))
    assert guest.cursor(MOVE_CURSOR, x=5, y=199, resource=77, hot=(1, 1)) == OK
    assert (cursor_of(guest).x, cursor_of(guest).y) == (-5, 179)


def test_a_position_may_be_left_of_and_above_the_screen() -> None:
    guest = guest_with_cursor()
    guest.cursor(UPDATE_CURSOR, x=-3, y=-63, resource=2)
    assert (cursor_of(guest).x, cursor_of(guest).y) == (-3, -63)


@pytest.mark.parametrize(("x", "y"), [(-64, 0), (0, -64), (320, 0), (0, 200), (0x7FFFFFFF, 0)])
def test_a_cursor_off_the_screen_is_not_captured(x: int, y: int) -> None:
    guest = guest_with_cursor()
    guest.cursor(UPDATE_CURSOR, resource=2)
    assert guest.capture().cursor is not None
    guest.cursor(MOVE_CURSOR, x=x, y=y)
    assert guest.capture().cursor is None


def test_resource_zero_hides_the_cursor() -> None:
    guest = guest_with_cursor()
    guest.cursor(UPDATE_CURSOR, resource=2)
    assert guest.cursor(UPDATE_CURSOR, resource=0) == OK
    assert guest.capture().cursor is None


def test_a_cursor_is_a_copy_that_outlives_its_resource() -> None:
    guest = guest_with_cursor()
    guest.cursor(UPDATE_CURSOR, resource=2)
    guest.poke(PAGE, bytes(SIZE))
    guest.transfer(2, (0, 0, SIDE, SIDE))
    guest.unref(2)
    assert cursor_of(guest).image.pixels == IMAGE


@pytest.mark.parametrize("shared", [True, False])
def test_a_cursor_can_come_from_a_blob(shared: bool) -> None:
    guest = guest_with_cursor(shared=shared)
    guest.create_blob(3, SIZE, [(PAGE, SIZE)])
    assert guest.cursor(UPDATE_CURSOR, resource=3) == OK
    assert cursor_of(guest).image.pixels == IMAGE
    assert cursor_of(guest).image.layout is PixelLayout.BGRA


def test_each_screen_has_its_own_cursor() -> None:
    guest = guest_with_cursor()
    guest.set_scanout(1, 1, (0, 0, 320, 200))
    guest.cursor(UPDATE_CURSOR, scanout=1, x=7, resource=2)
    assert guest.capture(0).cursor is None
    assert guest.capture(1).cursor is not None


def test_a_cursor_is_64_by_64() -> None:
    guest = guest_with_cursor()
    assert guest.cursor(UPDATE_CURSOR, resource=1) == BAD_PARAMETER
    guest.create_blob(3, SIZE - 1, [(PAGE, SIZE)])
    assert guest.cursor(UPDATE_CURSOR, resource=3) == BAD_PARAMETER
    guest.create_blob(4, SIZE, [])
    assert guest.cursor(UPDATE_CURSOR, resource=4) == UNSPEC


def test_a_cursor_needs_a_screen_and_a_resource() -> None:
    guest = guest_with_cursor()
    assert guest.cursor(UPDATE_CURSOR, resource=9) == BAD_RESOURCE
    assert guest.cursor(UPDATE_CURSOR, scanout=2, resource=2) == BAD_SCANOUT
    assert guest.cursor(MOVE_CURSOR, scanout=2) == BAD_SCANOUT


def test_a_cursor_request_without_room_for_a_response_is_served() -> None:
    # As Linux sends them.
    guest = guest_with_cursor()
    request = (
        header(UPDATE_CURSOR) + bytes.fromhex("00000000 09000000 08000000 00000000 02000000") + bytes(12)
    )
    assert guest.exchange(request, queue=CURSOR, space=0) == b""
    assert (cursor_of(guest).x, cursor_of(guest).y) == (9, 8)

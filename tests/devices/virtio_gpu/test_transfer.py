import pytest
from hypothesis import given
from hypothesis import strategies as st

from .guest import BAD_PARAMETER, BAD_RESOURCE, OK, PAGE, UNSPEC, Entries, Guest, Rect, noise

WIDTH, HEIGHT = 32, 16
STRIDE = WIDTH * 4
SIZE = STRIDE * HEIGHT
WHOLE = (0, 0, WIDTH, HEIGHT)


def image_with(entries: Entries, *, shared: bool = True) -> tuple[Guest, bytes]:
    """An image on the screen, backed by ``entries``; and what is in the guest's memory there, in order."""
    guest = Guest(memory=16 * PAGE, shared=shared)
    guest.poke(0, noise(16 * PAGE))
    guest.show(1, width=WIDTH, height=HEIGHT)
    assert guest.attach(1, entries) == OK
    return guest, b"".join(bytes(guest.host.memory.data[at : at + length]) for at, length in entries)


def expected(source: bytes, rect: Rect, offset: int) -> bytes:
    """What a transfer into an image of zeros leaves there: row by row, as the specification has it."""
    x, y, width, height = rect
    image = bytearray(SIZE)
    for row in range(height):
        start = (y + row) * STRIDE + 4 * x
        image[start : start + 4 * width] = source[offset + row * STRIDE :][: 4 * width]
    return bytes(image)


ONE_PIECE = [(PAGE, SIZE + PAGE)]
SCATTERED = [(3 * PAGE, 600), (PAGE, 36), (8 * PAGE + 5, 1111), (2 * PAGE, 1), (12 * PAGE, 2 * PAGE)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("entries", [ONE_PIECE, SCATTERED])
@pytest.mark.parametrize(
    ("rect", "offset"),
    [
        (WHOLE, 0),
        (WHOLE, 100),
        ((0, 3, WIDTH, 5), 3 * STRIDE),
        ((5, 2, 7, 9), 2 * STRIDE + 20),
        ((31, 15, 1, 1), SIZE - 4),
        ((0, 0, 1, 1), 0),
        ((4, 4, 8, 8), 0),
    ],
)
def test_a_transfer_copies_its_rectangle(shared: bool, entries: Entries, rect: Rect, offset: int) -> None:
    guest, source = image_with(entries, shared=shared)
    assert guest.transfer(1, rect, offset) == OK
    assert guest.capture().buffer.pixels == expected(source, rect, offset)
    assert guest.status["bytes_transferred"] == rect[2] * rect[3] * 4


@st.composite
def rects(draw: st.DrawFn) -> Rect:
    x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    return x, y, draw(st.integers(1, WIDTH - x)), draw(st.integers(1, HEIGHT - y))


@given(rects(), st.integers(0, 500), st.lists(st.integers(1, 900), min_size=6, max_size=12), st.booleans())
def test_any_rectangle_comes_out_of_any_scatter_list(
    rect: Rect, offset: int, lengths: list[int], shared: bool
) -> None:
    # From the top of memory down, so that no piece meets the next.
    entries = [(15 * PAGE - 1000 * index, length) for index, length in enumerate(lengths)] + [(0, PAGE)]
    guest, source = image_with(entries, shared=shared)
    end = offset + (rect[3] - 1) * STRIDE + rect[2] * 4
    fits = end <= len(source)
    assert guest.transfer(1, rect, offset) == (OK if fits else BAD_PARAMETER)
    assert guest.capture().buffer.pixels == (expected(source, rect, offset) if fits else bytes(SIZE))


def test_what_was_outside_of_the_rectangle_stays() -> None:
    guest, source = image_with(ONE_PIECE)
    guest.transfer(1, WHOLE)
    guest.poke(PAGE, bytes(SIZE))
    guest.transfer(1, (0, 0, WIDTH, 1))
    assert guest.capture().buffer.pixels == bytes(STRIDE) + source[STRIDE:SIZE]


@pytest.mark.parametrize(
    "rect",
    [
        (1, 0, WIDTH, 1),
        (0, 1, 1, HEIGHT),
        (WIDTH + 1, 0, 0, 0),
        (0xFFFFFFFF, 0, 1, 1),
        (0, 0xFFFFFFFF, 1, 1),
        (0, 0, 0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_a_rectangle_outside_of_the_image_is_an_invalid_parameter(rect: Rect) -> None:
    guest, _ = image_with(ONE_PIECE)
    assert guest.transfer(1, rect) == BAD_PARAMETER


def test_a_transfer_from_beyond_the_backing_is_an_invalid_parameter() -> None:
    guest, _ = image_with([(PAGE, SIZE)])
    assert guest.transfer(1, WHOLE, 0) == OK
    assert guest.transfer(1, WHOLE, 1) == BAD_PARAMETER
    assert guest.transfer(1, (0, 0, 1, 1), SIZE - 4) == OK
    assert guest.transfer(1, (0, 0, 1, 1), 0xFFFFFFFFFFFFFFFF) == BAD_PARAMETER


def test_an_empty_rectangle_copies_nothing() -> None:
    guest, _ = image_with(ONE_PIECE)
    assert guest.transfer(1, (0, 0, 0, HEIGHT)) == OK
    assert guest.transfer(1, (0, 0, WIDTH, 0)) == OK
    assert guest.capture().buffer.pixels == bytes(SIZE)


def test_a_transfer_needs_a_resource_with_a_backing() -> None:
    guest = Guest()
    assert guest.transfer(1, WHOLE) == BAD_RESOURCE
    guest.create_2d(1)
    assert guest.transfer(1, (0, 0, 1, 1)) == UNSPEC


def test_a_transfer_of_a_blob_copies_nothing_and_is_fine() -> None:
    guest = Guest()
    assert guest.create_blob(1, PAGE, [(0, PAGE)]) == OK
    assert guest.transfer(1, (0, 0, 1000, 1000)) == OK
    assert guest.status["bytes_transferred"] == 0


def test_memory_taken_away_is_released_at_once_and_pinned_again_when_it_is_needed() -> None:
    guest, source = image_with(ONE_PIECE)
    guest.host.memory.unmap(PAGE, PAGE)
    assert guest.host.memory.pins == []
    assert guest.status["pages_pinned"] == 0
    assert guest.transfer(1, WHOLE) == UNSPEC
    guest.host.memory.holes.clear()
    assert guest.transfer(1, WHOLE) == OK
    assert len(guest.host.memory.pins) == 1
    assert guest.capture().buffer.pixels == source[:SIZE]


def test_detaching_after_memory_was_taken_away_is_fine() -> None:
    guest, _ = image_with(ONE_PIECE)
    guest.host.memory.unmap(0, 16 * PAGE)
    assert guest.detach(1) == OK


def test_memory_that_is_not_shared_is_never_pinned() -> None:
    guest, _ = image_with(ONE_PIECE, shared=False)
    assert guest.transfer(1, WHOLE) == OK
    assert guest.status["pages_pinned"] == 0


def test_memory_that_is_not_shared_and_went_away_is_an_error() -> None:
    guest, _ = image_with(ONE_PIECE, shared=False)
    guest.host.memory.unmap(PAGE, PAGE)
    assert guest.transfer(1, WHOLE) == UNSPEC

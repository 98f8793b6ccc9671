"""Whatever a guest sends, it is answered, nothing is raised, and a reset gives everything back."""

from struct import pack

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.display import NothingOnScanout
from devices.virtio_gpu import GpuOptions

from .guest import (
    ASSIGN_UUID,
    ATTACH,
    CONTROL,
    CREATE_2D,
    CREATE_BLOB,
    CURSOR,
    DETACH,
    FLUSH,
    GET_EDID,
    MOVE_CURSOR,
    PAGE,
    SET_SCANOUT,
    SET_SCANOUT_BLOB,
    TRANSFER,
    UNREF,
    UPDATE_CURSOR,
    Guest,
    header,
    mem_entries,
    parse,
)

WORD = st.one_of(st.integers(0, 70), st.sampled_from([127, 128, 256, PAGE, 16384, 2**31, 2**32 - 1]))
LONG = st.one_of(WORD, st.sampled_from([2**32, 2**63, 2**64 - 1]))
RESOURCE = st.integers(0, 3)
SCANOUT = st.integers(0, 2)
RECT = st.tuples(WORD, WORD, WORD, WORD)
FORMAT = st.sampled_from([1, 2, 134, 0])
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([0, 0x1003, 0x8000, 0xFF000, 2**64 - PAGE]), st.sampled_from([0, 1, PAGE, 5 * PAGE])
    ),
    max_size=4,
)
COUNT_OFF_BY = st.sampled_from([0, 0, 0, 1, 2**31])


def command(queue: int, kind: int, *parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[int, bytes]]:
    """A request of type ``kind`` with random values in its structure, now and then with a fence."""
    return st.tuples(st.integers(0, 3), st.tuples(*parts)).map(
        lambda drawn: (queue, header(kind, drawn[0], 1) + b"".join(drawn[1]))
    )


def words(*strategies: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.tuples(*strategies).map(lambda values: pack(f"<{len(values)}I", *values))


RECT_BYTES = RECT.map(lambda rect: pack("<4I", *rect))
LONG_BYTES = LONG.map(lambda value: pack("<Q", value))
ATTACHMENT = st.tuples(RESOURCE, ENTRIES, COUNT_OFF_BY).map(
    lambda drawn: pack("<II", drawn[0], len(drawn[1]) + drawn[2]) + mem_entries(drawn[1])
)
BLOB = st.tuples(RESOURCE, st.integers(0, 3), ENTRIES, COUNT_OFF_BY, LONG).map(
    lambda drawn: (
        pack("<IIIIQQ", drawn[0], drawn[1] or 1, 2, len(drawn[2]) + drawn[3], 0, drawn[4])
        + mem_entries(drawn[2])
    )
)
COMMANDS = st.one_of(
    command(CONTROL, CREATE_2D, words(RESOURCE, FORMAT, WORD, WORD)),
    command(CONTROL, UNREF, words(RESOURCE, WORD)),
    command(CONTROL, SET_SCANOUT, RECT_BYTES, words(SCANOUT, RESOURCE)),
    command(CONTROL, FLUSH, RECT_BYTES, words(RESOURCE, WORD)),
    command(CONTROL, TRANSFER, RECT_BYTES, LONG_BYTES, words(RESOURCE, WORD)),
    command(CONTROL, ATTACH, ATTACHMENT),
    command(CONTROL, DETACH, words(RESOURCE, WORD)),
    command(CONTROL, GET_EDID, words(SCANOUT, WORD)),
    command(CONTROL, ASSIGN_UUID, words(RESOURCE, WORD)),
    command(CONTROL, CREATE_BLOB, BLOB),
    command(
        CONTROL,
        SET_SCANOUT_BLOB,
        RECT_BYTES,
        words(SCANOUT, RESOURCE, WORD, WORD, FORMAT, WORD, WORD, *[WORD] * 3, WORD, *[WORD] * 3),
    ),
    command(CURSOR, UPDATE_CURSOR, words(SCANOUT, WORD, WORD, WORD), words(RESOURCE, WORD, WORD, WORD)),
    command(CURSOR, MOVE_CURSOR, words(SCANOUT, WORD, WORD, WORD), words(RESOURCE, WORD, WORD, WORD)),
)
UNMAP = st.just((2, b""))
"""Not a request: the client takes memory away."""


def send_all(requests: list[tuple[int, bytes]], space: int, *, shared: bool) -> None:
    options = GpuOptions(scanouts=2, width=64, height=64, max_hostmem=1 << 20)
    guest = Guest(options, shared=shared)
    for queue, request in requests:
        if queue == 2:
            guest.host.memory.unmap(0x8000, PAGE)
            continue
        response = guest.exchange(request, queue=queue, space=space)
        assert len(response) <= space
        if space >= 24:
            reply = parse(response)
            assert 0x1100 <= reply.type <= 0x1106 or 0x1200 <= reply.type <= 0x1205
            if len(request) >= 24:
                assert reply.flags == request[4] & 3
        assert 0 <= guest.count("hostmem") <= options.max_hostmem
    for scanout in (0, 1):
        try:
            buffer = guest.capture(scanout).buffer
        except NothingOnScanout:
            continue
        assert len(buffer.pixels) == buffer.stride * buffer.height
    guest.gpu.reset()
    assert guest.host.memory.pins == []
    assert (guest.count("hostmem"), guest.count("resources")) == (0, 0)


@given(st.lists(st.one_of(COMMANDS, COMMANDS, COMMANDS, UNMAP), max_size=30), st.booleans())
@settings(max_examples=300, deadline=None)
def test_structured_requests_with_wild_values(requests: list[tuple[int, bytes]], shared: bool) -> None:
    send_all(requests, 2048, shared=shared)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.one_of(
                st.binary(max_size=120),
                st.tuples(st.integers(0x100, 0x10D), st.binary(max_size=100)).map(
                    lambda d: header(d[0]) + d[1]
                ),
                COMMANDS.flatmap(lambda c: st.integers(0, len(c[1])).map(lambda cut: c[1][:cut])),
            ),
        ),
        max_size=10,
    ),
    st.integers(0, 64),
)
@settings(deadline=None)
def test_garbage_and_cut_requests(requests: list[tuple[int, bytes]], space: int) -> None:
    send_all(requests, space, shared=True)

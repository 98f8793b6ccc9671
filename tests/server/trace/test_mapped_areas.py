"""What clients write to areas that they map is found by looking, recorded once, and in time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from devices.contract import RegionPart
from protocol import DeviceReset, RegionRead, RegionWrite, encode_request
from protocol.pcapng import Direction
from protocol.trace import MAX_CONTENT, SessionInfo
from server.trace import mapped_areas
from server.trace.mapped_areas import (
    IDLE_SECONDS,
    PAUSE_SECONDS,
    SHARE,
    MappedAreas,
    has_mappable_areas,
    keep_looking,
)
from server.trace.recorder import Recorder
from server.trace.ring import MIN_LIMIT, TraceRing
from tests.server.register_device import AREAS, BAR3, PAGE, RegisterDevice
from tests.server.trace.test_recorder import Seen, seen_in

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

SIZE = 8 * PAGE
INSIDE = AREAS[0].offset
"""A place in an area."""


class Screen(RegisterDevice):
    """Shows what a test says of BAR3."""

    def __init__(self) -> None:
        super().__init__()
        self.share_bar3()
        self.shown: Sequence[RegionPart] | None = None

    def shown_parts(self) -> Sequence[RegionPart] | None:
        return self.shown

    def draw(self, offset: int, data: bytes) -> None:
        """As a client does through its mapping."""
        os.pwrite(self.shared_fd, data, offset)


@pytest.fixture
def device() -> Iterator[Screen]:
    device = Screen()
    yield device
    device.close()


@contextmanager
def looking(device: Screen, path: Path, limit: int | None = None) -> Iterator[tuple[MappedAreas, Recorder]]:
    ring = TraceRing(path, limit)
    recorder = Recorder(ring, SessionInfo("tests"))
    recorder.start()
    try:
        with MappedAreas(device, recorder) as areas:
            yield areas, recorder
        recorder.flush()
    finally:
        ring.close()


def look(areas: MappedAreas) -> None:
    for _ in areas.look():
        pass


def looks_in(path: Path) -> list[Seen]:
    return [one for one in seen_in(path) if one[0] == "areas"]


def memory_after(looks: Sequence[Seen]) -> bytearray:
    """BAR3 as who reads the trace has it."""
    memory = bytearray(SIZE)
    for _, _, changes in looks:
        for region, offset, data in changes:
            assert region == BAR3
            assert any(
                area.offset <= offset <= offset + len(data) <= area.offset + area.length for area in AREAS
            )
            memory[offset : offset + len(data)] = data
    return memory


def test_a_look_records_what_has_changed_since_the_one_before(device: Screen, tmp_path: Path) -> None:
    with looking(device, tmp_path / "trace") as (areas, _):
        look(areas)
        device.draw(INSIDE, b"first")
        look(areas)
        look(areas)
        device.draw(INSIDE + 1, b"I")
        look(areas)
    assert looks_in(tmp_path / "trace") == [
        ("areas", True, []),
        ("areas", True, [(BAR3, INSIDE, b"first")]),
        ("areas", True, [(BAR3, INSIDE + 1, b"I")]),
    ]


def test_what_is_not_in_an_area_is_not_looked_at(device: Screen, tmp_path: Path) -> None:
    with looking(device, tmp_path / "trace") as (areas, _):
        device.draw(0, b"x" * SIZE)
        look(areas)
    memory = memory_after(looks_in(tmp_path / "trace"))
    assert memory.count(b"x") == sum(area.length for area in AREAS) < SIZE


writes = st.tuples(
    st.integers(0, SIZE - 1), st.integers(1, 3 * PAGE), st.sampled_from([b"\0", b"a", b"b", b"\xff"])
)


@given(st.lists(st.lists(writes, max_size=4), max_size=6), st.booleans())
def test_the_looks_together_give_what_is_there(steps: list[list[tuple[int, int, bytes]]], last: bool) -> None:
    device = Screen()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        with looking(device, path) as (areas, _):
            for step in steps:
                for offset, length, byte in step:
                    device.draw(offset, byte * min(length, SIZE - offset))
                look(areas)
            if last:
                device.draw(INSIDE, b"before the end")
        memory = memory_after(looks_in(path))
        for area in AREAS:
            end = area.offset + area.length
            assert memory[area.offset : end] == os.pread(device.shared_fd, area.length, area.offset)
    device.close()


def test_only_what_the_device_shows_is_looked_at(device: Screen, tmp_path: Path) -> None:
    with looking(device, tmp_path / "trace") as (areas, _):
        device.draw(INSIDE, b"x" * PAGE)
        device.shown = ()
        look(areas)
        device.shown = [RegionPart(BAR3, INSIDE + 10, 20), RegionPart(BAR3 + 1, INSIDE, PAGE)]
        look(areas)
        device.shown = [RegionPart(BAR3, INSIDE + 15, 20)]
        look(areas)
        device.shown = [RegionPart(BAR3, INSIDE + 10, 20)]
        look(areas)
        look(areas)
    assert looks_in(tmp_path / "trace") == [
        ("areas", True, [(BAR3, INSIDE + 10, b"x" * 20)]),
        ("areas", True, [(BAR3, INSIDE + 30, b"x" * 5)]),
        ("areas", True, []),  # the picture is another one
    ]


def test_parts_that_are_nowhere_do_no_harm(device: Screen, tmp_path: Path) -> None:
    with looking(device, tmp_path / "trace") as (areas, _):
        device.draw(0, b"x" * SIZE)
        device.shown = [
            RegionPart(BAR3, 2**64 - 1, 2**32),
            RegionPart(2**32 - 1, 0, SIZE),
            RegionPart(BAR3, INSIDE, 0),
        ]
        look(areas)
    assert [changes for _, _, changes in looks_in(tmp_path / "trace")] == [[]]


def test_what_a_client_reads_by_message_is_looked_at_before_the_message(
    device: Screen, tmp_path: Path
) -> None:
    read = encode_request(1, RegionRead(INSIDE + 2, BAR3, 2))
    others = [
        encode_request(2, RegionRead(INSIDE, BAR3 - 1, 8)),
        encode_request(3, RegionWrite(INSIDE, BAR3, b"data")),
        encode_request(4, RegionRead(2**64 - 1, BAR3, 2**32 - 1)),
        encode_request(5, RegionRead(0, BAR3, 0)),
        encode_request(6, RegionRead(INSIDE, BAR3, 8))[:-1],
    ]
    device.shown = ()
    with looking(device, tmp_path / "trace") as (_, recorder):
        device.draw(INSIDE, b"abcdef")
        for message in (*others, read):
            recorder.message(Direction.INBOUND, message)
        recorder.message(Direction.OUTBOUND, read)
    seen = seen_in(tmp_path / "trace")
    assert seen[len(others) + 1 :][:2] == [
        ("areas", False, [(BAR3, INSIDE + 2, b"cd")]),
        ("message", Direction.INBOUND, read, seen[1][3]),
    ]
    assert [one[0] for one in seen] == [
        "session",
        *["message"] * len(others),
        "areas",
        *["message"] * 2,
        "areas",
    ]


def test_before_a_reset_all_that_is_shown_is_looked_at(device: Screen, tmp_path: Path) -> None:
    with looking(device, tmp_path / "trace") as (_, recorder):
        device.draw(INSIDE, b"the last picture")
        recorder.message(Direction.INBOUND, encode_request(1, DeviceReset()))
        device.draw(INSIDE, bytes(16))
    looks = looks_in(tmp_path / "trace")
    assert looks == [
        ("areas", True, [(BAR3, INSIDE, b"the last picture")]),
        ("areas", True, [(BAR3, INSIDE, bytes(16))]),
    ]


def test_messages_in_the_middle_of_a_look_are_behind_what_was_found(device: Screen, tmp_path: Path) -> None:
    message = encode_request(1, RegionWrite(0, 0, b"x"))
    with looking(device, tmp_path / "trace") as (areas, recorder):
        for area in AREAS:
            device.draw(area.offset, b"here")
        steps = areas.look()
        next(steps)
        recorder.message(Direction.INBOUND, message)
        list(steps)
    _, first, between, second = seen_in(tmp_path / "trace")
    assert first == ("areas", False, [(BAR3, AREAS[0].offset, b"here")])
    assert between[2] == message
    assert second == ("areas", True, [(BAR3, area.offset, b"here") for area in AREAS[1:]])


def test_a_look_that_is_not_over_at_the_end_reads_nothing_more(
    device: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_areas, "PIECE", 16)
    with looking(device, tmp_path / "trace") as (areas, _):
        device.draw(INSIDE, b"here")
        steps = areas.look()
        next(steps)
        areas.finish()
        other = os.open(tmp_path / "trace", os.O_RDONLY)
        with pytest.raises(OSError, match="Bad file descriptor"):
            list(steps)
        os.close(other)
        assert not areas
    assert memory_after(looks_in(tmp_path / "trace"))[INSIDE : INSIDE + 4] == b"here"


def test_a_file_that_the_client_has_cut_does_no_harm(device: Screen, tmp_path: Path) -> None:
    with looking(device, tmp_path / "trace") as (areas, _):
        device.draw(INSIDE, b"here")
        look(areas)
        os.ftruncate(device.shared_fd, INSIDE + 2)
        device.draw(INSIDE, b"HE")
        look(areas)
        os.ftruncate(device.shared_fd, 0)
        look(areas)
    assert looks_in(tmp_path / "trace")[1] == ("areas", True, [(BAR3, INSIDE, b"HE")])


def test_looking_takes_no_memory_for_what_was_never_written(device: Screen, tmp_path: Path) -> None:
    before = os.fstat(device.shared_fd).st_blocks
    with looking(device, tmp_path / "trace") as (areas, _):
        look(areas)
    assert os.fstat(device.shared_fd).st_blocks == before == 0


def test_the_next_file_of_a_ring_has_all_that_is_shown(device: Screen, tmp_path: Path) -> None:
    device.shown = [RegionPart(BAR3, INSIDE, 100)]
    path = tmp_path / "trace"
    with looking(device, path, MIN_LIMIT) as (areas, recorder):
        device.draw(INSIDE, b"unchanged")
        look(areas)
        while not path.with_name("trace.1").exists():
            recorder.read(0, os.urandom(MAX_CONTENT))
        look(areas)
    assert looks_in(path)[-1] == ("areas", True, [(BAR3, INSIDE, b"unchanged".ljust(100, b"\0"))])


def test_devices_without_areas_have_nothing_to_look_at(tmp_path: Path) -> None:
    device = RegisterDevice()
    ring = TraceRing(tmp_path / "trace")
    recorder = Recorder(ring, SessionInfo("tests"))
    recorder.start()
    with MappedAreas(device, recorder) as areas:
        assert not areas
        assert not has_mappable_areas(device)
        assert recorder.areas is None
    recorder.flush()
    ring.close()
    assert [one[0] for one in seen_in(tmp_path / "trace")] == ["session"]


class Clock:
    """Time that looks take."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now


class SlowAreas(MappedAreas):
    """Looks that take ``step_ms`` for each of their ``steps``."""

    def __init__(self, clock: Clock, steps: int, step_ms: int, *, finds: bool = False) -> None:
        self._areas = []
        self._clock = clock
        self._steps = steps
        self._step_ms = step_ms
        self._finds = finds
        self.began: list[float] = []
        self.ended = trio.Event()

    @property
    def found(self) -> bool:
        return self._finds

    @property
    def recording_ended(self) -> bool:
        return False

    def look(self) -> Iterator[None]:
        self.began.append(trio.current_time())
        for _ in range(self._steps):
            self._clock.now += self._step_ms * 1_000_000
            yield
        self.ended.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(mapped_areas, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("step_ms", "finds", "pauses"),
    [
        (0, True, [PAUSE_SECONDS] * 4),
        (0, False, [2 * PAUSE_SECONDS, IDLE_SECONDS, IDLE_SECONDS, IDLE_SECONDS]),
        (50, True, [(SHARE - 1) * 0.1] * 4),
        (100, False, [(SHARE - 1) * 0.2] * 4),
    ],
)
async def test_looks_are_seldom_where_nothing_changes_and_take_a_tenth_of_the_time_at_most(
    clock: Clock, autojump_clock: trio.testing.MockClock, step_ms: int, finds: bool, pauses: list[float]
) -> None:
    areas = SlowAreas(clock, 2, step_ms, finds=finds)
    with trio.move_on_after(10):
        await keep_looking(areas)
    gaps = [after - before for before, after in zip(areas.began, areas.began[1:], strict=False)]
    assert gaps[:4] == pytest.approx(pauses)


async def test_nobody_looks_for_what_is_recorded_no_more(
    device: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not(_areas: MappedAreas) -> Iterator[None]:
        raise AssertionError

    with looking(device, Path("/dev/full")) as (areas, recorder):
        recorder.flush()
        assert areas.recording_ended
        monkeypatch.setattr(MappedAreas, "look", must_not)
        areas.before(encode_request(1, DeviceReset()))
        await keep_looking(areas)


async def test_other_tasks_have_their_turn_in_a_long_look(clock: Clock) -> None:
    areas, turns = SlowAreas(clock, 10, 2), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_looking, areas)
        while not areas.ended.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns >= 9

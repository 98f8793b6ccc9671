"""Whatever a guest does to an edu, nothing is raised, and all that was started comes to its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.contract import GuestRange
from devices.edu import Edu
from devices.testing import FakeHost

BAR0, CONFIG = 0, 7
REGISTERS = (0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98)
OFFSETS = st.one_of(st.sampled_from(REGISTERS), st.integers(0, 0xA8), st.integers(0, (1 << 20) - 1))
VALUES = st.one_of(
    st.sampled_from([0, 1, 3, 5, 7, 0x80, 0x1000, 0x40000, 0x40FFF, 4096, 0xFFFFFFFF, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
READS = st.tuples(st.just("read"), st.just(BAR0), OFFSETS, st.integers(0, 64), st.just(0))
WRITES = st.tuples(st.just("write"), st.just(BAR0), OFFSETS, st.sampled_from([0, 1, 2, 3, 4, 8, 16]), VALUES)
CONFIG_WRITES = st.tuples(
    st.just("write"), st.just(CONFIG), st.integers(0, 255), st.sampled_from([1, 2, 4]), VALUES
)
OTHERS = st.tuples(st.sampled_from(["reset", "reconnect"]), st.just(0), st.just(0), st.just(0), st.just(0))


@given(st.booleans(), st.lists(st.one_of(WRITES, READS, CONFIG_WRITES, OTHERS), max_size=40))
def test_no_sequence_of_accesses_raises_or_leaves_work_undone(
    shared: bool, sequence: list[tuple[str, int, int, int, int]]
) -> None:
    device, host = Edu(), FakeHost(memory_size=0x10000, shared=shared)
    host.memory.holes = [GuestRange(0x2000, 0x1000)]
    device.connect(host)
    device.region_write(CONFIG, 4, memoryview(b"\6\0"))
    for what, region, offset, width, value in sequence:
        match what:
            case "read":
                assert len(device.region_read(region, offset, width)) == width
            case "write":
                data = value.to_bytes(16, "little")[:width]
                device.region_write(region, offset, memoryview(data))
            case "reset":
                device.reset()
            case "reconnect":
                device.disconnect()
                device.connect(host)
        assert device.region_read(BAR0, 0x00, 4) == b"\xed\0\0\1"
        assert device.region_read(BAR0, 0x20, 4)[0] & 1 == 0
        assert device.region_read(BAR0, 0x98, 8)[0] & 1 == 0
    assert {event for _, event, _ in host.log.events} <= {"dma_refused", "dma_failed"}

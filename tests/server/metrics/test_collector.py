"""What is measured: names as Prometheus wants them, and values that follow what clients do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from prometheus_client.metrics_core import Metric

from devices.bochs_display import BochsDisplay
from devices.contract import Device, GuestRange, Prot
from devices.display import ScanoutInfo
from devices.virtio.pci import VirtioPci
from devices.virtio_gpu.device import VirtioGpu
from devices.virtio_gpu.options import GpuOptions
from protocol import DmaMapFlags, IrqAction, IrqData, SetIrqs
from protocol.trace import SessionInfo
from server.client import open_client
from server.client.requests import RemoteError
from server.dma.limits import PinLimits
from server.durations import BOUNDS
from server.metrics.device import device_families
from server.metrics.exposition import prometheus_text
from server.metrics.process import start_time
from server.native.serve import ConnectionOptions
from server.trace.recording import Recording
from server.trace.ring import TraceRing
from tests.server.metrics.scraping import GET, OPENMETRICS, Endpoint, find_value, measured
from tests.server.register_device import BAR0, MSIX, RegisterDevice
from tests.server.running import TRANSPORTS, running_server, with_transport
from tests.server.test_control import Screens

PAGE = 4096
RAM = 16 * PAGE
on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def device() -> RegisterDevice:
    return RegisterDevice()


@pytest.fixture
async def endpoint(device: RegisterDevice) -> AsyncIterator[Endpoint]:
    async with measured(device) as endpoint:
        yield endpoint


GPU_LIKE_STATUS = {
    "driver_ok": True,
    "needs_reset": False,
    "buffers": [5, 6],
    "commands": {"set_scanout": 3},
    "refused": {"set_scanout: err_unspec": 2},
    "bytes_transferred": 4096,
    "resources": 1,
    "hostmem": 64,
    "max_hostmem": 128,
}


class FullDevice(RegisterDevice):
    """A device that has everything that is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.screens = Screens()
        self.screens.scanouts = [ScanoutInfo(0, True, 800, 600, 640, 480, flips=7, flushes=8)]

    def status(self) -> dict[str, object]:
        return GPU_LIKE_STATUS


@pytest.mark.parametrize("request_", [GET, OPENMETRICS])
async def test_names_units_types_and_help_follow_the_conventions(tmp_path: Path, request_: bytes) -> None:
    """The rules of promtool's linter (prometheus/client_golang, prometheus/testutil/promlint)."""
    ring = TraceRing(tmp_path / "trace", 8 << 20)
    recording = Recording(ring, SessionInfo("x", "x", "x", memory=True, interrupts=True))
    async with measured(FullDevice(), ConnectionOptions(recording=recording)) as endpoint:
        families = await endpoint.families(request_)
    ring.close()
    assert len(families) > 40
    for name, family in families.items():
        assert re.fullmatch(r"(vgpud|process)_[a-z0-9]+(_[a-z0-9]+)*", name)
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert family.samples
        for word in ("total", "count", "sum", "bucket", "counter", "gauge", "histogram"):
            assert word not in name.split("_")
        for unit in ("ms", "us", "ns", "milliseconds", "nanoseconds", "kb", "mb", "pages", "minutes"):
            assert unit not in name.split("_")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            constant = {"device": "registers", "transport": "native"}
            assert name.startswith("process_") or constant.items() <= sample.labels.items()


def test_no_sample_is_there_twice(device: RegisterDevice) -> None:
    text = prometheus_text(device_families(FullDevice()))
    names = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(names) == len(set(names))


async def test_accesses_errors_and_resets_are_counted_by_what_they_were(endpoint: Endpoint) -> None:
    async with open_client(endpoint.server.path) as client:
        for _ in range(3):
            await client.region_read(BAR0, 0, 4)
        await client.region_write(BAR0, 0, b"abcd")
        await client.reset()
        with pytest.raises(RemoteError):
            await client.region_read(BAR0, PAGE, 4)
        families = await endpoint.families()
    assert find_value(families, "vgpud_region_accesses_total", access="read") == 3
    assert find_value(families, "vgpud_region_accesses_total", access="write") == 1
    assert find_value(families, "vgpud_device_resets_total") == 1
    assert find_value(families, "vgpud_request_errors_total") == 1
    assert find_value(families, "vgpud_client_attached") == 1


async def test_counters_go_on_where_the_session_before_ended(endpoint: Endpoint) -> None:
    for number in (1, 2, 3):
        async with open_client(endpoint.server.path) as client:
            await client.region_read(BAR0, 0, 4)
            assert await endpoint.value("vgpud_region_accesses_total", access="read") == number
        while endpoint.server.engine.session is not None:
            await trio.lowlevel.checkpoint()
        assert await endpoint.value("vgpud_region_accesses_total", access="read") == number
        assert await endpoint.value("vgpud_sessions_total") == number
        assert await endpoint.value("vgpud_client_attached") == 0


@on_both_transports
async def test_memory_and_pins_are_in_bytes(device: RegisterDevice, transport: str) -> None:
    options = with_transport(transport, limits=PinLimits(max_pinned=8 * PAGE))
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, RAM)
    async with measured(device, options) as endpoint:
        async with open_client(endpoint.server.path) as client:
            await client.dma_map(0, RAM, fd=fd)
            memory = device.attached.memory
            pins = [memory.pin_pages([GuestRange(0, 2 * PAGE)], Prot.READ, lambda _: None) for _ in range(2)]
            families = await endpoint.families()
            for name, value in (
                ("vgpud_dma_regions", 1),
                ("vgpud_dma_region_bytes", RAM),
                ("vgpud_dma_files", 1),
                ("vgpud_dma_maps_total", 1),
                ("vgpud_pins", 2),
                ("vgpud_pinned_bytes", 2 * PAGE),
                ("vgpud_locked_bytes", 2 * PAGE),
                ("vgpud_locked_limit_bytes", 8 * PAGE),
                ("vgpud_pin_cache_hit_bytes_total", 2 * PAGE),
                ("vgpud_pin_cache_miss_bytes_total", 2 * PAGE),
            ):
                assert find_value(families, name, transport=transport) == value, name
            for pin in pins:
                pin.release()
            assert await endpoint.value("vgpud_pinned_bytes") == 0
        while endpoint.server.engine.session is not None:
            await trio.lowlevel.checkpoint()
        assert await endpoint.value("vgpud_dma_region_bytes") == 0
        assert await endpoint.value("vgpud_dma_maps_total") == 1
    os.close(fd)


async def test_interrupts_that_reach_a_client_are_counted(device: RegisterDevice, endpoint: Endpoint) -> None:
    event = os.eventfd(0)
    async with open_client(endpoint.server.path) as client:
        device.attached.trigger(MSIX, 0)
        await client.set_irqs(SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), [event])
        device.attached.trigger(MSIX, 0)
        assert await endpoint.value("vgpud_interrupts_total") == 1
    os.close(event)


class EightBytes:
    """A client's memory."""

    def read(self, address: int, count: int) -> bytes:
        return bytes(count)

    def write(self, address: int, data: bytes) -> None:
        return


@on_both_transports
async def test_work_and_the_messages_that_it_waits_for_are_timed(
    device: RegisterDevice, transport: str
) -> None:
    done = trio.Event()

    async def work() -> None:
        await device.attached.memory.read(0, 8)
        await device.attached.memory.write(8, b"12345678")
        done.set()

    device.on_write[0] = lambda _data: device.attached.defer(work())
    async with (
        measured(device, with_transport(transport)) as endpoint,
        open_client(endpoint.server.path, memory=EightBytes()) as client,
    ):
        await client.dma_map(0, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE)
        began = time.monotonic()
        await client.region_write(BAR0, 0, b"kick")
        await done.wait()
        elapsed = time.monotonic() - began
        families = await endpoint.families()
    assert find_value(families, "vgpud_dma_messages_total") == 2
    assert find_value(families, "vgpud_dma_message_duration_seconds_count") == 2
    assert 0 < find_value(families, "vgpud_dma_message_duration_seconds_sum") < elapsed
    assert find_value(families, "vgpud_deferred_work_duration_seconds_count") == 3
    assert 0 < find_value(families, "vgpud_deferred_work_duration_seconds_sum") < elapsed
    assert _bounds(families["vgpud_dma_message_duration_seconds"]) == [*BOUNDS, float("inf")]


def _bounds(family: Metric) -> list[float]:
    return [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]


async def test_nothing_is_timed_where_nobody_wants_to_know(device: RegisterDevice) -> None:
    async with running_server(device) as server, open_client(server.path):
        assert server.engine.session is not None
        assert server.engine.session.work.timings is None


async def test_bytes_of_the_trace_are_counted(device: RegisterDevice, tmp_path: Path) -> None:
    ring = TraceRing(tmp_path / "trace")
    recording = Recording(ring, SessionInfo("x", "x", "x", memory=True, interrupts=True))
    async with measured(device, ConnectionOptions(recording=recording)) as endpoint:
        assert await endpoint.value("vgpud_trace_written_bytes_total") == 0
        async with open_client(endpoint.server.path) as client:
            await client.region_read(BAR0, 0, 4)
            ring.flush()
            counted = await endpoint.value("vgpud_trace_written_bytes_total")
            assert counted == (tmp_path / "trace").stat().st_size > 0
        families = await endpoint.families()
        assert find_value(families, "vgpud_trace_stopped") == 0
        assert "vgpud_trace_limit_bytes" not in families
    ring.close()


async def test_a_trace_has_a_limit_and_may_have_ended(device: RegisterDevice, tmp_path: Path) -> None:
    ring = TraceRing(tmp_path / "trace", 8 << 20)
    recording = Recording(ring, SessionInfo("x", "x", "x", memory=True, interrupts=True))
    async with measured(device, ConnectionOptions(recording=recording)) as endpoint:
        assert await endpoint.value("vgpud_trace_limit_bytes") == 8 << 20
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, ring._fd)
        os.close(full)
        ring.append(b"what does not fit")
        ring.flush()
        families = await endpoint.families()
        assert find_value(families, "vgpud_trace_stopped") == 1
        assert find_value(families, "vgpud_trace_written_bytes_total") == 0
    ring.close()


async def test_there_is_no_trace_to_count_where_nothing_is_recorded(endpoint: Endpoint) -> None:
    assert not [name for name in await endpoint.families() if name.startswith("vgpud_trace")]


async def test_a_device_tells_of_its_screens_and_commands() -> None:
    async with measured(FullDevice()) as endpoint:
        families = await endpoint.families()
    for name, labels, value in (
        ("vgpud_scanout_flips_total", {"scanout": "0"}, 7),
        ("vgpud_scanout_flushes_total", {"scanout": "0"}, 8),
        ("vgpud_scanout_connected", {"scanout": "0"}, 1),
        ("vgpud_scanout_width_pixels", {"scanout": "0"}, 640),
        ("vgpud_scanout_height_pixels", {"scanout": "0"}, 480),
        ("vgpud_gpu_commands_total", {"command": "set_scanout"}, 3),
        ("vgpud_gpu_command_errors_total", {"command": "set_scanout", "response": "err_unspec"}, 2),
        ("vgpud_virtqueue_buffers_total", {"queue": "1"}, 6),
        ("vgpud_virtio_driver_ok", {}, 1),
        ("vgpud_virtio_needs_reset", {}, 0),
        ("vgpud_gpu_transferred_bytes_total", {}, 4096),
        ("vgpud_gpu_resources", {}, 1),
        ("vgpud_gpu_host_memory_bytes", {}, 64),
        ("vgpud_gpu_host_memory_limit_bytes", {}, 128),
    ):
        assert find_value(families, name, **labels) == value, name


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: VirtioPci(VirtioGpu(GpuOptions(scanouts=2))), set(GPU_LIKE_STATUS)),
        (BochsDisplay, set()),
        (RegisterDevice, set()),
    ],
)
def test_the_status_of_a_device_has_what_is_measured_of_it(make: type[Device], expected: set[str]) -> None:
    device = make()
    try:
        assert expected <= set(device.status())
        for family in device_families(device):
            assert all(sample.value >= 0 for sample in family.samples)
    finally:
        device.close()


async def test_the_process_is_measured_under_the_names_that_all_clients_use(endpoint: Endpoint) -> None:
    families = await endpoint.families()
    assert find_value(families, "process_start_time_seconds") == start_time()
    assert find_value(families, "process_open_fds") <= find_value(families, "process_max_fds")
    resident = find_value(families, "process_resident_memory_bytes")
    assert 1 << 20 < resident < find_value(families, "process_virtual_memory_bytes")
    before = find_value(families, "process_cpu_seconds_total")
    assert 0 < before <= await endpoint.value("process_cpu_seconds_total")


def test_a_process_began_when_it_was_started() -> None:
    before = time.time()
    program = "from server.metrics.process import start_time; print(start_time())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # The kernel gives the time of its own start in whole seconds.
    assert before - 1.1 <= float(done.stdout) <= time.time() + 1.1


async def test_the_metrics_that_the_documentation_names_are_there(tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "docs" / "operating.md").read_text()
    named = set(re.findall(r"`((?:vgpud|process)_[a-z_]+)`", document))
    ring = TraceRing(tmp_path / "trace", 8 << 20)
    recording = Recording(ring, SessionInfo("x", "x", "x", memory=True, interrupts=True))
    async with measured(FullDevice(), ConnectionOptions(recording=recording)) as endpoint:
        families = await endpoint.families()
    ring.close()
    samples = {sample.name for family in families.values() for sample in family.samples}
    assert named <= samples | families.keys()
    ours = {name for name in samples if name.startswith("vgpud_")}
    assert {re.sub(r"_seconds_(bucket|sum|count)$", "_seconds", name) for name in ours} <= named

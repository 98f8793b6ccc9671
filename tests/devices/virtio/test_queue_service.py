"""When queues are served, and what comes between."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from devices.contract import GuestMemoryError
from devices.testing import FakeHost
from devices.virtio.device import DescriptorChain, MalformedRequest
from devices.virtio.pci import VirtioPci
from devices.work import ReadMessage, pause
from tests.devices.virtio.driver import COMMAND, CONFIG, NEEDS_RESET, VirtioDriver
from tests.devices.virtio.echo import EchoDevice
from tests.devices.virtio.step_host import StepHost

VERSION_1, EVENT_IDX = 1 << 32, 1 << 29
QUEUE_INTERRUPT, CONFIG_INTERRUPT = (2, 1), (2, 0)


class PatientDevice(EchoDevice):
    """Waits for the host before it answers."""

    async def handle(self, queue: int, chain: DescriptorChain) -> int:
        await pause()
        return await super().handle(queue, chain)


def offer(driver: VirtioDriver, data: bytes, *, descriptor: int = 0, queue: int = 0) -> int:
    """Make a buffer available without a kick; the address where the reply will be."""
    target = driver.allocate(len(data))
    readable = [(driver.store(data), len(data))]
    driver.make_available(queue, driver.describe(queue, readable, [(target, len(data))], descriptor))
    return target


def bus_master(driver: VirtioDriver, on: bool) -> None:
    driver.write(CONFIG, COMMAND, 2, 6 if on else 2)


def test_many_kicks_are_one_piece_of_work() -> None:
    host = StepHost()
    driver = VirtioDriver(VirtioPci(EchoDevice()), host).start()
    offer(driver, b"one")
    for _ in range(5):
        driver.kick(0)
    assert len(host.waiting) == 1
    driver.kick(1)
    assert len(host.waiting) == 2
    host.run()
    assert len(driver.collect(0)) == 1


def test_the_host_gets_a_moment_after_every_buffer() -> None:
    host = StepHost()
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), host).start()
    offer(driver, b"one", descriptor=0)
    offer(driver, b"two", descriptor=2)
    driver.kick(0)
    host.step()
    assert len(device.handled) == 1
    assert len(driver.collect(0)) == 1
    host.step()
    assert len(device.handled) == 2


def test_a_batch_interrupts_once() -> None:
    host = FakeHost()
    driver = VirtioDriver(VirtioPci(EchoDevice()), host).start()
    targets = [offer(driver, data, descriptor=2 * n) for n, data in enumerate((b"one", b"two", b"six"))]
    driver.kick(0)
    assert host.interrupts == [QUEUE_INTERRUPT]
    assert [driver.peek(target, 3) for target in targets] == [b"eno", b"owt", b"xis"]


def test_a_long_batch_interrupts_in_between() -> None:
    host = FakeHost()
    driver = VirtioDriver(VirtioPci(EchoDevice((32,))), host, features=VERSION_1).start()
    for n in range(12):
        offer(driver, b"data", descriptor=2 * n)
    driver.kick(0)
    assert host.interrupts == [QUEUE_INTERRUPT] * 2


def test_an_event_index_that_is_not_reached_keeps_the_device_quiet() -> None:
    host = FakeHost()
    driver = VirtioDriver(VirtioPci(EchoDevice()), host).start()
    driver.poke16(driver.rings[0].used_event, 2)
    for n in range(3):
        offer(driver, b"one", descriptor=2 * n)
        driver.kick(0)
        assert host.interrupts == [QUEUE_INTERRUPT] * (n == 2)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_no_buffer_is_lost_whenever_it_comes(shared: bool, features: int) -> None:
    """The driver adds a buffer after each step of the work, and kicks only if the device wants to hear of it."""
    for moment in range(40):
        host = StepHost(shared=shared)
        device = EchoDevice()
        driver = VirtioDriver(VirtioPci(device), host, features=features).start()
        offer(driver, b"one", descriptor=0)
        driver.kick(0)
        steps = 0
        while host.waiting and steps < moment:
            host.step()
            steps += 1
        offer(driver, b"two", descriptor=2)
        if driver.wants_kick(0):
            driver.kick(0)
        host.run()
        assert [request for _, request in device.handled] == [b"one", b"two"]
        if steps < moment:
            break
    else:
        pytest.fail("the work never ended")


def test_nothing_is_served_before_the_driver_is_ready() -> None:
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), FakeHost())
    driver.write(CONFIG, COMMAND, 2, 6)
    driver.status = 3
    driver.negotiate()
    driver.rings = [driver.set_up_queue(0)]
    target = offer(driver, b"early")
    driver.kick(0)
    assert device.handled == []
    driver.status |= 4
    assert driver.peek(target, 5) == b"ylrae"


def test_a_queue_enabled_after_the_driver_is_ready_works() -> None:
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), FakeHost(), msix=False)
    driver.write(CONFIG, COMMAND, 2, 6)
    driver.status = 3
    driver.negotiate()
    driver.status |= 4
    driver.rings = [driver.set_up_queue(0)]
    assert driver.send(0, [b"late"], [4]) == [b"etal"]


def test_a_queue_that_was_not_enabled_ignores_kicks() -> None:
    driver = VirtioDriver(VirtioPci(EchoDevice()), FakeHost())
    driver.write(CONFIG, COMMAND, 2, 6)
    driver.status = 3
    driver.negotiate()
    driver.status |= 4
    driver.write(4, 0x3000, 2, 0)
    assert not driver.needs_reset


def test_without_bus_mastering_a_kick_waits() -> None:
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), FakeHost()).start()
    bus_master(driver, False)
    offer(driver, b"one")
    driver.kick(0)
    assert device.handled == []
    bus_master(driver, True)
    assert len(device.handled) == 1


def test_bus_mastering_switched_off_stops_between_two_buffers() -> None:
    host = StepHost()
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), host).start()
    offer(driver, b"one", descriptor=0)
    offer(driver, b"two", descriptor=2)
    driver.kick(0)
    host.step()
    bus_master(driver, False)
    host.run()
    assert len(device.handled) == 1
    bus_master(driver, True)
    host.run()
    assert len(device.handled) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_a_reset_in_the_middle_of_a_buffer_leaves_the_ring_alone(shared: bool) -> None:
    for moment in range(1, 40):
        host = StepHost(shared=shared)
        driver = VirtioDriver(VirtioPci(PatientDevice()), host).start()
        offer(driver, b"one")
        driver.kick(0)
        for _ in range(moment):
            if host.waiting:
                host.step()
        if not host.waiting:
            return
        driver.status = 0
        interrupts = list(host.interrupts)
        used_ring = driver.peek(driver.rings[0].used, 4096)
        host.run()
        assert driver.peek(driver.rings[0].used, 4096) == used_ring
        assert (host.interrupts, host.memory.pins, driver.status) == (interrupts, [], 0)
    pytest.fail("the work never ended")


def test_a_queue_works_again_after_a_reset_that_interrupted_it() -> None:
    host = StepHost()
    device = PatientDevice()
    pci = VirtioPci(device)
    driver = VirtioDriver(pci, host).start()
    offer(driver, b"one")
    driver.kick(0)
    host.step()
    again = VirtioDriver(pci, host, heap=0x40000).start()
    target = offer(again, b"two")
    again.kick(0)
    host.run()
    assert again.peek(target, 3) == b"owt"
    assert len(again.collect(0)) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_resets_between_kicks_leave_one_run_that_has_not_begun(begun: bool) -> None:
    host = StepHost(shared=False)
    pci = VirtioPci(device := EchoDevice())
    for _ in range(5):
        driver = VirtioDriver(pci, host).start()
        offer(driver, b"lost")
        driver.kick(0)
        if begun and len(host.waiting) == 1:
            assert isinstance(host.step(), ReadMessage)
    again = VirtioDriver(pci, host, heap=0x40000).start()
    target = offer(again, b"one")
    again.kick(0)
    assert len(host.waiting) == 1 + begun
    host.run()
    assert [request for _, request in device.handled] == [b"one"]
    assert again.peek(target, 3) == b"eno"


def test_disconnecting_lets_go_of_memory_and_keeps_the_place_in_the_ring() -> None:
    host = FakeHost()
    device = EchoDevice()
    pci = VirtioPci(device)
    driver = VirtioDriver(pci, host).start()
    assert driver.send(0, [b"one"], [3]) == [b"eno"]
    pci.disconnect()
    assert host.memory.pins == []
    assert device.disconnects == 1
    pci.connect(host)
    assert driver.send(0, [b"two"], [3]) == [b"owt"]


@pytest.mark.parametrize("host_closes_work", [True, False])
def test_a_buffer_half_served_at_a_disconnect_is_served_after_it(host_closes_work: bool) -> None:
    host = StepHost()
    device = PatientDevice()
    pci = VirtioPci(device)
    driver = VirtioDriver(pci, host).start()
    target = offer(driver, b"one")
    driver.kick(0)
    host.step()
    pci.disconnect()
    work = host.waiting.pop()
    if host_closes_work:
        work.close()
    else:
        with pytest.raises(StopIteration):
            work.throw(GuestMemoryError(errno.ENODEV, "the client is gone"))
    assert driver.collect(0) == []
    pci.connect(host)
    assert not driver.needs_reset
    driver.kick(0)
    host.run()
    assert driver.collect(0) == [(0, 3)]
    assert driver.peek(target, 3) == b"eno"


def test_work_that_never_started_before_a_disconnect_does_not_block_the_queue() -> None:
    host = StepHost()
    pci = VirtioPci(EchoDevice())
    driver = VirtioDriver(pci, host).start()
    offer(driver, b"one")
    driver.kick(0)
    pci.disconnect()
    host.waiting.pop().close()
    pci.connect(host)
    driver.kick(0)
    host.run()
    assert driver.collect(0) == [(0, 3)]


def test_a_client_that_refuses_messages_for_a_moment_breaks_nothing() -> None:
    """ENODEV is how QEMU answers DMA messages while bus mastering is off."""
    host = StepHost(shared=False)
    driver = VirtioDriver(VirtioPci(EchoDevice()), host).start()
    offer(driver, b"one")
    driver.kick(0)
    while not isinstance(host.step(), ReadMessage):
        pass
    with pytest.raises(StopIteration):
        host.waiting.pop().throw(GuestMemoryError(errno.ENODEV, "no bus mastering"))
    host.answer = None
    assert not driver.needs_reset
    bus_master(driver, False)
    bus_master(driver, True)
    host.run()
    assert driver.collect(0) == [(0, 3)]


def warnings(host: FakeHost) -> list[tuple[str, dict[str, object]]]:
    return [(event, fields) for level, event, fields in host.log.events if level == "warning"]


def test_a_malformed_ring_needs_a_reset_and_says_so() -> None:
    host = FakeHost()
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), host).start()
    driver.make_available(0, 99)
    driver.kick(0)
    assert driver.needs_reset
    assert host.interrupts == [CONFIG_INTERRUPT]
    assert warnings(host) == [
        ("virtqueue_malformed", {"queue": 0, "reason": "descriptor 99 of 8 made available"})
    ]
    offer(driver, b"one", queue=1)
    driver.kick(1)
    assert device.handled == []
    driver.start()
    assert not driver.needs_reset
    assert driver.send(0, [b"one"], [3]) == [b"eno"]


def test_a_ring_that_is_not_there_needs_a_reset() -> None:
    host = FakeHost()
    driver = VirtioDriver(VirtioPci(EchoDevice()), host).start()
    host.memory.unmap(driver.rings[0].used, 4096)
    driver.kick(0)
    assert driver.needs_reset
    assert warnings(host)[0][0] == "virtqueue_malformed"


@pytest.mark.parametrize(
    ("error", "event", "reason"),
    [
        (MalformedRequest("no header"), "virtqueue_malformed", "no header"),
        (GuestMemoryError(errno.EINVAL, "not mapped"), "virtqueue_malformed", "not mapped"),
        (KeyError("oops"), "device_fault", "KeyError: 'oops'"),
    ],
)
def test_whatever_a_device_raises_stops_the_device_only(error: Exception, event: str, reason: str) -> None:
    def fail() -> None:
        raise error

    host = FakeHost()
    device = EchoDevice()
    device.before_reply = fail
    driver = VirtioDriver(VirtioPci(device), host).start()
    offer(driver, b"one")
    driver.kick(0)
    assert driver.needs_reset
    (said,) = warnings(host)
    assert said[0] == event
    assert reason in str(said[1]["reason"])


def test_a_device_cannot_claim_more_than_it_was_given() -> None:
    class Boaster(EchoDevice):
        async def handle(self, queue: int, chain: DescriptorChain) -> int:
            return 1 << 40

    driver = VirtioDriver(VirtioPci(Boaster()), FakeHost()).start()
    offer(driver, b"one")
    driver.kick(0)
    assert driver.collect(0) == [(0, 3)]


def test_a_device_that_reconfigures_itself_from_a_buffer_may_be_reset_from_there() -> None:
    """A reset from inside ``handle`` is what a host does that serves registers while a device works."""
    host = FakeHost()
    device = EchoDevice()
    driver = VirtioDriver(VirtioPci(device), host).start()
    reset: Callable[[], None] = lambda: setattr(driver, "status", 0)  # noqa: E731
    device.before_reply = reset
    offer(driver, b"one")
    driver.kick(0)
    assert driver.collect(0) == []
    assert driver.status & NEEDS_RESET == 0

"""The modern virtio PCI transport (virtio 1.3, section 4.1): any virtio device as a PCI function."""

from __future__ import annotations

from devices.display import Display
from devices.pci.config_space import PciIdentity
from devices.pci.constants import CapabilityId, InterruptPin
from devices.pci.function import Bar, MsixSpec, PciFunction
from devices.pci.register_names import array_names
from devices.pci.registers import Window
from devices.virtio.chain import Chain
from devices.virtio.common_config import CommonConfig
from devices.virtio.constants import (
    COMMON_CONFIG_SIZE,
    MODERN_DEVICE_BASE,
    MODERN_REVISION,
    NO_VECTOR,
    VIRTIO_VENDOR,
    DeviceStatus,
    Feature,
    Isr,
    PciCapability,
)
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_access import ConfigAccess
from devices.virtio.queue_service import QueueService
from devices.virtio.register_names import capability_name, capability_register_name, common_register_name

_MSIX_BAR = 1
_VIRTIO_BAR = 4
_PAGE = 4096
_COMMON, _ISR, _DEVICE, _NOTIFY = 0 * _PAGE, 1 * _PAGE, 2 * _PAGE, 3 * _PAGE
_BAR_SIZE = 4 * _PAGE
_NOTIFY_SHIFT = 2
"""Each queue has a notification register of 4 bytes of its own."""
_TRANSPORT_FEATURES = int(
    Feature.VERSION_1 | Feature.ACCESS_PLATFORM | Feature.RING_INDIRECT_DESC | Feature.RING_EVENT_IDX
)
_RUNNING = int(DeviceStatus.DRIVER_OK | DeviceStatus.DEVICE_NEEDS_RESET)
_DRIVER_OK = int(DeviceStatus.DRIVER_OK)
_NEEDS_RESET = int(DeviceStatus.DEVICE_NEEDS_RESET)


class VirtioPci(PciFunction):
    """``device`` as a PCI function: structures in BAR 4, MSI-X in BAR 1 with one vector more than queues.

    Without ``msix`` there is neither its capability nor its BAR, and all interrupts are INTA#; what a driver writes as
    a vector reads back as NO_VECTOR (virtio 1.3, 4.1.5.1.2.1).

    Is the device's :class:`devices.virtio.device.VirtioTransport`.
    """

    def __init__(self, device: VirtioDevice, *, msix: bool = True) -> None:
        self.name = device.name
        self.device = device
        device.transport = self
        vectors = len(device.queue_sizes) + 1 if msix else 0
        self._isr = 0
        self.common = CommonConfig(self, device.queue_sizes, vectors)
        self._services = [QueueService(index, self) for index in range(len(device.queue_sizes))]
        super().__init__(
            PciIdentity(
                vendor=VIRTIO_VENDOR,
                device=MODERN_DEVICE_BASE + device.device_id,
                class_code=device.pci_class,
                revision=MODERN_REVISION,
                subsystem_vendor=VIRTIO_VENDOR,
                subsystem=MODERN_DEVICE_BASE + device.device_id,
            ),
            bars={_VIRTIO_BAR: Bar(_BAR_SIZE, self._windows(), is_64bit=True, prefetchable=True)},
            msix=MsixSpec(vectors, _MSIX_BAR) if msix else None,
            interrupt_pin=InterruptPin.INTA,
        )
        self._add_capability(PciCapability.COMMON_CFG, _COMMON, COMMON_CONFIG_SIZE)
        self._add_capability(PciCapability.ISR_CFG, _ISR, 1)
        self._add_capability(PciCapability.DEVICE_CFG, _DEVICE, _PAGE)
        self._add_capability(
            PciCapability.NOTIFY_CFG, _NOTIFY, _PAGE, (1 << _NOTIFY_SHIFT).to_bytes(4, "little")
        )
        self._config_access = ConfigAccess(self.config, self._add_access_capability(), self)

    def _windows(self) -> tuple[Window, ...]:
        common = self.common.registers
        notify_names = array_names("notify", 1 << _NOTIFY_SHIFT)
        return (
            Window(_COMMON, common.length, common.read, common.write, "common", common_register_name),
            Window(_ISR, _PAGE, self._read_isr, name="isr"),
            Window(
                _DEVICE,
                _PAGE,
                self.device.config_read,
                self._write_device_config,
                "device",
                self.device.config_field_name,
            ),
            Window(_NOTIFY, _PAGE, write=self._notify, register_name=notify_names),
        )

    def _add_capability(self, kind: PciCapability, offset: int, length: int, extra: bytes = b"") -> None:
        self.config.add_capability(
            CapabilityId.VENDOR_SPECIFIC,
            bytes((16 + len(extra), kind, _VIRTIO_BAR, 0, 0, 0))
            + offset.to_bytes(4, "little")
            + length.to_bytes(4, "little")
            + extra,
            name=capability_name(kind),
            register_name=capability_register_name(kind),
        )

    def _add_access_capability(self) -> int:
        return self.config.add_capability(
            CapabilityId.VENDOR_SPECIFIC,
            bytes((20, PciCapability.PCI_CFG)) + bytes(16),
            writable=b"\0\0\xff\0\0\0" + b"\xff" * 12,
            name=capability_name(PciCapability.PCI_CFG),
            register_name=capability_register_name(PciCapability.PCI_CFG),
        )

    # What the driver does to the common configuration

    @property
    def offered_features(self) -> int:
        """The device's features, and those of the transport and the rings."""
        return self.device.features | _TRANSPORT_FEATURES

    def driver_reset(self) -> None:
        """Reset everything that virtio knows of; configuration space stays."""
        for service in self._services:
            service.stop()
        self.common.reset()
        self._isr = 0
        self.set_intx(False)
        self.device.reset()

    def driver_ready(self) -> None:
        """Activate the device, then serve its queues."""
        self.device.activate(self.common.features)
        for index, queue in enumerate(self.common.queues):
            if queue.enabled:
                self._services[index].start(queue.layout, self.common.features)

    def queue_enabled(self, index: int) -> None:
        """Serve a queue that comes late."""
        if self.common.driver_ok:
            self._services[index].start(self.common.queues[index].layout, self.common.features)

    # What the queues need

    @property
    def may_serve(self) -> bool:
        """The driver is up, nothing is broken, and the function is bus master."""
        return self.bus_master and self.common.status & _RUNNING == _DRIVER_OK and self._host is not None

    async def handle(self, queue: int, chain: Chain) -> int:
        """Pass a buffer on to the device."""
        return await self.device.handle(queue, chain)

    def queue_interrupt(self, queue: int) -> None:
        """Interrupt for used buffers (4.1.5.1.3)."""
        self._interrupt(self.common.queues[queue].vector, Isr.QUEUE)

    def queue_failed(self, queue: int, event: str, reason: str) -> None:
        """Set DEVICE_NEEDS_RESET and tell the driver (2.1.2)."""
        self.host.log.warning(event, queue=queue, reason=reason)
        self.common.status |= _NEEDS_RESET
        self._config_interrupt()

    # What the device asks for

    def config_changed(self) -> None:
        """Count a new generation of the device's configuration, and tell the driver."""
        self.common.generation += 1
        self._config_interrupt()

    def _config_interrupt(self) -> None:
        if self.common.driver_ok:
            self._interrupt(self.common.config_vector, Isr.DEVICE_CONFIG)

    def _interrupt(self, vector: int, cause: Isr) -> None:
        by_message = self.msix is not None and self.msix.enabled
        if not by_message or cause is Isr.DEVICE_CONFIG:  # which the ISR shows with MSI-X too (4.1.4.5.1)
            self._isr |= int(cause)
            self.set_intx(True)
        if by_message and vector != NO_VECTOR:
            self.raise_msix(vector)

    # Registers

    def _read_isr(self, offset: int, count: int) -> bytes:
        if offset:
            return bytes(count)
        value, self._isr = self._isr, 0
        self.set_intx(False)
        return value.to_bytes(count, "little")

    def _write_device_config(self, offset: int, data: memoryview) -> None:
        self.device.config_write(offset, bytes(data))

    def _notify(self, offset: int, data: memoryview) -> None:  # noqa: ARG002 - the address says it all
        index = offset >> _NOTIFY_SHIFT
        if index < len(self._services):
            self._services[index].kick()

    def config_read(self, offset: int, count: int) -> bytes:
        """Read configuration space, with the access capability's view of a BAR in it."""
        self._config_access.refresh(offset, count)
        return super().config_read(offset, count)

    def config_write(self, offset: int, data: memoryview) -> None:
        """Write configuration space, and through the access capability a BAR."""
        super().config_write(offset, data)
        self._config_access.written(offset, len(data))

    # The function's life

    def bus_master_changed(self) -> None:
        """Serve what was announced while the function could not reach memory."""
        if self.bus_master:
            for service in self._services:
                service.resume()

    def function_reset(self) -> None:
        """Reset the device and everything that the driver programmed."""
        self.driver_reset()

    def function_disconnect(self) -> None:
        """Let go of the client's memory, keep everything else."""
        for service in self._services:
            service.detach()
        self.device.disconnect()

    @property
    def display(self) -> Display | None:
        """The device's screens."""
        return self.device.display

    def status(self) -> dict[str, object]:
        """The transport's state, and the device's."""
        return {
            "driver_ok": self.common.driver_ok,
            "needs_reset": bool(self.common.status & _NEEDS_RESET),
            "features": f"{self.common.features:#x}",
            "buffers": [service.served for service in self._services],
            "interrupts": [service.interrupts for service in self._services],
            **self.device.status(),
        }

"""A PCI function: a declarative description of BARs, configuration space and interrupts, as a VFIO device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devices.contract import Device, Host, Irq, MmapArea, Region, RegionAccess, SharedMemory
from devices.pci.config_space import ConfigSpace, PciIdentity
from devices.pci.constants import (
    BAR_COUNT,
    CONFIG_SPACE_SIZE,
    Command,
    ConfigRegister,
    InterruptPin,
    Status,
)
from devices.pci.msi import Msi
from devices.pci.msix import Msix
from devices.pci.register_names import RegisterName
from devices.pci.registers import ReadHandler, Window, WindowMap, WriteHandler, ignore_write, read_zeros
from protocol import PciIrq, PciRegion

_READ_WRITE = RegionAccess.READ | RegionAccess.WRITE
_COMMAND_END = ConfigRegister.COMMAND + 2


@dataclass(frozen=True, slots=True)
class Bar:
    """A memory BAR of ``size`` bytes (a power of two) made of register windows; gaps read as zeros."""

    size: int
    windows: Sequence[Window] = ()
    is_64bit: bool = False
    prefetchable: bool = False
    mmap_areas: tuple[MmapArea, ...] = ()
    shared: SharedMemory | None = None


@dataclass(frozen=True, slots=True)
class MsixSpec:
    """MSI-X with ``vectors`` vectors, in BAR ``bar``, which it has to itself."""

    vectors: int
    bar: int


class PciFunction(Device):
    """A PCI function with nine VFIO regions (six BARs, ROM, CONFIG, VGA) and five interrupts.

    Subclasses describe themselves to ``__init__`` and get: configuration space with BAR sizing, a command
    register, MSI-X, MSI and INTA#, and dispatch of register accesses. They override :meth:`bus_master_changed`,
    :meth:`function_reset` and :meth:`function_disconnect` as they need.
    """

    def __init__(
        self,
        identity: PciIdentity,
        *,
        bars: Mapping[int, Bar],
        msix: MsixSpec | None = None,
        msi_vectors: int = 0,
        interrupt_pin: InterruptPin = InterruptPin.NONE,
        config_size: int = CONFIG_SPACE_SIZE,
    ) -> None:
        self._host: Host | None = None
        self.bus_master = False
        self._intx_level = False
        self._has_intx = interrupt_pin is not InterruptPin.NONE
        self.config = ConfigSpace(identity, size=config_size, interrupt_pin=interrupt_pin)
        self.msi = Msi(msi_vectors, self.config, self._deliver_msi) if msi_vectors else None
        self.msix: Msix | None = None
        all_bars = dict(bars)
        if msix is not None:
            self.msix = Msix(msix.vectors, msix.bar, self.config, self._deliver_msix)
            if msix.bar in all_bars:
                raise ValueError(f"BAR {msix.bar} holds the MSI-X table and can hold nothing else")
            all_bars[msix.bar] = Bar(self.msix.bar_size, self.msix.windows)
        self._regions = self._describe_regions(all_bars)
        self._irqs = self._describe_irqs()

    def _describe_regions(self, bars: Mapping[int, Bar]) -> tuple[Region, ...]:
        regions = [Region(index.name) for index in PciRegion]
        self._readers: list[ReadHandler] = [read_zeros] * len(PciRegion)
        self._writers: list[WriteHandler] = [ignore_write] * len(PciRegion)
        self._register_names: dict[int, RegisterName] = {PciRegion.CONFIG: self.config.register_name}
        taken: set[int] = set()
        for index, bar in bars.items():
            needs = {index, index + 1} if bar.is_64bit else {index}
            if taken & needs or not needs <= set(range(BAR_COUNT)):
                raise ValueError(f"BAR {index} does not fit: a 64-bit BAR takes two of the six")
            taken |= needs
            self.config.add_memory_bar(index, bar.size, is_64bit=bar.is_64bit, prefetchable=bar.prefetchable)
            windows = WindowMap(bar.size, bar.windows)
            self._readers[index], self._writers[index] = windows.read, windows.write
            self._register_names[index] = windows.register_name
            regions[index] = Region(PciRegion(index).name, bar.size, _READ_WRITE, bar.mmap_areas, bar.shared)
        self._readers[PciRegion.CONFIG] = self.config_read
        self._writers[PciRegion.CONFIG] = self.config_write
        regions[PciRegion.CONFIG] = Region(PciRegion.CONFIG.name, self.config.size, _READ_WRITE)
        return tuple(regions)

    def _describe_irqs(self) -> tuple[Irq, ...]:
        return (
            Irq(PciIrq.INTX.name, int(self._has_intx), maskable=self._has_intx, automasked=self._has_intx),
            Irq(PciIrq.MSI.name, self.msi.vectors if self.msi else 0),
            Irq(PciIrq.MSIX.name, self.msix.vectors if self.msix else 0),
            # Clients enable these two on every PCI device, and complain where they do not exist.
            Irq(PciIrq.ERR.name, 1),
            Irq(PciIrq.REQ.name, 1),
        )

    @property
    def regions(self) -> Sequence[Region]:
        """The nine regions of a VFIO PCI device."""
        return self._regions

    @property
    def irqs(self) -> Sequence[Irq]:
        """The five interrupts of a VFIO PCI device."""
        return self._irqs

    @property
    def host(self) -> Host:
        """The host; RuntimeError while none is connected."""
        if self._host is None:
            raise RuntimeError("no host is connected")
        return self._host

    def connect(self, host: Host) -> None:
        """Use ``host`` from now on."""
        self._host = host

    def disconnect(self) -> None:
        """Let go of the host."""
        self.function_disconnect()
        self._host = None

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Dispatch a read to the register under it."""
        return self._readers[index](offset, count)

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        """Dispatch a write to the register under it."""
        self._writers[index](offset, data)

    def register_name(self, index: int, offset: int) -> str | None:
        """The names that configuration space, its capabilities and the windows of the BARs have."""
        register_name = self._register_names.get(index)
        return None if register_name is None else register_name(offset)

    def reset(self) -> None:
        """Power-on state of configuration space, interrupts and the function itself."""
        self.config.reset()
        self.bus_master = False
        self._intx_level = False
        if self.msix is not None:
            self.msix.reset()
        self.function_reset()

    def config_read(self, offset: int, count: int) -> bytes:
        """Read configuration space; override to give a capability registers with side effects."""
        return self.config.read(offset, count)

    def config_write(self, offset: int, data: memoryview) -> None:
        """Write configuration space and act on the command register and MSI-X control."""
        self.config.write(offset, data)
        if offset < _COMMAND_END and offset + len(data) > ConfigRegister.COMMAND:
            self._command_written()
        if self.msix is not None:
            self.msix.config_written(offset, len(data))

    def raise_msix(self, vector: int) -> None:
        """Raise an MSI-X vector; nothing happens while MSI-X is off."""
        if self.msix is not None:
            self.msix.trigger(vector)

    def raise_msi(self, vector: int) -> None:
        """Raise an MSI vector; nothing happens while MSI is off."""
        if self.msi is not None:
            self.msi.trigger(vector)

    def set_intx(self, level: bool) -> None:
        """Drive INTA#: the status register shows the level, each call with True interrupts unless disabled.

        While MSI or MSI-X is on, the line is silent. The client masks the interrupt when it arrives, and unmasks it
        when its driver has dealt with it.
        """
        self._intx_level = level
        status = self.config.get(ConfigRegister.STATUS, 2) & ~Status.INTERRUPT
        self.config.put(ConfigRegister.STATUS, 2, status | (Status.INTERRUPT if level else 0))
        if level:
            self._deliver_intx()

    def bus_master_changed(self) -> None:
        """:attr:`bus_master` has changed: the function may, or must not, reach guest memory."""

    def function_reset(self) -> None:
        """Reset what the subclass adds."""

    def function_disconnect(self) -> None:
        """Let go of pins; :attr:`host` is still there."""

    def _command_written(self) -> None:
        command = self.config.get(ConfigRegister.COMMAND, 2)
        bus_master = bool(command & Command.BUS_MASTER)
        if self._intx_level:
            self._deliver_intx()
        if bus_master != self.bus_master:
            self.bus_master = bus_master
            self.bus_master_changed()

    def _deliver_intx(self) -> None:
        if not self._has_intx or self._host is None or self._interrupts_by_message:
            return
        if not self.config.get(ConfigRegister.COMMAND, 2) & Command.INTX_DISABLE:
            self._host.trigger(PciIrq.INTX, 0)

    @property
    def _interrupts_by_message(self) -> bool:
        return any(kind is not None and kind.enabled for kind in (self.msi, self.msix))

    def _deliver_msi(self, vector: int) -> None:
        if self._host is not None:
            self._host.trigger(PciIrq.MSI, vector)

    def _deliver_msix(self, vector: int) -> None:
        if self._host is not None:
            self._host.trigger(PciIrq.MSIX, vector)

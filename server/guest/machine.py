"""The guest's machine, as a QEMU command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from server.guest.accel import Accel
from server.guest.qemu import Qemu
from server.qemu.client import DeviceOptions, Option

DEFAULT_APPEND = "console=tty0 console=ttyS0 panic=-1 nokaslr"
"""The kernel's messages go to the virtual screen and to the first serial port; a panic ends QEMU."""

_IOMMU: DeviceOptions = {"driver": "intel-iommu", "caching-mode": True, "intremap": "off"}


def own_virtio_gpu(**options: Option) -> DeviceOptions:
    """Return QEMU's own virtio-gpu, which runs inside QEMU: what ours is compared with."""
    return {"driver": "virtio-gpu-pci", **options}


@dataclass(frozen=True, slots=True)
class Machine:
    """A q35 machine that boots ``kernel`` with ``initrd``.

    ``memory`` in MiB, backed by a memfd that is shared with device servers unless ``shared_memory`` is False.
    ``iommu`` puts an emulated Intel IOMMU in front of all devices. ``qmp`` is where QEMU listens for its
    control protocol. ``append`` is the kernel's command line. ``extra`` are further options of QEMU.
    """

    kernel: Path
    initrd: Path
    accel: Accel
    devices: tuple[DeviceOptions, ...] = ()
    memory: int = 512
    cpus: int = 1
    append: str = DEFAULT_APPEND
    shared_memory: bool = True
    iommu: bool = False
    qmp: Path | None = None
    extra: tuple[str, ...] = ()

    def command_line(self, qemu: Qemu, console: int, commands: int) -> list[str]:
        """Return the command that starts this machine under ``qemu``.

        ``console`` and ``commands`` are connected sockets that QEMU inherits: the first and the second serial
        port.
        """
        return [
            *qemu.argv,
            *("-machine", "q35,memory-backend=memory", "-accel", self.accel.accel, "-cpu", self.accel.cpu),
            *("-m", f"{self.memory}M", "-object", json.dumps(self._memory_backend())),
            *("-smp", str(self.cpus), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *_serial_port("console", console),
            *_serial_port("commands", commands),
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", self._append()),
            *(("-qmp", f"unix:{_escaped(self.qmp)},server=on,wait=off") if self.qmp else ()),
            *(part for device in self._all_devices() for part in ("-device", json.dumps(device))),
            *self.extra,
        ]

    def _memory_backend(self) -> dict[str, object]:
        common = {"id": "memory", "size": self.memory << 20}
        if self.shared_memory:
            return {"qom-type": "memory-backend-memfd", "share": True, **common}
        return {"qom-type": "memory-backend-ram", **common}

    def _all_devices(self) -> tuple[DeviceOptions, ...]:
        return (_IOMMU, *self.devices) if self.iommu else self.devices

    def _append(self) -> str:
        return f"{self.append} intel_iommu=on iommu.passthrough=0" if self.iommu else self.append


def _serial_port(name: str, descriptor: int) -> tuple[str, ...]:
    return ("-chardev", f"socket,id={name},fd={descriptor}", "-serial", f"chardev:{name}")


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")

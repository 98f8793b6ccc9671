"""Guests for tests: the parts are found once per run, an initramfs is built per kind of guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.guest.accel import Accel, choose_accel
from server.guest.initramfs import GuestImage
from server.guest.kernel import Kernel, find_kernel
from server.guest.machine import Machine
from server.guest.programs import GuestPrograms, find_programs
from server.guest.qemu import Qemu, find_qemu
from server.guest.run import Guest, booted
from server.qemu.client import DeviceOptions


@dataclass(frozen=True)
class GuestParts:
    """Everything that a guest is made of; ``folder`` is for images."""

    qemu: Qemu
    kernel: Kernel
    programs: GuestPrograms
    accel: Accel
    folder: Path
    _images: dict[tuple[object, ...], Path] = field(default_factory=dict)

    def image(
        self,
        load: tuple[str, ...] = ("virtio_pci", "virtio_gpu"),
        carry: tuple[str, ...] = (),
        boot: str = "",
        files: tuple[tuple[str, bytes], ...] = (),
    ) -> Path:
        """Return an initramfs, built at the first call with these arguments."""
        key = (load, carry, boot, files)
        if key not in self._images:
            content = GuestImage(self.kernel, self.programs, load, carry, boot, files=dict(files))
            self._images[key] = content.write(self.folder / f"initramfs-{len(self._images)}")
        return self._images[key]

    def machine(self, *devices: DeviceOptions, initrd: Path | None = None, **options: Any) -> Machine:
        """Return a machine with ``devices``; ``options`` are fields of :class:`Machine`."""
        return Machine(self.kernel.image, initrd or self.image(), self.accel, devices, **options)

    @asynccontextmanager
    async def boot(
        self, *devices: DeviceOptions, initrd: Path | None = None, **options: Any
    ) -> AsyncIterator[Guest]:
        """Boot a guest with ``devices`` and give it once it takes commands; it is gone after the block."""
        async with booted(self.qemu, self.machine(*devices, initrd=initrd, **options)) as guest:
            yield guest


def find_parts(folder: Path) -> GuestParts:
    """Find or download what guests are made of; ``folder`` takes the images."""
    qemu, kernel = find_qemu(), find_kernel()
    return GuestParts(qemu, kernel, find_programs(), choose_accel(qemu, kernel), folder)

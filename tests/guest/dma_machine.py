"""A machine in which this project's own code runs: the root file system of the tests' machine, shared read-only."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.guest.run import Guest
from server.qemu.client import DeviceOptions
from tests.guest.support import GuestParts

PROJECT = Path(__file__).parents[2]
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "vfio_pci", "vfio_iommu_type1")
SECONDS = 900.0

_EDU: DeviceOptions = {"driver": "edu", "dma_mask": 0xFFFFFFFF}
_SHARE = ("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap")
_SHARED: DeviceOptions = {"driver": "virtio-9p-pci", "fsdev": "root", "mount_tag": "root"}

_BOOT = """
mkdir /shared /dev/shm
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /shared
mount -t tmpfs tmpfs /dev/shm
for folder in proc sys dev; do mount -o bind /$folder /shared/$folder; done
mount -o bind /dev/shm /shared/dev/shm
"""
_BIND = """
echo Y >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
for device in /sys/bus/pci/devices/*; do
    [ "$(cat $device/vendor)$(cat $device/device)" = 0x12340x11e8 ] || continue
    echo vfio-pci >$device/driver_override
    echo ${device##*/} >/sys/bus/pci/drivers_probe
done
"""


@asynccontextmanager
async def dma_machine(parts: GuestParts, *, iommu: bool) -> AsyncIterator[Guest]:
    """A machine with an edu device, with an emulated Intel IOMMU in front of it, or without any."""
    initrd = parts.image(load=MODULES, boot=_BOOT + _BIND if iommu else _BOOT)
    async with parts.boot(_EDU, _SHARED, initrd=initrd, iommu=iommu, memory=1024, extra=_SHARE) as guest:
        yield guest


async def run_python(guest: Guest, *arguments: str) -> str:
    """Run this interpreter with ``arguments`` in the guest, in the project's folder; returns what it printed."""
    command = shlex.join([sys.executable, *arguments])
    inside = f"cd {shlex.quote(str(PROJECT))} && TMPDIR=/dev/shm HOME=/dev/shm PYTHONDONTWRITEBYTECODE=1 exec {command}"
    return await guest.check(f"LD_LIBRARY_PATH= chroot /shared /bin/sh -c {shlex.quote(inside)}", SECONDS)


def last_json(output: str) -> dict[str, str]:
    """The object on the last line of an output."""
    result: dict[str, str] = json.loads(output.splitlines()[-1])
    return result

"""Keeping QEMU from migrating a guest without the state of its GPU.

QEMU's vfio-user client sends no state of its device, and does not block migration either. Nothing on QEMU's command
line forbids migration as such, but some of what can be there does: an open disk image in the VDI format, for one
(``vdi_open`` in ``block/vdi.c``). So QEMU gets an empty read-only image that no device uses. That is a migration
blocker like any other: ``query-migrate`` reports it, ``migrate``, ``savevm`` and ``snapshot-save`` are refused, and the
reason that they give names the image's node. Whoever has unplugged the GPU lifts it with ``blockdev-del``.
"""

from __future__ import annotations

from pathlib import Path

NODE = "vgpud-gpu-cannot-migrate"
"""The name of the image in QEMU, which is what a refused migration shows."""
IMAGE = Path(__file__).with_name("migration-guard.vdi")
"""The image: a VDI header of 512 bytes, whose disk has no block."""
DRIVER = "vdi"
"""QEMU's name for its format."""


def guard_node() -> dict[str, object]:
    """The image as QEMU's ``-blockdev`` and ``blockdev-add`` take it."""
    image = {"driver": "file", "filename": str(IMAGE)}
    return {"driver": DRIVER, "node-name": NODE, "read-only": True, "file": image}

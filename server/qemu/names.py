"""What vgpud calls things in QEMU."""

from __future__ import annotations

GPU_ID = "vgpud"
"""GPUs are called vgpud0, vgpud1 and so on, those of vgpud run as those of vgpud attach."""

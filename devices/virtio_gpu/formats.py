"""The pixel formats of a virtio GPU: all have 32 bits per pixel (virtio 1.3, 5.7.6.8, enum virtio_gpu_formats)."""

from __future__ import annotations

from enum import IntEnum

from devices.display import PixelLayout

BYTES_PER_PIXEL = 4


class Format(IntEnum):
    """Formats by their number on the wire; components are named in the order of their bytes in memory."""

    B8G8R8A8_UNORM = 1
    B8G8R8X8_UNORM = 2
    A8R8G8B8_UNORM = 3
    X8R8G8B8_UNORM = 4
    R8G8B8A8_UNORM = 67
    X8B8G8R8_UNORM = 68
    A8B8G8R8_UNORM = 121
    R8G8B8X8_UNORM = 134


LAYOUTS: dict[int, PixelLayout] = {
    Format.B8G8R8A8_UNORM: PixelLayout.BGRA,
    Format.B8G8R8X8_UNORM: PixelLayout.BGRX,
    Format.A8R8G8B8_UNORM: PixelLayout.ARGB,
    Format.X8R8G8B8_UNORM: PixelLayout.XRGB,
    Format.R8G8B8A8_UNORM: PixelLayout.RGBA,
    Format.X8B8G8R8_UNORM: PixelLayout.XBGR,
    Format.A8B8G8R8_UNORM: PixelLayout.ABGR,
    Format.R8G8B8X8_UNORM: PixelLayout.RGBX,
}
"""Byte order by format number; what is not here is not a format."""

DRM_NAMES: dict[int, str] = {
    Format.B8G8R8A8_UNORM: "ARGB8888",
    Format.B8G8R8X8_UNORM: "XRGB8888",
    Format.A8R8G8B8_UNORM: "BGRA8888",
    Format.X8R8G8B8_UNORM: "BGRX8888",
    Format.R8G8B8A8_UNORM: "ABGR8888",
    Format.X8B8G8R8_UNORM: "RGBX8888",
    Format.A8B8G8R8_UNORM: "RGBA8888",
    Format.R8G8B8X8_UNORM: "XBGR8888",
}
"""DRM fourcc names, which read a pixel as one little-endian word, highest byte first (drm_fourcc.h)."""

OPAQUE: dict[PixelLayout, PixelLayout] = {
    PixelLayout.BGRA: PixelLayout.BGRX,
    PixelLayout.ARGB: PixelLayout.XRGB,
    PixelLayout.RGBA: PixelLayout.RGBX,
    PixelLayout.ABGR: PixelLayout.XBGR,
    **{layout: layout for layout in PixelLayout if "X" in layout.value},
}
"""The layout without alpha: behind what a scanout shows there is nothing that could shine through."""

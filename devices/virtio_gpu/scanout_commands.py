"""Commands that put resources on screens (virtio 1.3, 5.7.6.8)."""

from __future__ import annotations

from devices.edid.edid import edid
from devices.virtio.device import DescriptorChain
from devices.virtio_gpu.control import Reply, Table, entry
from devices.virtio_gpu.errors import CommandError
from devices.virtio_gpu.formats import BYTES_PER_PIXEL, LAYOUTS
from devices.virtio_gpu.options import MAX_SIDE
from devices.virtio_gpu.protocol import (
    DISPLAY_ONE,
    EDID_RESPONSE,
    FLUSH,
    GET_CAPSET,
    HEADER_SIZE,
    MAX_SCANOUTS,
    RESOURCE_ID,
    SET_SCANOUT,
    SET_SCANOUT_BLOB,
    Command,
    Feature,
    Response,
)
from devices.virtio_gpu.resources import Resource2D, ResourceTable
from devices.virtio_gpu.scanout import Framebuffer, Rect, Scanout


class ScanoutCommands:
    """Handlers of the commands on scanouts, and of the questions about them."""

    def __init__(self, resources: ResourceTable, scanouts: list[Scanout]) -> None:
        self._resources = resources
        self._scanouts = scanouts

    def table(self) -> Table:
        """The commands, for the control queue."""
        return (
            entry(Command.GET_DISPLAY_INFO, None, self.get_display_info)
            | entry(Command.GET_EDID, RESOURCE_ID, self.get_edid, Feature.EDID)
            | entry(Command.SET_SCANOUT, SET_SCANOUT, self.set_scanout)
            | entry(Command.SET_SCANOUT_BLOB, SET_SCANOUT_BLOB, self.set_scanout_blob, Feature.RESOURCE_BLOB)
            | entry(Command.RESOURCE_FLUSH, FLUSH, self.flush)
            | entry(Command.GET_CAPSET_INFO, GET_CAPSET, self.no_capset)
            | entry(Command.GET_CAPSET, GET_CAPSET, self.no_capset)
        )

    async def get_display_info(self, _request: bytes, _chain: DescriptorChain) -> Reply:
        """The preferred modes, screens side by side from the left."""
        modes = bytearray()
        left = 0
        for scanout in self._scanouts:
            if not scanout.connected:
                modes += bytes(DISPLAY_ONE.size)
                continue
            modes += DISPLAY_ONE.pack(left, 0, scanout.width, scanout.height, True, 0)
            left += scanout.width
        return Response.OK_DISPLAY_INFO, bytes(modes.ljust(MAX_SCANOUTS * DISPLAY_ONE.size, b"\0"))

    async def get_edid(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """The EDID of a screen."""
        (index,) = RESOURCE_ID.unpack_from(request, HEADER_SIZE)
        scanout = self._scanout(index)
        data = edid(scanout.width, scanout.height, index)
        return Response.OK_EDID, EDID_RESPONSE.pack(len(data), data)

    async def no_capset(self, _request: bytes, _chain: DescriptorChain) -> Reply:
        """Every index is beyond the number of capability sets, which is 0."""
        raise CommandError(Response.ERR_INVALID_PARAMETER)

    async def set_scanout(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Show a rectangle of an image, or nothing for resource 0."""
        *sides, index, resource_id = SET_SCANOUT.unpack_from(request, HEADER_SIZE)
        scanout = self._scanout(index)
        if resource_id == 0:
            scanout.show(None)
            return None
        resource = self._resources.get_2d(resource_id)
        rect = _checked_rect(sides, resource.width, resource.height)
        offset = rect.y * resource.stride + rect.x * BYTES_PER_PIXEL
        self._flip(scanout, Framebuffer(resource, rect, offset, resource.stride, resource.layout))
        return None

    async def set_scanout_blob(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Show a rectangle of a blob, or nothing for resource 0. Formats have one plane; the others are ignored."""
        values = SET_SCANOUT_BLOB.unpack_from(request, HEADER_SIZE)
        index, resource_id, width, height, pixel_format = values[4:9]
        stride, plane_offset = values[9], values[13]
        scanout = self._scanout(index)
        if resource_id == 0:
            scanout.show(None)
            return None
        blob = self._resources.get_blob(resource_id)
        blob.require_backing()
        rect = _checked_rect(values[:4], width, height)
        layout = LAYOUTS.get(pixel_format)
        row = width * BYTES_PER_PIXEL
        if layout is None or stride < row or not (width <= MAX_SIDE and height <= MAX_SIDE):
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        if plane_offset + (height - 1) * stride + row > blob.size:
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        offset = plane_offset + rect.y * stride + rect.x * BYTES_PER_PIXEL
        self._flip(scanout, Framebuffer(blob, rect, offset, stride, layout))
        return None

    async def flush(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Count it: what a scanout shows is read when somebody looks. A blob has no sides to check."""
        x, y, width, height, resource_id = FLUSH.unpack_from(request, HEADER_SIZE)
        resource = self._resources.get(resource_id)
        if isinstance(resource, Resource2D) and (x + width > resource.width or y + height > resource.height):
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        for index in resource.scanouts:
            scanout = self._scanouts[index]
            scanout.flushes += 1
            if scanout.framebuffer is not None:
                scanout.framebuffer.observe()
        return None

    @staticmethod
    def _flip(scanout: Scanout, framebuffer: Framebuffer) -> None:
        scanout.flips += 1
        scanout.show(framebuffer)

    def _scanout(self, index: int) -> Scanout:
        if index >= len(self._scanouts):
            raise CommandError(Response.ERR_INVALID_SCANOUT_ID)
        return self._scanouts[index]


def _checked_rect(sides: list[int] | tuple[int, ...], width: int, height: int) -> Rect:
    rect = Rect(*sides)
    if not rect.width or not rect.height or not rect.inside(width, height):
        raise CommandError(Response.ERR_INVALID_PARAMETER)
    return rect

"""Commands of the cursor queue (virtio 1.3, 5.7.6.10)."""

from __future__ import annotations

from devices.display import PixelBuffer, PixelLayout
from devices.virtio.device import DescriptorChain
from devices.virtio_gpu.control import Reply, Table, entry
from devices.virtio_gpu.errors import CommandError
from devices.virtio_gpu.formats import BYTES_PER_PIXEL
from devices.virtio_gpu.protocol import CURSOR_SIDE, HEADER_SIZE, UPDATE_CURSOR, Command, Response
from devices.virtio_gpu.resources import BlobResource, Resource, Resource2D, ResourceTable
from devices.virtio_gpu.scanout import Scanout

_STRIDE = CURSOR_SIDE * BYTES_PER_PIXEL
_IMAGE_SIZE = _STRIDE * CURSOR_SIDE


class CursorCommands:
    """Handlers of the cursor queue."""

    def __init__(self, resources: ResourceTable, scanouts: list[Scanout]) -> None:
        self._resources = resources
        self._scanouts = scanouts

    def table(self) -> Table:
        """All commands of the queue."""
        return entry(Command.UPDATE_CURSOR, UPDATE_CURSOR, self.update) | entry(
            Command.MOVE_CURSOR, UPDATE_CURSOR, self.move
        )

    async def update(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Take the image of the cursor from a resource as it is now (0 hides it), and move it."""
        index, x, y, resource_id, hot_x, hot_y = UPDATE_CURSOR.unpack_from(request, HEADER_SIZE)
        scanout = self._scanout(index)
        epoch = self._resources.epoch
        image = await self._image(self._resources.get(resource_id)) if resource_id else None
        if epoch != self._resources.epoch:
            raise CommandError(Response.ERR_UNSPEC)
        cursor = scanout.cursor
        cursor.image, cursor.hot_x, cursor.hot_y = image, hot_x, hot_y
        cursor.x, cursor.y = x, y
        return None

    async def move(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Move the cursor; all but the position is ignored."""
        index, x, y, _resource_id, _hot_x, _hot_y = UPDATE_CURSOR.unpack_from(request, HEADER_SIZE)
        cursor = self._scanout(index).cursor
        cursor.x, cursor.y = x, y
        return None

    def _scanout(self, index: int) -> Scanout:
        if index >= len(self._scanouts):
            raise CommandError(Response.ERR_INVALID_SCANOUT_ID)
        return self._scanouts[index]

    async def _image(self, resource: Resource) -> PixelBuffer:
        """A copy of a 64 by 64 image. A blob, which has no format, is what DRM calls ARGB8888."""
        layout = PixelLayout.BGRA
        if isinstance(resource, Resource2D):
            if (resource.width, resource.height) != (CURSOR_SIDE, CURSOR_SIDE):
                raise CommandError(Response.ERR_INVALID_PARAMETER)
            layout, pixels = resource.layout, bytes(resource.pixels)
        else:
            pixels = await self._blob_pixels(resource)
        return PixelBuffer(CURSOR_SIDE, CURSOR_SIDE, _STRIDE, layout, pixels)

    @staticmethod
    async def _blob_pixels(resource: Resource) -> bytes:
        backing = resource.require_backing()
        if not isinstance(resource, BlobResource) or resource.size < _IMAGE_SIZE:
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        pixels = bytearray(_IMAGE_SIZE)
        await backing.copy_rows(0, _STRIDE, memoryview(pixels), _STRIDE, _STRIDE, CURSOR_SIDE)
        return bytes(pixels)

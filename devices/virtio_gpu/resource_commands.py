"""Commands that make resources, give them memory, and fill them (virtio 1.3, 5.7.6.8)."""

from __future__ import annotations

from devices.virtio.device import DescriptorChain
from devices.virtio_gpu.control import Reply, Table, entry, read_entries
from devices.virtio_gpu.errors import CommandError
from devices.virtio_gpu.formats import BYTES_PER_PIXEL, LAYOUTS
from devices.virtio_gpu.options import MAX_SIDE
from devices.virtio_gpu.protocol import (
    ATTACH_BACKING,
    CREATE_2D,
    CREATE_BLOB,
    HEADER_SIZE,
    RESOURCE_ID,
    TRANSFER_2D,
    BlobFlag,
    BlobMem,
    Command,
    Feature,
    Response,
)
from devices.virtio_gpu.resources import Resource2D, ResourceTable
from devices.virtio_gpu.scanout import Scanout

_ALL_BLOB_FLAGS = int(BlobFlag.USE_MAPPABLE | BlobFlag.USE_SHAREABLE | BlobFlag.USE_CROSS_DEVICE)


class ResourceCommands:
    """Handlers of the commands on resources."""

    def __init__(self, resources: ResourceTable, scanouts: list[Scanout]) -> None:
        self._resources = resources
        self._scanouts = scanouts
        self.bytes_transferred = 0

    def table(self) -> Table:
        """The commands, for the control queue."""
        return (
            entry(Command.RESOURCE_CREATE_2D, CREATE_2D, self.create_2d)
            | entry(Command.RESOURCE_UNREF, RESOURCE_ID, self.unref)
            | entry(Command.TRANSFER_TO_HOST_2D, TRANSFER_2D, self.transfer_to_host_2d)
            | entry(Command.RESOURCE_ATTACH_BACKING, ATTACH_BACKING, self.attach_backing)
            | entry(Command.RESOURCE_DETACH_BACKING, RESOURCE_ID, self.detach_backing)
            | entry(Command.RESOURCE_ASSIGN_UUID, RESOURCE_ID, self.assign_uuid, Feature.RESOURCE_UUID)
            | entry(Command.RESOURCE_CREATE_BLOB, CREATE_BLOB, self.create_blob, Feature.RESOURCE_BLOB)
        )

    async def create_2d(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Make an image; sides are 1 to 16384 pixels."""
        resource_id, pixel_format, width, height = CREATE_2D.unpack_from(request, HEADER_SIZE)
        layout = LAYOUTS.get(pixel_format)
        if layout is None or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        self._resources.create_2d(resource_id, width, height, layout)
        return None

    async def create_blob(self, request: bytes, chain: DescriptorChain) -> Reply:
        """Make a blob of guest memory, the only kind there is without 3D."""
        resource_id, blob_mem, flags, count, _blob_id, size = CREATE_BLOB.unpack_from(request, HEADER_SIZE)
        if blob_mem != BlobMem.GUEST or flags & ~_ALL_BLOB_FLAGS or size == 0:
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        ranges = await read_entries(chain, HEADER_SIZE + CREATE_BLOB.size, count, self._resources)
        if count and not ranges:
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        self._resources.create_blob(resource_id, size, ranges)
        return None

    async def unref(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Free a resource; scanouts that show it go blank."""
        (resource_id,) = RESOURCE_ID.unpack_from(request, HEADER_SIZE)
        resource = self._resources.get(resource_id)
        for index in list(resource.scanouts):
            self._scanouts[index].show(None)
        self._resources.remove(resource)
        return None

    async def attach_backing(self, request: bytes, chain: DescriptorChain) -> Reply:
        """Pin the guest's pages behind a resource."""
        resource_id, count = ATTACH_BACKING.unpack_from(request, HEADER_SIZE)
        ranges = await read_entries(chain, HEADER_SIZE + ATTACH_BACKING.size, count, self._resources)
        self._resources.attach(self._resources.get(resource_id), ranges)
        return None

    async def detach_backing(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Release the guest's pages."""
        (resource_id,) = RESOURCE_ID.unpack_from(request, HEADER_SIZE)
        self._resources.detach(self._resources.get(resource_id))
        return None

    async def assign_uuid(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Name a resource for other devices."""
        (resource_id,) = RESOURCE_ID.unpack_from(request, HEADER_SIZE)
        name = self._resources.assign_uuid(self._resources.get(resource_id))
        return Response.OK_RESOURCE_UUID, name.bytes

    async def transfer_to_host_2d(self, request: bytes, _chain: DescriptorChain) -> Reply:
        """Copy a rectangle from the backing, where rows are as far apart as in the image.

        For a blob there is nothing to copy, and Linux asks for it all the same.
        """
        x, y, width, height, offset, resource_id = TRANSFER_2D.unpack_from(request, HEADER_SIZE)
        resource = self._resources.get(resource_id)
        backing = resource.require_backing()
        if not isinstance(resource, Resource2D):
            return None
        stride = resource.stride
        if x + width > resource.width or y + height > resource.height:
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        if not width or not height:
            return None
        row = width * BYTES_PER_PIXEL
        if offset + (height - 1) * stride + row > backing.length:
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        start = y * stride + x * BYTES_PER_PIXEL
        await backing.copy_rows(offset, stride, resource.pixels[start:], stride, row, height, start)
        self.bytes_transferred += row * height
        return None

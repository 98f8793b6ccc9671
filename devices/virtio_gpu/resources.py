"""The resources that a guest has made, and what they cost the host (virtio 1.3, 5.7.6.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from uuid import UUID, uuid4, uuid5

from devices.contract import GuestMemory, GuestRange
from devices.display import PixelLayout
from devices.virtio_gpu.backing import Backing
from devices.virtio_gpu.errors import CommandError
from devices.virtio_gpu.formats import BYTES_PER_PIXEL
from devices.virtio_gpu.protocol import Response

MAX_RESOURCES = 16384
MAX_ENTRIES = 65536
"""Backing entries of one resource: single pages for 256 MiB."""
MAX_TOTAL_ENTRIES = 4 * MAX_ENTRIES


class Resource:
    """What all resources have: an id, perhaps a backing, and the scanouts that show it."""

    __slots__ = ("backing", "resource_id", "scanouts", "uuid")

    def __init__(self, resource_id: int) -> None:
        self.resource_id = resource_id
        self.backing: Backing | None = None
        self.scanouts: set[int] = set()
        self.uuid: UUID | None = None

    @property
    def needed(self) -> int:
        """Bytes that a backing must have at least."""
        return 0

    def require_backing(self) -> Backing:
        """The backing. Raises :class:`CommandError` where there is none."""
        if self.backing is None:
            raise CommandError(Response.ERR_UNSPEC)
        return self.backing


class Resource2D(Resource):
    """An image in host memory, filled by transfers from its backing; ``pixels`` are writable, row after row."""

    __slots__ = ("height", "layout", "pixels", "stride", "width")

    def __init__(self, resource_id: int, width: int, height: int, layout: PixelLayout) -> None:
        super().__init__(resource_id)
        self.width = width
        self.height = height
        self.layout = layout
        self.stride = width * BYTES_PER_PIXEL
        # Zeros that take no memory until they are written, which a bytearray's do.
        self.pixels = BytesIO(bytes(self.stride * height)).getbuffer()


class BlobResource(Resource):
    """``size`` bytes of guest memory, without a format."""

    __slots__ = ("size",)

    def __init__(self, resource_id: int, size: int) -> None:
        super().__init__(resource_id)
        self.size = size

    @property
    def needed(self) -> int:
        """The whole blob is in the backing."""
        return self.size


class ResourceTable:
    """Resources by id, within bounds on host memory, their number, and the number of backing entries.

    All methods raise :class:`CommandError` with the response that the specification has for the mistake.
    """

    def __init__(self, max_hostmem: int, identity: str, memory: Callable[[], GuestMemory]) -> None:
        self.max_hostmem = max_hostmem
        self.hostmem = 0
        self.entries = 0
        self.epoch = 0
        """Counts resets: work that waited for guest memory over one must not touch what came after."""
        self._memory = memory
        self._namespace = uuid5(UUID(int=0), identity) if identity else uuid4()
        self._by_id: dict[int, Resource] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_id.values())

    @property
    def pages_pinned(self) -> int:
        """Pages of all backings that are pinned now."""
        return sum(
            resource.backing.pages for resource in self if resource.backing and resource.backing.pinned
        )

    def get(self, resource_id: int) -> Resource:
        """The resource with this id."""
        resource = self._by_id.get(resource_id)
        if resource is None:
            raise CommandError(Response.ERR_INVALID_RESOURCE_ID)
        return resource

    def get_2d(self, resource_id: int) -> Resource2D:
        """The resource with this id, which must be an image."""
        resource = self.get(resource_id)
        if not isinstance(resource, Resource2D):
            raise CommandError(Response.ERR_INVALID_RESOURCE_ID)
        return resource

    def get_blob(self, resource_id: int) -> BlobResource:
        """The resource with this id, which must be a blob."""
        resource = self.get(resource_id)
        if not isinstance(resource, BlobResource):
            raise CommandError(Response.ERR_INVALID_RESOURCE_ID)
        return resource

    def create_2d(self, resource_id: int, width: int, height: int, layout: PixelLayout) -> None:
        """Make an image of zeros; memory that is never written costs the host nothing."""
        self._check_new(resource_id)
        size = width * height * BYTES_PER_PIXEL
        if self.hostmem + size > self.max_hostmem:
            raise CommandError(Response.ERR_OUT_OF_MEMORY)
        try:
            resource = Resource2D(resource_id, width, height, layout)
        except MemoryError:
            raise CommandError(Response.ERR_OUT_OF_MEMORY) from None
        self._by_id[resource_id] = resource
        self.hostmem += size
        self._made += 1

    def create_blob(self, resource_id: int, size: int, ranges: list[GuestRange]) -> None:
        """Make a blob of ``size`` bytes; without ``ranges`` it waits for a backing."""
        self._check_new(resource_id)
        blob = BlobResource(resource_id, size)
        if ranges:
            self.attach(blob, ranges)
        self._by_id[resource_id] = blob
        self._made += 1

    def attach(self, resource: Resource, ranges: list[GuestRange]) -> None:
        """Pin ``ranges`` as the backing; raises :class:`devices.contract.GuestMemoryError` where they cannot be."""
        if resource.backing is not None:
            raise CommandError(Response.ERR_UNSPEC)
        if sum(length for _, length in ranges) < max(resource.needed, 1):
            raise CommandError(Response.ERR_INVALID_PARAMETER)
        if self.entries + len(ranges) > MAX_TOTAL_ENTRIES:
            raise CommandError(Response.ERR_OUT_OF_MEMORY)
        resource.backing = Backing(ranges, self._memory)
        self.entries += len(ranges)

    def detach(self, resource: Resource) -> None:
        """Release the backing."""
        backing = resource.require_backing()
        resource.backing = None
        self.entries -= len(backing.ranges)
        backing.release()

    def remove(self, resource: Resource) -> None:
        """Free a resource, which nothing shows any more."""
        if resource.backing is not None:
            self.detach(resource)
        if isinstance(resource, Resource2D):
            self.hostmem -= len(resource.pixels)
        del self._by_id[resource.resource_id]

    def assign_uuid(self, resource: Resource) -> UUID:
        """The UUID of a resource, the same each time; no other resource has or had it."""
        if resource.uuid is None:
            resource.uuid = uuid5(self._namespace, f"{self.epoch}.{self._made}.{resource.resource_id}")
        return resource.uuid

    def release_pins(self) -> None:
        """Release all pages, and keep everything else: they are pinned again when they are needed."""
        for resource in self:
            if resource.backing is not None:
                resource.backing.release()

    def clear(self) -> None:
        """Free all resources."""
        for resource in list(self):
            self.remove(resource)
        self.epoch += 1

    def _check_new(self, resource_id: int) -> None:
        if resource_id == 0 or resource_id in self._by_id:
            raise CommandError(Response.ERR_INVALID_RESOURCE_ID)
        if len(self._by_id) >= MAX_RESOURCES:
            raise CommandError(Response.ERR_OUT_OF_MEMORY)

"""What a device offers, and what it may ask of its host.

A device is a set of regions and interrupts, as VFIO sees a device: the host forwards region accesses, and the
device answers at once (register handlers are synchronous, because a transport may call them from inside C).
Anything that needs guest memory is *deferred work*: an ``async`` function handed to :meth:`Host.defer`, that may
await nothing but :class:`GuestMemory` and :func:`devices.work.pause`. With memory that the client shared it runs
through without suspending; without, it suspends until the client has answered a message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple, Protocol, Self

from devices.display import Display
from devices.work import Work

__all__ = [
    "Device",
    "DmaSegment",
    "GuestMemory",
    "GuestMemoryError",
    "GuestRange",
    "Host",
    "Irq",
    "Log",
    "Look",
    "MmapArea",
    "OnUnmap",
    "PinnedPages",
    "Prot",
    "Region",
    "RegionAccess",
    "RegionPart",
    "SharedMemory",
    "Work",
]


class Prot(IntFlag):
    """Access to guest memory; the bits of VFIO_DMA_MAP_FLAG_READ and _WRITE."""

    READ = 1
    WRITE = 2


class RegionAccess(IntFlag):
    """What a client may do with a region through messages."""

    NONE = 0
    READ = 1
    WRITE = 2


class GuestRange(NamedTuple):
    """``length`` bytes of guest memory at guest physical (or IO virtual) address ``address``."""

    address: int
    length: int


class DmaSegment(NamedTuple):
    """``length`` bytes at consecutive bus addresses from ``dma_addr``."""

    dma_addr: int
    length: int


class GuestMemoryError(OSError):
    """Guest memory could not be reached; ``errno`` says why.

    EINVAL: not mapped by the client. EPERM: mapped without the access asked for. ENOMEM: over the limit of locked
    pages. EOVERFLOW: the range wraps. EFAULT: not shared, so it cannot be pinned. ENODEV: the client is gone.
    """


class Look(NamedTuple):
    """A part of pinned memory in place, in order.

    Where the host knows whether the guest has changed that part, ``version`` is a number that changes with it: the
    same number for the same part means the same bytes, and from one number to the next only those bytes of the part
    have changed that ``changes`` (offset and length each) says. None where the host does not know.
    """

    views: Sequence[memoryview]
    version: int | None = None
    changes: Sequence[tuple[int, int]] = ()


class PinnedPages(Protocol):
    """A pinned scatter list. Its memory stays mapped until :meth:`release` or until the client unmaps it.

    A ``with`` block releases it at its end.
    """

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *exc_info: object) -> None:
        """Release it."""

    @property
    def length(self) -> int:
        """Bytes in all ranges together."""

    @property
    def segments(self) -> Sequence[DmaSegment]:
        """The DMA segments of the ranges in order, neighbours coalesced."""

    @property
    def revoked(self) -> bool:
        """True once the client has unmapped any of the pages, or the holder has released them."""

    def dma_addr(self, address: int) -> int:
        """The dma_addr of a guest address in one of the pinned pages; the same as long as they are pinned.

        Raises :class:`GuestMemoryError` (EINVAL) for other addresses and once revoked.
        """

    def dma_addrs(self, addresses: Sequence[int]) -> Sequence[int]:
        """The dma_addrs of many guest addresses at once; errors as for :meth:`dma_addr`."""

    def views(self) -> Sequence[memoryview]:
        """The memory in order, as few pieces as possible: one piece where the ranges meet on page borders.

        A view is good until the next time that the device awaits or returns to its host; do not keep it.
        Read-only unless pinned with :attr:`Prot.WRITE`. Raises :class:`GuestMemoryError` once revoked, and where the
        client is taking the memory away and the host has no view of its own.
        """

    def look(self, offset: int, length: int) -> Look:
        """``length`` bytes from ``offset``, all of which are pinned; as for :meth:`views`.

        Who needs a part of the memory asks for that part: a host that records a session records what was asked for.
        """

    def release(self) -> None:
        """Drop one reference per page. Calling it again does nothing."""


OnUnmap = Callable[[PinnedPages], bool | None]
"""Told that the client takes some of the pinned memory away. Let go there and then: what is not released when this
returns is revoked. A device whose engine cannot stop at once returns True, and releases the pages as soon as it has
stopped: the client waits for that, but no longer than about 2 s, then they are revoked. There is no time to ask for
where the client is gone or the device was reset."""


class GuestMemory(Protocol):
    """Guest memory as the device addresses it: guest physical, or IO virtual behind a vIOMMU."""

    @property
    def observed(self) -> bool:
        """Whether the host records what the device reads and writes.

        Then what the guest may change while the device uses it (rings) is to be accessed by :meth:`read` and
        :meth:`write`, each access at its time; :meth:`view` gives None, and nothing can be pinned for writing (EFAULT).
        """

    def read(self, address: int, length: int) -> Awaitable[bytes]:
        """Copy ``length`` bytes out of the guest. Raises :class:`GuestMemoryError`."""

    def write(self, address: int, data: bytes | memoryview) -> Awaitable[None]:
        """Copy ``data`` into the guest. Raises :class:`GuestMemoryError`."""

    def view(self, address: int, length: int, prot: Prot) -> memoryview | None:
        """Shared guest memory in place, or None where it is not one piece of one shared mapping.

        Good until the next time that the device awaits or returns to its host. Raises :class:`GuestMemoryError`
        where the range is not mapped, or not for ``prot``.
        """

    def pin_pages(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap) -> PinnedPages:
        """Pin every page of ``ranges``, all or nothing. Raises :class:`GuestMemoryError`."""


class Log(Protocol):
    """A bound structured logger: one event name, and what identifies it."""

    def debug(self, event: str, **fields: object) -> object:
        """Say what only a developer cares about."""

    def info(self, event: str, **fields: object) -> object:
        """Say what an operator cares about."""

    def warning(self, event: str, **fields: object) -> object:
        """Say what an operator should look at."""


class Host(Protocol):
    """What a device may ask of whatever hosts it."""

    @property
    def memory(self) -> GuestMemory:
        """The memory of the client that is attached now; empty while none is."""

    @property
    def log(self) -> Log:
        """Where the device reports what happened to it."""

    def trigger(self, index: int, vector: int) -> None:
        """Raise interrupt ``vector`` of VFIO IRQ index ``index``; does nothing where the client set up none."""

    def defer(self, work: Work) -> None:
        """Run ``work`` after the access at hand has been answered, after all work deferred before it."""

    def clock(self) -> int:
        """Monotonic time in nanoseconds."""


@dataclass(frozen=True, slots=True)
class MmapArea:
    """A page-aligned part of a region that clients may map: ``length`` bytes at ``offset`` in the region."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RegionPart:
    """``length`` bytes at ``offset`` of the region ``index``."""

    index: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """What backs the mappable areas of a region: the region's byte 0 is at ``offset`` in the file ``fd``."""

    fd: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Region:
    """A VFIO region: a BAR, the configuration space, or nothing where ``size`` is 0."""

    name: str
    size: int = 0
    access: RegionAccess = RegionAccess.NONE
    mmap_areas: tuple[MmapArea, ...] = ()
    shared: SharedMemory | None = None


@dataclass(frozen=True, slots=True)
class Irq:
    """A VFIO interrupt index with ``count`` vectors."""

    name: str
    count: int = 0
    maskable: bool = False
    automasked: bool = False
    noresize: bool = False


class Device(ABC):
    """A device model, hosted by a transport, a test or a replayer.

    The host checks every access against :attr:`regions` (index, bounds, direction, size at most the negotiated
    maximum) before the device sees it; the device decides what access widths mean.
    """

    name: str
    """The model's name on the command line and in logs."""

    @property
    @abstractmethod
    def regions(self) -> Sequence[Region]:
        """The regions, by VFIO region index. Does not change."""

    @property
    @abstractmethod
    def irqs(self) -> Sequence[Irq]:
        """The interrupts, by VFIO IRQ index. Does not change."""

    @abstractmethod
    def connect(self, host: Host) -> None:
        """A client is attached: use ``host`` until :meth:`disconnect`."""

    @abstractmethod
    def disconnect(self) -> None:
        """The client is gone: let go of pins; keep the device's state (vfio-user, Client Disconnection)."""

    @abstractmethod
    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """Read ``count`` bytes; exactly as many are returned."""

    @abstractmethod
    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        """Write ``data``, which is good during the call only."""

    @abstractmethod
    def reset(self) -> None:
        """Return to the power-on state: pins released, queues stopped, no interrupt pending."""

    def close(self) -> None:
        """Give back what the device itself holds of the operating system; by whoever made it, at the very end.

        No client is attached, and nothing else of the device is called afterwards.
        """
        return

    def register_name(self, index: int, offset: int) -> str | None:  # noqa: ARG002 - for models that know names
        """The name of the register that is at ``offset`` of region ``index``, None where the model knows none.

        For people: traces and logs. Any numbers may be asked for; it has no side effects and needs no host.
        """
        return None

    @property
    def display(self) -> Display | None:
        """The device's screens, if it has any."""
        return None

    def shown_parts(self) -> Sequence[RegionPart] | None:
        """Which parts of its mappable areas the device shows, or otherwise uses, now; None where it does not say.

        A host that records a session looks at these parts, and at all areas where it is not told.
        """
        return None

    def status(self) -> dict[str, object]:
        """Counters and state for ``vgpud status``: JSON values."""
        return {}

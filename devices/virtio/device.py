"""What a virtio device model implements, whatever transport carries it (virtio 1.3, section 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from devices.contract import GuestRange, Host
from devices.display import Display


class MalformedRequest(ValueError):  # noqa: N818 - the guest's fault, named after what it sent
    """The driver broke the virtqueue's rules: the transport sets DEVICE_NEEDS_RESET."""


class DescriptorChain(Protocol):
    """One buffer of a virtqueue: what the driver lets the device read, then what it lets it write."""

    @property
    def readable(self) -> Sequence[GuestRange]:
        """The device-readable parts in order."""

    @property
    def writable(self) -> Sequence[GuestRange]:
        """The device-writable parts in order."""

    @property
    def readable_length(self) -> int:
        """Bytes that the device may read."""

    @property
    def writable_length(self) -> int:
        """Bytes that the device may write."""

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of the readable parts from ``offset``; fewer than ``length`` where the chain ends."""

    async def write(self, data: bytes | memoryview, offset: int = 0) -> int:
        """Write into the writable parts from ``offset``, cut off where they end; returns bytes written."""


class VirtioTransport(Protocol):
    """What a virtio device may ask of its transport."""

    @property
    def host(self) -> Host:
        """The host of the function that this device lives in, while one is connected."""

    def config_changed(self) -> None:
        """The device's configuration changed: raise the configuration interrupt (virtio 1.3, 2.5)."""


class VirtioDevice(ABC):
    """A virtio device without its transport. All calls come from one thread, one at a time."""

    name: str
    device_id: int
    """Virtio device id (16 for a GPU)."""
    pci_class: int
    """24-bit PCI class code."""
    queue_sizes: tuple[int, ...]
    """Largest size of each virtqueue, powers of two."""
    transport: VirtioTransport
    """Set by the transport before anything else is called."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Device-specific feature bits to offer; the transport adds those of the transport and the rings."""

    @abstractmethod
    def activate(self, features: int) -> None:
        """The driver set DRIVER_OK after negotiating ``features``."""

    @abstractmethod
    def reset(self) -> None:
        """Back to power-on: let go of everything."""

    @abstractmethod
    def disconnect(self) -> None:
        """The client, and its memory, are gone; keep state."""

    @abstractmethod
    def config_read(self, offset: int, count: int) -> bytes:
        """Read device configuration space; zeros beyond its end."""

    @abstractmethod
    def config_write(self, offset: int, data: bytes) -> None:
        """Write device configuration space; what is read-only ignores it."""

    def config_field_name(self, offset: int) -> str | None:  # noqa: ARG002 - for devices that know names
        """The name of the field at ``offset`` of device configuration space, for traces; None for no field."""
        return None

    @abstractmethod
    async def handle(self, queue: int, chain: DescriptorChain) -> int:
        """Serve one buffer of ``queue``; returns the bytes written into it.

        Raises :class:`MalformedRequest` where the driver broke the rules of the queue itself.
        """

    @property
    def display(self) -> Display | None:
        """The device's screens, if it has any."""
        return None

    def status(self) -> dict[str, object]:
        """Counters and state for ``vgpud status``: JSON values."""
        return {}

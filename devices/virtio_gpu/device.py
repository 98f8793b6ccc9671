"""The virtio GPU: 2D, blob resources in guest memory, EDID, up to 16 screens (virtio 1.3, 5.7)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import asdict

from devices.contract import GuestMemory, GuestMemoryError
from devices.display import Display, Frame, NothingOnScanout, PixelBuffer, ScanoutInfo
from devices.pci.register_names import structure_names
from devices.virtio.device import DescriptorChain, VirtioDevice
from devices.virtio_gpu.control import CommandQueue
from devices.virtio_gpu.cursor_commands import CursorCommands
from devices.virtio_gpu.formats import BYTES_PER_PIXEL
from devices.virtio_gpu.options import GpuOptions, check_mode
from devices.virtio_gpu.protocol import (
    CONFIG,
    DEVICE_ID,
    PCI_CLASS_DISPLAY_OTHER,
    Event,
    Feature,
    Queue,
)
from devices.virtio_gpu.resource_commands import ResourceCommands
from devices.virtio_gpu.resources import BlobResource, ResourceTable
from devices.virtio_gpu.scanout import Scanout
from devices.virtio_gpu.scanout_commands import ScanoutCommands
from devices.work import run_to_completion

CONTROL_QUEUE_SIZE = 256
CURSOR_QUEUE_SIZE = 16
NUM_CAPSETS = 0
_CONFIG_FIELD_NAMES = structure_names(
    (("events_read", 4), ("events_clear", 4), ("num_scanouts", 4), ("num_capsets", 4))
)


class VirtioGpu(VirtioDevice, Display):
    """A GPU without 3D, for any virtio transport. Raises nothing at what a guest writes."""

    name = "virtio-gpu"
    device_id = DEVICE_ID
    pci_class = PCI_CLASS_DISPLAY_OTHER
    queue_sizes = (CONTROL_QUEUE_SIZE, CURSOR_QUEUE_SIZE)

    def __init__(self, options: GpuOptions | None = None) -> None:
        self.options = options or GpuOptions()
        self._scanouts = [
            Scanout(index, self.options.width, self.options.height) for index in range(self.options.scanouts)
        ]
        self._resources = ResourceTable(self.options.max_hostmem, self.options.identity, self._guest_memory)
        self._resource_commands = ResourceCommands(self._resources, self._scanouts)
        scanout_commands = ScanoutCommands(self._resources, self._scanouts)
        cursor_commands = CursorCommands(self._resources, self._scanouts)
        self._control = CommandQueue(
            self._resource_commands.table() | scanout_commands.table(), self._resources
        )
        self._cursor = CommandQueue(cursor_commands.table(), self._resources)
        self._events = 0
        self._active = False
        self._gone = False

    @property
    def features(self) -> int:
        """EDID and blob resources as the options say, and resource UUIDs."""
        return (
            self.options.edid << Feature.EDID
            | 1 << Feature.RESOURCE_UUID
            | self.options.offers_blob << Feature.RESOURCE_BLOB
        )

    def activate(self, features: int) -> None:
        """Serve the commands that the negotiated ``features`` allow."""
        self._control.negotiated(features & self.features)
        self._active = True
        self._gone = False

    def reset(self) -> None:
        """Free all resources and blank the screens; their modes stay, as a monitor outlives a reboot."""
        for scanout in self._scanouts:
            scanout.reset()
        self._resources.clear()
        self._control.negotiated(0)
        self._events = 0
        self._active = False

    def disconnect(self) -> None:
        """Let go of the guest's pages; what was on the screens can still be captured."""
        for scanout in self._scanouts:
            scanout.still = self._last_picture(scanout)
        self._resources.release_pins()
        self._gone = True

    def config_read(self, offset: int, count: int) -> bytes:
        """Read struct virtio_gpu_config; events_clear reads as 0."""
        config = CONFIG.pack(self._events, 0, len(self._scanouts), NUM_CAPSETS)
        return config[offset : offset + count].ljust(count, b"\0")

    def config_write(self, offset: int, data: bytes) -> None:
        """Clear the events whose bits are written to events_clear."""
        written = bytearray(CONFIG.size)
        end = min(offset + len(data), CONFIG.size)
        if offset < end:
            written[offset:end] = data[: end - offset]
            _read, clear, _scanouts, _capsets = CONFIG.unpack(written)
            self._events &= ~clear

    def config_field_name(self, offset: int) -> str | None:
        """Names in struct virtio_gpu_config (5.7.4)."""
        return _CONFIG_FIELD_NAMES(offset)

    async def handle(self, queue: int, chain: DescriptorChain) -> int:
        """Serve one request; returns the bytes of its response."""
        self._gone = False
        return await (self._cursor if queue == Queue.CURSOR else self._control).serve(chain)

    @property
    def display(self) -> Display:
        """The screens are those of the device itself."""
        return self

    @property
    def scanouts(self) -> Sequence[ScanoutInfo]:
        """All screens, by index."""
        return [scanout.info for scanout in self._scanouts]

    async def capture(self, scanout: int) -> Frame:
        """What is on a screen, with its cursor.

        A blob is read from the guest's memory as it is now; once the client is gone, as it was then.
        Raises :class:`NothingOnScanout`, and IndexError where there is no such screen.
        """
        screen = self._screen(scanout)
        framebuffer = screen.framebuffer
        if framebuffer is None:
            raise NothingOnScanout(f"the guest shows nothing on scanout {scanout}")
        if self._gone and isinstance(framebuffer.resource, BlobResource):
            if screen.still is None:
                raise NothingOnScanout(f"the memory that scanout {scanout} showed went with the client")
            picture = screen.still
        else:
            picture = await framebuffer.grab()
        return Frame(scanout, picture, screen.cursor.on_screen(picture.width, picture.height))

    def set_mode(self, scanout: int, width: int, height: int, *, connected: bool = True) -> None:
        """Change the mode that a screen prefers, or unplug it, and tell the driver.

        Raises IndexError where there is no such screen, ValueError for a size that no screen can have.
        """
        screen = self._screen(scanout)
        check_mode(width, height)
        if width * height * BYTES_PER_PIXEL > self.options.max_hostmem:
            raise ValueError(f"{width}x{height} does not fit in max_hostmem={self.options.max_hostmem}")
        screen.width, screen.height, screen.connected = width, height, connected
        self._events |= Event.DISPLAY
        if self._active and not self._gone:
            self.transport.config_changed()

    def status(self) -> dict[str, object]:
        """Counters since the device was made, and what the guest holds now."""
        return {
            "commands": self._control.served | self._cursor.served,
            "refused": dict(self._control.refused + self._cursor.refused),
            "flips": sum(scanout.flips for scanout in self._scanouts),
            "flushes": sum(scanout.flushes for scanout in self._scanouts),
            "bytes_transferred": self._resource_commands.bytes_transferred,
            "resources": len(self._resources),
            "hostmem": self._resources.hostmem,
            "max_hostmem": self._resources.max_hostmem,
            "pages_pinned": self._resources.pages_pinned,
            "scanouts": [asdict(scanout.info) for scanout in self._scanouts],
        }

    def _screen(self, index: int) -> Scanout:
        if not 0 <= index < len(self._scanouts):
            raise IndexError(f"there is no scanout {index}: this device has {len(self._scanouts)}")
        return self._scanouts[index]

    def _guest_memory(self) -> GuestMemory:
        if self._gone:
            raise GuestMemoryError(errno.ENODEV, "the client is gone")
        return self.transport.host.memory

    def _last_picture(self, scanout: Scanout) -> PixelBuffer | None:
        """A copy of what a blob shows while it is pinned; images in host memory need none."""
        framebuffer = scanout.framebuffer
        if framebuffer is None or not isinstance(framebuffer.resource, BlobResource):
            return None
        backing = framebuffer.resource.backing
        if backing is None or not backing.pinned:
            return scanout.still if self._gone else None
        try:
            return run_to_completion(framebuffer.grab())
        except NothingOnScanout:
            return None

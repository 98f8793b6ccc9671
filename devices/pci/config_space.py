"""PCI configuration space: a byte image, the bits of it that software may change, and its capability list."""

from __future__ import annotations

from dataclasses import dataclass

from devices.pci.constants import (
    CONFIG_SPACE_SIZE,
    EXTENDED_CONFIG_SPACE_SIZE,
    FIRST_CAPABILITY,
    SMALLEST_MEMORY_BAR,
    BarFlag,
    Command,
    ConfigRegister,
    InterruptPin,
    Status,
)
from devices.pci.register_names import RegisterName, config_register_name, name_in

_ERROR_BITS = (
    Status.MASTER_DATA_PARITY_ERROR
    | Status.SIGNALED_TARGET_ABORT
    | Status.RECEIVED_TARGET_ABORT
    | Status.RECEIVED_MASTER_ABORT
    | Status.SIGNALED_SYSTEM_ERROR
    | Status.DETECTED_PARITY_ERROR
)


@dataclass(frozen=True, slots=True)
class PciIdentity:
    """What a function says it is; ``class_code`` has 24 bits: base class, sub-class and interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class ConfigSpace:
    """``size`` bytes of configuration space (256, or 4096 with PCI Express), header type 0.

    :meth:`read` and :meth:`write` are software's accesses, :meth:`get` and :meth:`put` the device's own.
    """

    def __init__(
        self,
        identity: PciIdentity,
        *,
        size: int = CONFIG_SPACE_SIZE,
        interrupt_pin: InterruptPin = InterruptPin.NONE,
    ) -> None:
        if size not in (CONFIG_SPACE_SIZE, EXTENDED_CONFIG_SPACE_SIZE):
            raise ValueError(f"configuration space has 256 or 4096 bytes, not {size}")
        self.size = size
        self._image = bytearray(size)
        self._power_on = bytearray(size)
        self._writable = bytearray(size)
        self._clear_on_one = bytearray(size)
        self._capabilities: list[tuple[range, str, RegisterName | None]] = []
        self._next_capability = FIRST_CAPABILITY
        self._link_to_next: int = ConfigRegister.CAPABILITIES_POINTER
        self._define_header(identity, interrupt_pin)

    def _define_header(self, identity: PciIdentity, interrupt_pin: InterruptPin) -> None:
        define, at = self.define, ConfigRegister
        define(at.VENDOR_ID, 2, identity.vendor)
        define(at.DEVICE_ID, 2, identity.device)
        define(at.REVISION_ID, 1, identity.revision)
        define(at.CLASS_CODE, 3, identity.class_code)
        define(at.SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor)
        define(at.SUBSYSTEM_ID, 2, identity.subsystem)
        writable = Command.MEMORY | Command.BUS_MASTER | Command.PARITY | Command.SERR
        if interrupt_pin is not InterruptPin.NONE:
            writable |= Command.INTX_DISABLE
            define(at.INTERRUPT_LINE, 1, 0, writable=0xFF)
        define(at.COMMAND, 2, 0, writable=writable)
        define(at.STATUS, 2, 0, clear_on_one=_ERROR_BITS)
        define(at.CACHE_LINE_SIZE, 1, 0, writable=0xFF)
        define(at.INTERRUPT_PIN, 1, interrupt_pin)

    def define(
        self, offset: int, width: int, value: int, *, writable: int = 0, clear_on_one: int = 0
    ) -> None:
        """Set a register's power-on value, and the bits that software writes, or clears by writing ones."""
        end = offset + width
        self._image[offset:end] = self._power_on[offset:end] = value.to_bytes(width, "little")
        self._writable[offset:end] = writable.to_bytes(width, "little")
        self._clear_on_one[offset:end] = clear_on_one.to_bytes(width, "little")

    def add_memory_bar(
        self, index: int, size: int, *, is_64bit: bool = False, prefetchable: bool = False
    ) -> None:
        """Describe a memory BAR; ``size`` is a power of two. A 64-bit BAR takes index ``index + 1`` too.

        Software that writes all ones reads back the size: address bits below it are not implemented.
        """
        if size < SMALLEST_MEMORY_BAR or size & (size - 1):
            raise ValueError(f"a memory BAR's size is a power of two of at least 16, not {size}")
        width = 8 if is_64bit else 4
        flags = (BarFlag.MEMORY_64 if is_64bit else 0) | (BarFlag.PREFETCHABLE if prefetchable else 0)
        address_bits = (1 << 8 * width) - size
        self.define(ConfigRegister.BAR0 + 4 * index, width, flags, writable=address_bits)

    def add_capability(
        self,
        capability: int,
        body: bytes,
        writable: bytes = b"",
        *,
        name: str = "",
        register_name: RegisterName | None = None,
    ) -> int:
        """Append a capability to the list and return its offset.

        ``body`` is what follows the id and the link to the next one; ``writable`` masks its bits, zeros where
        it is shorter. Traces show ``NAME.REGISTER``, with what ``register_name`` knows at an offset in the
        capability. Raises ValueError when the 256 bytes are full.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONFIG_SPACE_SIZE:
            raise ValueError("no room for another capability")
        self.define(offset, 2, capability)
        for at, byte in enumerate(body):
            self.define(offset + 2 + at, 1, byte, writable=writable[at] if at < len(writable) else 0)
        self.define(self._link_to_next, 1, offset)
        self.define(ConfigRegister.STATUS, 2, Status.CAPABILITIES, clear_on_one=_ERROR_BITS)
        self._capabilities.append((range(offset, end), name, register_name))
        self._link_to_next = offset + 1
        self._next_capability = (end + 3) & ~3
        return offset

    def read(self, offset: int, count: int) -> bytes:
        """Read at any width and alignment; zeros beyond the end."""
        return bytes(self._image[offset : offset + count]).ljust(count, b"\0")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at any width and alignment: only implemented, writable bits change."""
        image, writable, clear_on_one = self._image, self._writable, self._clear_on_one
        for at, byte in enumerate(data[: max(0, self.size - offset)], offset):
            mask = writable[at]
            image[at] = (image[at] & ~mask | byte & mask) & ~(byte & clear_on_one[at])

    def get(self, offset: int, width: int) -> int:
        """The register of ``width`` bytes at ``offset``."""
        return int.from_bytes(self._image[offset : offset + width], "little")

    def put(self, offset: int, width: int, value: int) -> None:
        """Set a register, read-only bits included, until the next reset."""
        self._image[offset : offset + width] = value.to_bytes(width, "little")

    def register_name(self, offset: int) -> str | None:
        """The name of a register of the header, or of a capability that has names."""
        for capability, name, register_name in self._capabilities:
            if offset in capability:
                return name_in(name, offset - capability.start, register_name)
        return config_register_name(offset)

    def reset(self) -> None:
        """Back to the power-on values."""
        self._image[:] = self._power_on

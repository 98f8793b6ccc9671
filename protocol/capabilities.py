"""The capabilities in a VERSION message: JSON in, checked values out (vfio-user, VFIO_USER_VERSION).

The JSON comes from a peer that nothing is known about yet, so it is read with suspicion: bounded in size and
depth, no duplicate names, no NaN, and every value of the right type and range. Names that this package does
not know are noted and otherwise ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from errno import E2BIG, EINVAL
from typing import Any, Final, NoReturn

from protocol.errors import ProtocolError
from protocol.wire import U64_MAX, Buffer

DEFAULT_MAX_MSG_FDS: Final = 1
DEFAULT_MAX_DATA_XFER_SIZE: Final = 1048576
DEFAULT_MAX_DMA_MAPS: Final = 65535
DEFAULT_PGSIZES: Final = 4096

MAX_JSON_SIZE: Final = 4096
"""Bytes of version data that are accepted, NUL included. QEMU sends about 200."""

MAX_JSON_DEPTH: Final = 8
"""Objects and arrays inside each other that are accepted; the specification needs three."""


@dataclass(frozen=True, slots=True)
class TwinSocket:
    """Whether server-to-client commands may go, or go, over a socket of their own.

    ``fd_index`` is only in replies: which of the file descriptors of the reply is the client's end.
    """

    supported: bool = False
    fd_index: int | None = None


@dataclass(frozen=True, slots=True)
class MigrationCapability:
    """What peers from before the migration features send: page size, and largest dirty bitmap in bytes."""

    pgsize: int | None = None
    max_bitmap_size: int | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side says of itself; None where it says nothing, and the default holds.

    ``max_msg_fds``: file descriptors that it can receive in one message (default 1).
    ``max_data_xfer_size``: bytes of data that it takes in one message (default 1 MiB).
    ``max_dma_maps``: DMA maps that can be valid at the same time (default 65535).
    ``pgsizes``: page sizes of DMA maps, or'ed together (default 4096).
    ``write_multiple``: whether REGION_WRITE_MULTI may be sent (default false).
    ``unknown``: names that this package does not know, in the order of the message.
    """

    max_msg_fds: int | None = None
    max_data_xfer_size: int | None = None
    max_dma_maps: int | None = None
    pgsizes: int | None = None
    twin_socket: TwinSocket | None = None
    write_multiple: bool | None = None
    migration: MigrationCapability | None = None
    unknown: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """Version data: compact JSON and its terminating NUL. Unknown names are left out."""
        document = {"capabilities": _without_none(self)}
        return json.dumps(document, separators=(",", ":")).encode() + b"\0"

    @classmethod
    def unpack(cls, data: Buffer) -> Capabilities:
        """Read version data. Raises ProtocolError (EINVAL, or E2BIG where it is too long)."""
        document = _object(_parse(data), "version data")
        return _capabilities(_object(document.get("capabilities", {}), "capabilities"))


def _without_none(capabilities: Capabilities) -> dict[str, object]:
    """The stated capabilities, in the order of the specification's table."""
    fields: dict[str, object] = {
        "max_msg_fds": capabilities.max_msg_fds,
        "max_data_xfer_size": capabilities.max_data_xfer_size,
        "max_dma_maps": capabilities.max_dma_maps,
        "pgsizes": capabilities.pgsizes,
        "write_multiple": capabilities.write_multiple,
    }
    if (twin := capabilities.twin_socket) is not None:
        index = {} if twin.fd_index is None else {"fd_index": twin.fd_index}
        fields["twin_socket"] = {"supported": twin.supported, **index}
    if (migration := capabilities.migration) is not None:
        sizes = {"pgsize": migration.pgsize, "max_bitmap_size": migration.max_bitmap_size}
        fields["migration"] = {name: value for name, value in sizes.items() if value is not None}
    return {name: value for name, value in fields.items() if value is not None}


def _capabilities(fields: Mapping[str, Any]) -> Capabilities:
    return Capabilities(
        max_msg_fds=_number(fields, "max_msg_fds", least=0),
        max_data_xfer_size=_number(fields, "max_data_xfer_size", least=1),
        max_dma_maps=_number(fields, "max_dma_maps", least=0),
        pgsizes=_number(fields, "pgsizes", least=1),
        twin_socket=_twin_socket(fields),
        write_multiple=_boolean(fields, "write_multiple"),
        migration=_migration(fields),
        unknown=tuple(name for name in fields if name not in _KNOWN),
    )


_KNOWN: Final = frozenset(Capabilities.__dataclass_fields__) - {"unknown"}


def _twin_socket(fields: Mapping[str, Any]) -> TwinSocket | None:
    if "twin_socket" not in fields:
        return None
    twin = _object(fields["twin_socket"], "twin_socket")
    return TwinSocket(_boolean(twin, "supported") or False, _number(twin, "fd_index", least=0))


def _migration(fields: Mapping[str, Any]) -> MigrationCapability | None:
    if "migration" not in fields:
        return None
    migration = _object(fields["migration"], "migration")
    return MigrationCapability(
        _number(migration, "pgsize", least=1), _number(migration, "max_bitmap_size", least=0)
    )


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(EINVAL, f"{what} must be a JSON object")
    return value


def _number(fields: Mapping[str, Any], name: str, *, least: int) -> int | None:
    value = fields.get(name)
    if name not in fields:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= U64_MAX:
        raise ProtocolError(EINVAL, f"{name} must be an integer from {least} to 2**64-1")
    return value


def _boolean(fields: Mapping[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if name not in fields:
        return None
    if not isinstance(value, bool):
        raise ProtocolError(EINVAL, f"{name} must be true or false")
    return value


def _parse(data: Buffer) -> object:
    if len(data) > MAX_JSON_SIZE:
        raise ProtocolError(E2BIG, f"{len(data)} bytes of version data, where {MAX_JSON_SIZE} are the most")
    raw = bytes(data)
    if not raw.endswith(b"\0"):
        raise ProtocolError(EINVAL, "version data does not end with NUL")
    try:
        document: object = json.loads(
            raw[:-1].decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolError(EINVAL, f"version data is not JSON: {error}") from None
    if _depth(document) > MAX_JSON_DEPTH:
        raise ProtocolError(EINVAL, f"version data is nested deeper than {MAX_JSON_DEPTH}")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _depth(document: object) -> int:
    """How many objects and arrays are inside each other, without recursion."""
    depth = 0
    level = [document]
    while containers := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        level = [
            inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return depth

"""UUIDs of instances: read strictly, since they become names of files, sockets and units."""

from __future__ import annotations

import re
from uuid import UUID

from server.instances.errors import InstanceError

_CANONICAL = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_USER_DIGITS = 25
"""36**25 is more than 2**128."""


def parse_uuid(text: str) -> UUID:
    """The UUID that ``text`` is in the form of RFC 9562, 8-4-4-4-12 digits and nothing else. Raises InstanceError."""
    if (uuid := canonical_uuid(text.lower())) is None:
        raise InstanceError(f"{text!r} is no UUID; write it as 01234567-89ab-cdef-0123-456789abcdef")
    return uuid


def canonical_uuid(text: str) -> UUID | None:
    """The UUID whose own text ``text`` is: in lower case, as files and units are named."""
    return UUID(text) if _CANONICAL.fullmatch(text) else None


def user_name(uuid: UUID) -> str:
    """A name for the user that the instance runs as, its own: 31 characters, as many as systemd takes."""
    rest, digits = uuid.int, ""
    for _ in range(_USER_DIGITS):
        rest, digit = divmod(rest, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return f"vgpud-{digits}"

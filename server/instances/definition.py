"""An instance's definition, and the JSON that it is stored as: mdevctl's keys where they fit.

.. code-block:: json

    {"mdev_type": "vgpud-virtio-2", "start": "auto", "attrs": [{"edid": "off"}], "transport": "native", "metrics": "on"}

``attrs`` are options of the device, one to an object as mdevctl writes them. They win over those of the type.
``metrics`` is on where the server has an endpoint for Prometheus. ``attrs``, ``transport`` and ``metrics`` may be
missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from devices.models import MODELS
from devices.registry import OptionError, create_device
from server.instances.errors import InstanceError
from server.instances.types import InstanceType, find_type
from server.transport_names import AUTO, CHOICES

MAX_BYTES = 64 << 10
"""Longest file of a definition."""
_KEYS = ("mdev_type", "start", "attrs", "transport", "metrics")
_STARTS = ("auto", "manual")
_SWITCH = {"on": True, "off": False}
_OPTION = re.compile(r"[a-z][a-z0-9_]{0,63}")
_VALUE = re.compile(r"[\w.:/+-]{1,64}", re.ASCII)
"""No comma among them: it would begin another option."""


@dataclass(frozen=True, slots=True)
class Definition:
    """An instance as it is defined; raises InstanceError where the device cannot be made."""

    uuid: UUID
    type: InstanceType
    auto: bool = False
    attrs: Mapping[str, str] = field(default_factory=dict)
    transport: str = AUTO
    metrics: bool = False

    def __post_init__(self) -> None:
        """Check everything that the JSON does not."""
        for option, value in self.attrs.items():
            if not _OPTION.fullmatch(option) or not _VALUE.fullmatch(value):
                raise InstanceError(
                    f"{option!r}: {value!r} is no option of a device; 'vgpud devices' lists them"
                )
        if self.transport not in CHOICES:
            raise InstanceError(f"transport {self.transport!r}: choose of {', '.join(CHOICES)}")
        try:
            create_device(MODELS, self.device).close()
        except OptionError as error:
            raise InstanceError(error) from error

    @property
    def device(self) -> str:
        """The device, as ``vgpud serve --device`` takes it."""
        return self.type.device_text(self.attrs)

    @property
    def start(self) -> str:
        """When it is started, in mdevctl's word."""
        return _STARTS[0] if self.auto else _STARTS[1]

    @property
    def video_memory(self) -> int:
        """Bytes that its guest may take from the host."""
        return self.type.video_memory(self.attrs)


def parse_device(text: str, wanted: InstanceType) -> dict[str, str]:
    """The options in ``text``, a device of the type's model. Raises InstanceError."""
    model, *settings = text.split(",")
    if model != wanted.model:
        raise InstanceError(
            f"type {wanted.name} is a {wanted.model}; write --device {wanted.model},OPTION=VALUE"
        )
    attrs: dict[str, str] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not equals:
            raise InstanceError(f"--device {text}: option {option!r} needs a value: {option}=VALUE")
        attrs[option] = value
    return attrs


def as_json(definition: Definition) -> dict[str, Any]:
    """The JSON object of a definition."""
    members = {
        "mdev_type": definition.type.name,
        "start": definition.start,
        "attrs": [{option: value} for option, value in definition.attrs.items()],
        "transport": definition.transport,
    }
    return {**members, "metrics": "on"} if definition.metrics else members


def encode(definition: Definition) -> bytes:
    """The content of the definition's file."""
    return json.dumps(as_json(definition), indent=2).encode() + b"\n"


def decode(uuid: UUID, content: bytes) -> Definition:
    """The definition that a file has, the inverse of :func:`encode`. Raises InstanceError, which names no file."""
    if len(content) > MAX_BYTES:
        raise InstanceError(f"longer than {MAX_BYTES} bytes")
    try:
        members = json.loads(content.decode(), object_pairs_hook=_members)
    except (ValueError, RecursionError) as error:
        raise InstanceError(f"not JSON ({error})") from error
    if not isinstance(members, dict):
        raise InstanceError("not a JSON object")
    if unknown := sorted(members.keys() - set(_KEYS)):
        raise InstanceError(f"unknown key {unknown[0]!r}; there are {', '.join(_KEYS)}")
    start = _text(members, "start")
    if start not in _STARTS:
        raise InstanceError(f"start is {start!r}; write auto or manual")
    metrics = _text(members, "metrics") if "metrics" in members else "off"
    if metrics not in _SWITCH:
        raise InstanceError(f"metrics is {metrics!r}; write on or off")
    return Definition(
        uuid,
        find_type(_text(members, "mdev_type")),
        start == "auto",
        _attrs(members.get("attrs", [])),
        _text(members, "transport") if "transport" in members else AUTO,
        _SWITCH[metrics],
    )


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key is there twice")
    return members


def _text(members: Mapping[str, Any], key: str) -> str:
    value = members.get(key)
    if not isinstance(value, str):
        raise InstanceError(f"key {key!r} is missing or no text")
    return value


def _attrs(value: Any) -> dict[str, str]:
    attrs: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise InstanceError('attrs is not of the form [{"OPTION": "VALUE"}, ...]')
        ((option, setting),) = entry.items()
        if not isinstance(setting, str):
            raise InstanceError(f'attrs: {option!r} is no text; write "VALUE"')
        if option in attrs:
            raise InstanceError(f"attrs: {option!r} is there twice")
        attrs[option] = setting
    return attrs

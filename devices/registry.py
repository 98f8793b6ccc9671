"""The device models that there are, their options, and how text becomes a device.

A model is chosen as QEMU's ``-device`` is: ``NAME[,OPTION=VALUE...]``, for example ``virtio-gpu,scanouts=2``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from devices.contract import Device


class OptionError(ValueError):
    """A device option is unknown or has a value that cannot be; the text is one line that names the fix."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a device model: how its text is read, and what it is when nobody says."""

    name: str
    default: str
    parse: Callable[[str], object]
    help: str


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A device model: ``create`` takes the parsed options by name, and may raise ValueError."""

    name: str
    description: str
    options: tuple[Option, ...]
    create: Callable[[Mapping[str, object]], Device]
    kind: str = "pci"
    """What the device is to a management layer: gpu, ..."""
    features: tuple[str, ...] = ()
    """Names for ``--print-capabilities``."""


def flag(text: str) -> bool:
    """``on`` or ``off``, as QEMU spells booleans."""
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


def number(text: str) -> int:
    """A whole number."""
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def size(text: str) -> int:
    """A size in bytes, with an optional binary suffix: 4096, 256M, 1G."""
    suffixes = {"K": 10, "M": 20, "G": 30}
    shift = suffixes.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdecimal():
        raise ValueError(f"{text!r} is not a size; write for example 256M")
    return int(digits) << shift


def create_device(models: Sequence[DeviceModel], text: str) -> Device:
    """Make the device that ``text`` (``NAME[,OPTION=VALUE...]``) describes. Raises OptionError."""
    model, texts = _settings(models, text)
    known = {option.name: option for option in model.options}
    name = model.name
    values: dict[str, object] = {}
    for key, value in texts.items():
        try:
            values[key] = known[key].parse(value)
        except ValueError as error:
            raise OptionError(f"{name}: {key}={value}: {error}") from error
    try:
        return model.create(values)
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from error


def full_description(models: Sequence[DeviceModel], text: str) -> str:
    """``text`` with every option of its model: the same device where the defaults are others. Raises OptionError."""
    model, texts = _settings(models, text)
    return ",".join((model.name, *(f"{key}={value}" for key, value in texts.items())))


def _settings(models: Sequence[DeviceModel], text: str) -> tuple[DeviceModel, dict[str, str]]:
    """The model, and the text of each of its options."""
    name, *settings = text.split(",")
    model = next((model for model in models if model.name == name), None)
    if model is None:
        names = ", ".join(model.name for model in models)
        raise OptionError(f"unknown device {name!r}; there are: {names}")
    known = {option.name: option for option in model.options}
    texts = {option.name: option.default for option in model.options}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in known:
            names = ", ".join(known)
            raise OptionError(f"{name} has no option {key!r}; it has: {names}")
        if not equals:
            raise OptionError(f"{name}: option {key} needs a value: {key}={known[key].default}")
        texts[key] = value
    return model, texts

"""The discovery file: what its schema allows, and what the program says of itself.

The schema is VhostUserBackend in QEMU's docs/interop/vhost-user.json; what a backend program understands is in its
docs/interop/vhost-user.rst, "Backend program conventions".
"""

from __future__ import annotations

import json
import pkgutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices.models import VIRTIO_GPU

ROOT = Path(__file__).parents[2]
FILE = ROOT / "share" / "vgpud" / "50-vgpud.json"
BACKEND: dict[str, Any] = json.loads(FILE.read_text())


def backend_program() -> Callable[[], int]:
    """What the ``binary`` runs where the project is installed."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    program: Callable[[], int] = pkgutil.resolve_name(scripts[Path(BACKEND["binary"]).name])
    return program


def capabilities(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["vfio-user-gpu", *arguments, "--print-capabilities"])
    assert backend_program()() == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_it_has_what_the_schema_asks_for_and_nothing_else() -> None:
    assert BACKEND.keys() == {"description", "type", "binary", "tags"}
    assert all(isinstance(BACKEND[key], str) for key in ("description", "type", "binary"))
    assert all(isinstance(tag, str) for tag in BACKEND["tags"])
    assert Path(BACKEND["binary"]).is_absolute()
    assert FILE.name[:2].isdecimal()


def test_the_program_that_it_names_says_the_same_of_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = capabilities(monkeypatch, capsys)
    assert BACKEND["type"] == said["type"]
    assert BACKEND["tags"] == ["vfio-user", *said["features"]]


def test_the_program_that_it_names_takes_the_options_of_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = capabilities(monkeypatch, capsys, "--device", "edu")
    assert said["type"] == "pci"


def test_it_describes_the_device_that_is_served_by_default() -> None:
    assert BACKEND["description"] == VIRTIO_GPU.description

"""The table of types, and how many fit a host."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from devices.models import MODELS
from devices.registry import create_device
from server.instances.capacity import available_instances, memory_available, memory_total
from server.instances.errors import InstanceError
from server.instances.types import TYPES, InstanceType, find_type
from tests.server.instances.command import ONE, TWO, Vgpud

every_type = pytest.mark.parametrize("known", TYPES, ids=lambda known: str(known.name))
MIB = 1 << 20


@every_type
def test_a_type_describes_the_device_that_is_made_of_it(known: InstanceType) -> None:
    device = create_device(MODELS, known.device_text({}))
    try:
        assert device.name == known.model
        assert device.display is not None
        modes = [(screen.preferred_width, screen.preferred_height) for screen in device.display.scanouts]
        assert modes == [(known.width, known.height)] * known.screens
    finally:
        device.close()


@every_type
def test_a_type_has_memory_for_its_screens_twice(known: InstanceType) -> None:
    """A guest draws one picture while it shows another."""
    assert known.video_memory({}) >= 2 * known.screens * known.width * known.height * 4


@every_type
def test_a_type_has_a_share_that_systemd_takes(known: InstanceType) -> None:
    assert 1 <= known.cpu_weight <= 10_000


def test_types_are_told_apart_by_name() -> None:
    assert len({known.name for known in TYPES}) == len(TYPES)
    assert all(find_type(known.name) is known for known in TYPES)


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InstanceError, match="no type 'nvidia-63'; choose of vgpud-virtio-1, "):
        find_type("nvidia-63")


def test_attributes_of_an_instance_win_over_those_of_its_type() -> None:
    known = find_type("vgpud-virtio-2")
    assert known.device_text({"width": "800", "edid": "off"}) == (
        "virtio-gpu,scanouts=1,width=800,height=1080,max_hostmem=128M,edid=off"
    )
    assert known.video_memory({}) == 128 * MIB
    assert known.video_memory({"max_hostmem": "32M"}) == 32 * MIB


@pytest.mark.parametrize(
    ("available", "promised", "fit"),
    [(1000, 0, 10), (1099, 0, 10), (1000, 100, 9), (1000, 901, 0), (1000, 2000, 0), (0, 0, 0)],
)
def test_instances_fit_into_what_is_available_and_not_promised(
    available: int, promised: int, fit: int
) -> None:
    assert available_instances(100, available, promised) == fit


def test_the_memory_of_a_host_is_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  16384 kB\nMemFree:  1 kB\nMemAvailable:  8192 kB\n")
    assert memory_available(meminfo) == 8 * MIB
    assert memory_available() > 0
    assert memory_total(meminfo) == 16 * MIB
    assert memory_total() >= memory_available()


@pytest.mark.parametrize("text", [None, "", "MemFree: 1 kB\n", "MemAvailable:\n", "MemAvailable: much kB\n"])
def test_a_host_that_does_not_say_is_one_line(tmp_path: Path, text: str | None) -> None:
    meminfo = tmp_path / "meminfo"
    if text is not None:
        meminfo.write_text(text)
    with pytest.raises(InstanceError, match="no MemAvailable there; mount /proc"):
        memory_available(meminfo)


def test_video_memory_that_no_host_has_is_refused_and_not_promised(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.instances.commands.memory_total", lambda: 1024 * MIB)
    define = ["define", "--uuid", str(ONE), "--type", "vgpud-virtio-1", "--device"]
    assert vgpud.refusal(*define, "virtio-gpu,max_hostmem=1025M") == (
        "vgpud: max_hostmem=1025M is more than this host's memory of 1024 MiB; choose less\n"
    )
    assert vgpud.instances("--defined") == {}
    vgpud.well(*define, "virtio-gpu,max_hostmem=1024M")


def test_types_are_listed_with_how_many_are_available(vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.instances.listing.memory_available", lambda: 1024 * MIB)
    listing = {entry["name"]: entry for entry in json.loads(vgpud.well("types", "--json"))}
    assert listing["vgpud-virtio-4"] == {
        "name": "vgpud-virtio-4",
        "description": "virtio GPU for a desktop with two screens",
        "device": "virtio-gpu,scanouts=2,width=1920,height=1080,max_hostmem=256M",
        "screens": 2,
        "width": 1920,
        "height": 1080,
        "video_memory": 256 * MIB,
        "cpu_weight": 400,
        "available_instances": 4,
    }
    text = vgpud.well("types")
    assert re.findall(r"^(\S+): ", text, re.MULTILINE) == list(listing)
    assert re.findall(r"available instances +(\d+)", text) == ["16", "8", "4", "2"]


def test_instances_that_are_defined_leave_room_for_fewer(
    vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.instances.listing.memory_available", lambda: 1024 * MIB)
    vgpud.well("define", "--uuid", str(ONE), "--type", "vgpud-virtio-8")
    vgpud.well(
        "define", "--uuid", str(TWO), "--type", "vgpud-virtio-8", "--device", "virtio-gpu,max_hostmem=128M"
    )
    available = [entry["available_instances"] for entry in json.loads(vgpud.well("types", "--json"))]
    assert available == [6, 3, 1, 0]

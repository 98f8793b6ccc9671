"""``vgpud libvirt-xml``: libvirt's own schema takes it, and QEMU's options say what they should."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from server.cli import main
from server.instances.definition import Definition
from server.instances.identity import parse_uuid
from server.instances.places import choose_places
from server.instances.store import Store
from server.instances.types import find_type
from server.libvirt.fragment import MAX_DEVICES, domain_fragment
from server.qemu.client import vfio_user_pci
from server.qemu.migration_guard import guard_node

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
UUID = "4b20d080-1b54-4048-85b3-a6a62d165c01"
OTHER_UUID = "4b20d080-1b54-4048-85b3-a6a62d165c02"
MINIMAL = """
<domain type='kvm'>
  <name>guest</name>
  <memory unit='GiB'>2</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
</domain>
"""


def merged(fragment: str, domain: str = MINIMAL) -> str:
    """``domain`` with the elements of ``fragment``, as somebody would add them by hand."""
    root = ET.fromstring(domain)  # noqa: S314 - it is ours
    root.extend(ET.fromstring(fragment))  # noqa: S314
    return ET.tostring(root, encoding="unicode")


@pytest.fixture(autouse=True)
def defined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An instance, of root's or of another user's, in place of those of whoever runs the tests."""
    folder = tmp_path / "definitions"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr("server.instances.places.choose_definitions", lambda given, _: given or folder)
    Store(folder).add(Definition(parse_uuid(UUID), find_type("vgpud-virtio-1")))


def validate(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Ask libvirt's own check whether ``text`` is a domain."""
    path = folder / "domain.xml"
    path.write_text(text)
    return subprocess.run(
        ["virt-xml-validate", str(path), "domain"], capture_output=True, text=True, check=False
    )


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["libvirt-xml", *arguments]) == 0
    return capsys.readouterr().out


def given(fragment: str, option: str) -> list[dict[str, object]]:
    """What the fragment's arguments give to an option of QEMU."""
    root = ET.fromstring(fragment)  # noqa: S314
    words = [argument.get("value", "") for argument in root.iter(f"{QEMU}arg")]
    assert set(words[::2]) == {"-blockdev", "-device"}
    return [json.loads(word) for name, word in zip(words[::2], words[1::2], strict=True) if name == option]


def devices(fragment: str) -> list[dict[str, object]]:
    return given(fragment, "-device")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--socket-path", "/run/vgpud/device.sock"),
        ("--socket-path", "/tmp/a.sock", "--socket-path", "/tmp/b.sock"),
        ("--socket-path", "/tmp/it's <\"&> here"),
        ("--socket-path", "/x", "--device", "bochs-display"),
        ("--uuid", UUID),
    ],
)
def test_a_domain_with_it_is_valid(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = validate(merged(printed(capsys, *arguments)), tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_check_refuses_what_is_not_valid(tmp_path: Path) -> None:
    for wrong in (
        domain_fragment([Path("/x")]).replace("memfd", "memory"),
        domain_fragment([Path("/x")]).replace("/domain/qemu/", "/domain/other/"),
    ):
        assert validate(merged(wrong), tmp_path).returncode != 0


def test_memory_is_shared_with_the_server() -> None:
    memory = ET.fromstring(domain_fragment([Path("/x")])).find("memoryBacking")  # noqa: S314
    assert memory is not None
    assert {child.tag: child.attrib for child in memory} == {
        "source": {"type": "memfd"},
        "access": {"mode": "shared"},
    }


@pytest.mark.parametrize("path", ["/run/vgpud/device.sock", "/tmp/it's <\"&>\u00e9 here"])
def test_the_device_is_qemus_client_at_the_socket_on_a_root_port_of_its_own(path: str) -> None:
    port, device = devices(domain_fragment([Path(path)]))
    assert port["driver"] == "pcie-root-port"
    assert port["bus"] == "pcie.0"
    assert device == vfio_user_pci(Path(path), id="vgpud0", bus=str(port["id"]))


def test_the_guest_is_kept_from_migrating_once_for_all_devices() -> None:
    assert given(domain_fragment([Path("/a"), Path("/b")]), "-blockdev") == [guard_node()]


def test_firmware_gets_the_rom_with_which_it_draws_on_a_bochs_display(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model, rom in (("bochs-display", "vgabios-bochs-display.bin"), ("virtio-gpu", None)):
        port, device = devices(printed(capsys, "--socket-path", "/x", "--device", model))
        assert device.get("romfile") == rom
        assert "romfile" not in port


def test_several_devices_are_in_nobodys_way() -> None:
    found = devices(domain_fragment([Path(f"/run/{number}") for number in range(MAX_DEVICES)]))
    for key in ("id", "addr", "chassis", "port"):
        values = [device[key] for device in found if key in device]
        assert len(values) == len(set(values))
    slots = {int(str(device["addr"]), 0) for device in found if "addr" in device}
    assert slots == set(range(0x10, 0x1B))
    chassis = [device["chassis"] for device in found if "chassis" in device]
    assert all(isinstance(number, int) and number < 256 for number in chassis)


def test_an_instance_is_where_its_server_listens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fragment = printed(capsys, "--uuid", UUID.upper(), "--runtime-dir", str(tmp_path))
    socket = choose_places(None, tmp_path, {}).socket(parse_uuid(UUID))
    assert fragment == domain_fragment([socket])


def test_the_definition_may_be_in_another_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "others"
    arguments = ["libvirt-xml", "--uuid", OTHER_UUID, "--config-dir", str(folder)]
    assert main(arguments) == 1
    assert capsys.readouterr().out == ""
    Store(folder).add(Definition(parse_uuid(OTHER_UUID), find_type("vgpud-virtio-1")))
    assert main(arguments) == 0
    assert OTHER_UUID in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--socket-path", "x.sock"), "give the whole path, "),
        (("--uuid", "../../etc"), "'../../etc' is no UUID; write it as"),
        (("--uuid", OTHER_UUID), f"{OTHER_UUID} is not defined; 'vgpud list --defined' lists what is"),
        (("--uuid", UUID, "--uuid", UUID.upper()), f"/{UUID}.sock: named twice; a server has one client"),
        (
            ("--socket-path", f"/{'x' * 107}"),
            "longer than the 107 bytes that a UNIX socket allows; choose a shorter",
        ),
        (("--socket-path", "/x", "--device", "cirrus"), "cirrus: no device model; there are: virtio-gpu, "),
        (("--uuid", UUID, "--device", "edu"), "the device of an instance is known"),
        (("--socket-path", "/x") * (MAX_DEVICES + 1), "takes 11 devices at most, not 12"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert main(["libvirt-xml", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vgpud: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_command_without_a_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["libvirt-xml"])
    assert end.value.code == 2
    assert "--socket-path --uuid is required" in capsys.readouterr().err

from __future__ import annotations

from pathlib import Path

import pytest

from server.guest import qemu
from server.guest.errors import GuestError
from server.guest.qemu import Qemu, find_qemu, inspect_qemu
from tests.server.guest.programs import script

CLIENT = 'name "vfio-user-pci", bus PCI, desc "VFIO over socket PCI device assignment"'


def fake_qemu(path: Path, version: str, devices: str = CLIENT) -> Path:
    return script(
        path,
        f"case $1 in --version) echo \"QEMU emulator version {version}\";; -device) echo '{devices}';; esac",
    )


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VGPUD_QEMU", raising=False)
    monkeypatch.setattr(qemu, "private_qemu", lambda _report: Qemu(("private",), (11, 0, 0)))


@pytest.mark.parametrize(
    ("said", "version"), [("10.1.0", (10, 1, 0)), ("11.1.3 (Debian 1:11.1.3+ds-1)", (11, 1, 3))]
)
def test_a_new_enough_qemu_on_the_path_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, version: tuple[int, int, int]
) -> None:
    path = fake_qemu(tmp_path / "qemu-system-x86_64", said)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_qemu() == Qemu((str(path),), version)


@pytest.mark.parametrize(
    ("version", "devices", "reason"),
    [("10.0.8", CLIENT, "is QEMU 10.0.8; vfio-user needs 10.1"), ("11.0.0", "", "without vfio-user-pci")],
)
def test_a_qemu_that_will_not_do_gives_way_to_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, devices: str, reason: str
) -> None:
    fake_qemu(tmp_path / "qemu-system-x86_64", version, devices)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    assert find_qemu(said.append).argv == ("private",)
    assert reason in said[0]


def test_the_users_qemu_comes_first_and_must_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPUD_QEMU", str(fake_qemu(tmp_path / "own", "11.2.0")))
    assert find_qemu().release == "11.2.0"
    monkeypatch.setenv("VGPUD_QEMU", str(fake_qemu(tmp_path / "old", "9.2.0")))
    with pytest.raises(GuestError, match=r"old is QEMU 9\.2\.0"):
        find_qemu()


def test_a_program_that_does_not_run_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"does not run: .*No such file"):
        inspect_qemu((str(tmp_path / "nothing"),))
    broken = script(tmp_path / "broken", "echo first >&2; echo cannot load a library >&2; exit 127")
    with pytest.raises(GuestError, match="does not run: cannot load a library"):
        inspect_qemu((str(broken),))
    mute = script(tmp_path / "mute", "echo hello")
    with pytest.raises(GuestError, match="does not say which version"):
        inspect_qemu((str(mute),))

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.guest import apt
from server.guest.apt import Archive, PrivateApt
from server.guest.errors import GuestError
from server.guest.progress import to_nowhere

ARCHIVE = Archive(
    ("trixie", "trixie-backports"), pinned={"trixie-backports": ("qemu", "seabios")}, provided=("systemd",)
)


@pytest.fixture
def private_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrivateApt:
    monkeypatch.setattr(apt, "debian_mirror", lambda: "http://mirror.example/debian")
    monkeypatch.setattr(apt, "archive_keyring", lambda: Path("/keys/archive.gpg"))
    return PrivateApt(tmp_path / "apt", ARCHIVE, to_nowhere)


def configured(folder: Path, name: str) -> str:
    """Ask apt itself what a setting is, under the configuration in ``folder``."""
    command = ["apt-config", "-c", str(folder / "apt.conf"), "shell", "value", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_apt_writes_nothing_outside_its_folder(private_apt: PrivateApt, tmp_path: Path) -> None:
    folder = tmp_path / "apt"
    for setting in ("Dir::State/d", "Dir::State::lists/d", "Dir::State::status/f", "Dir::Cache::archives/d"):
        assert configured(folder, setting).startswith(f"value='{folder}/")
    for setting in ("APT::Update::Post-Invoke-Success", "DPkg::Pre-Install-Pkgs"):
        assert configured(folder, setting) == ""


def test_only_the_machines_mirror_is_a_source(private_apt: PrivateApt, tmp_path: Path) -> None:
    command = ["apt-get", "-c", str(tmp_path / "apt/apt.conf"), "update", "--print-uris"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "'http://mirror.example/debian/dists/trixie/InRelease'" in listing
    assert "'http://mirror.example/debian/dists/trixie-backports/InRelease'" in listing
    assert all(line.startswith("'http://mirror.example/debian/dists/trixie") for line in listing.splitlines())


def test_packages_are_pinned_by_source_and_suite(private_apt: PrivateApt, tmp_path: Path) -> None:
    pins = (tmp_path / "apt/preferences").read_text()
    assert "Package: src:qemu src:seabios\nPin: release n=trixie-backports\n" in pins


def test_a_provided_package_counts_as_installed(private_apt: PrivateApt, tmp_path: Path) -> None:
    folder = tmp_path / "apt"
    command = ["dpkg-query", f"--admindir={folder}", "-f", "${Package} ${db:Status-Status}", "-W", "systemd"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert listing == "systemd installed"


def test_a_failure_of_apt_is_one_line(private_apt: PrivateApt) -> None:
    with pytest.raises(GuestError, match="cannot get Debian's packages: ") as caught:
        private_apt._run("apt-get", "install", "-qq", "-y", "--print-uris", "no-such-package")
    assert "no-such-package" in str(caught.value)
    assert "\n" not in str(caught.value)

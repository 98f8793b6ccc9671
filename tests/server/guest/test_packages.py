from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from server.guest import packages
from server.guest.apt import Archive
from server.guest.errors import GuestError
from server.guest.packages import QEMU, Recipe, unpack, unpacked
from server.guest.progress import Report


def deb(folder: Path, name: str, *paths: str) -> Path:
    """Build a package that contains ``paths``."""
    tree = folder / name
    control = tree / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: none\n"
    )
    for path in paths:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(name)
    command = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(folder / f"{name}.deb")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / f"{name}.deb"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_packages_are_unpacked_over_each_other_without_what_is_left_out(tmp_path: Path) -> None:
    one = deb(tmp_path, "one", "usr/bin/one", "usr/share/doc/one/copyright")
    two = deb(tmp_path, "two", "usr/bin/two", "usr/lib/modules/6.12/kernel/drivers/net/two.ko")
    (root := tmp_path / "root").mkdir()
    unpack([one, two], root, ["./usr/share/doc", "./usr/lib/modules/*/kernel/drivers/net"])
    assert files(root) == {"usr/bin/one", "usr/bin/two"}


def test_a_damaged_package_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.deb"
    broken.write_bytes(b"not a package")
    with pytest.raises(GuestError, match=r"cannot unpack broken\.deb"):
        unpack([broken], tmp_path)


def test_a_changed_recipe_is_another_entry() -> None:
    assert QEMU.entry == replace(QEMU).entry
    assert len({QEMU.entry, replace(QEMU, packages=("other",)).entry, replace(QEMU, left_out=()).entry}) == 3


def test_an_entry_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeApt:
        downloads = 0

        def __init__(self, folder: Path, archive: Archive, report: Report) -> None:
            self.folder = folder

        def download(self, names: tuple[str, ...]) -> list[Path]:
            FakeApt.downloads += 1
            return [deb(self.folder, name, f"usr/bin/{name}") for name in names]

    monkeypatch.setattr(packages, "PrivateApt", FakeApt)
    monkeypatch.setenv("VGPUD_CACHE", str(tmp_path))
    recipe = Recipe("programs", ("one", "two"))
    said: list[str] = []
    root = unpacked(recipe, said.append)
    assert unpacked(recipe, said.append) == root == tmp_path / recipe.entry
    assert files(root) == {"usr/bin/one", "usr/bin/two"}
    assert FakeApt.downloads == 1
    assert not list((tmp_path / "apt").glob("*.deb"))
    assert any("unpacked" in line and str(tmp_path) in line for line in said)

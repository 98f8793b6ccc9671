"""Which folders a command is about, and who may have made them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from server.instances.errors import InstanceError
from server.instances.places import (
    SYSTEM_DEFINITIONS,
    SYSTEM_RUNTIME,
    Places,
    choose_places,
    make_private_folder,
)
from tests.server.instances.command import ONE

ROOT_FOLDERS = Places(Path("/etc/vgpud/instances.d"), Path("/run/vgpud"))


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_root_has_the_folders_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    places = choose_places(None, None, {"XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r"})
    assert places == ROOT_FOLDERS == Places(SYSTEM_DEFINITIONS, SYSTEM_RUNTIME)
    assert places.are_the_systems


@pytest.mark.usefixtures("ordinary_user")
def test_a_user_has_the_xdg_base_directories() -> None:
    places = choose_places(None, None, {"XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r"})
    assert places == Places(Path("/c/vgpud/instances.d"), Path("/r/vgpud"))
    assert not places.are_the_systems


@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize("environ", [{}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "relative"}])
def test_without_xdg_config_home_it_is_dot_config(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    places = choose_places(None, None, {**environ, "XDG_RUNTIME_DIR": "/r"})
    assert places.definitions == Path("/home/me/.config/vgpud/instances.d")


@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": "relative"}])
def test_without_a_folder_for_sockets_the_fix_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(InstanceError, match="set it or give --runtime-dir"):
        choose_places(None, None, environ)
    assert choose_places(None, Path("/x"), environ).runtime == Path("/x")


def test_folders_that_are_named_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_places(Path("c"), Path("r"), {}) == Places(tmp_path / "c", tmp_path / "r")


def test_everything_of_a_running_instance_fits_the_path_of_a_socket() -> None:
    for places in (ROOT_FOLDERS, Places(Path("/c"), Path("/run/user/4294967295/vgpud"))):
        assert max(len(str(places.control(ONE))), len(str(places.socket(ONE)))) <= 107


def test_a_private_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_is_not_private(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(InstanceError, match="not a folder of this user's alone; remove it"):
        make_private_folder(folder)


def test_a_link_is_not_a_private_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(InstanceError, match="not a folder of this user's alone"):
        make_private_folder(tmp_path / "link")


def test_a_folder_of_another_user_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_private_folder(tmp_path / "theirs")
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    with pytest.raises(InstanceError, match="not a folder of this user's alone"):
        make_private_folder(tmp_path / "theirs")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstanceError, match=r"file: cannot be made: File exists"):
        make_private_folder(tmp_path / "file")

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from server.guest.cache import cache_dir, locked, provide, write_atomically


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"VGPUD_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, Path("/own")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/vgpud")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache/vgpud"),
        ({}, Path.home() / ".cache/vgpud"),
    ],
)
def test_the_cache_folder_follows_the_environment(environ: dict[str, str], expected: Path) -> None:
    assert cache_dir(environ) == expected


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "content").write_text("whole")

    first = provide(tmp_path / "cache", "entry", make)
    second = provide(tmp_path / "cache", "entry", make)
    assert first == second == tmp_path / "cache/entry"
    assert (first / "content").read_text() == "whole"
    assert len(made) == 1
    assert not made[0].exists()


@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_entry_leaves_nothing_half(tmp_path: Path, interruption: BaseException) -> None:
    def make(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise interruption

    with pytest.raises(type(interruption)):
        provide(tmp_path, "entry", make)
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_what_a_killed_run_left_behind_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".entry.new-abc"
    stale.mkdir()
    (stale / "content").write_text("half")
    provide(tmp_path, "entry", lambda folder: (folder / "content").touch())
    assert not stale.exists()


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), path.open("a") as second, pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("a") as second:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder/file"
    write_atomically(path, "first")
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]

"""Who has the lock runs, and the number in the file is for people only."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from server.instances.errors import InstanceError
from server.instances.pid_file import held, holder
from tests.server.instances.command import held_by_another


def test_the_kernel_tells_who_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held_by_another(path) as pid:
        assert holder(path) == pid
        assert path.read_text() == f"{pid}\n"
    assert holder(path) is None


def test_a_number_without_a_lock_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")
    assert holder(path) is None


def test_a_number_that_is_not_the_holders_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held_by_another(path) as pid:
        path.write_text("1\n")
        assert holder(path) == pid


def test_a_file_that_is_missing_is_held_by_nobody(tmp_path: Path) -> None:
    assert holder(tmp_path / "no" / "pid") is None


def test_one_process_has_the_file_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held_by_another(path) as pid:
        with (
            pytest.raises(InstanceError, match=f"it is running already, as process {pid}; stop it first"),
            held(path),
        ):
            pass
        assert path.read_text() == f"{pid}\n"
    with held(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_what_was_written_before_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("12345678901234567890\n" * 3)
    with held(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_that_was_replaced_before_it_was_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pid"
    opened, open_file = [], os.open

    def open_and_lose(name: Path, flags: int, mode: int = 0o777) -> int:
        fd = open_file(name, flags, mode)
        opened.append(fd)
        if len(opened) == 1:
            path.unlink()
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    with held(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert len(opened) == 2


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Who could put it there could have any other locked file taken for that of a server, and its holder stopped."""
    with held_by_another(tmp_path / "other"):
        (tmp_path / "pid").symlink_to(tmp_path / "other")
        with pytest.raises(InstanceError, match="pid: "):
            holder(tmp_path / "pid")
        with pytest.raises(InstanceError, match="remove it"), held(tmp_path / "pid"):
            pass


def test_a_pipe_is_no_pid_file_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    with pytest.raises(InstanceError, match="not a file; remove it"):
        holder(tmp_path / "pid")
    with pytest.raises(InstanceError, match="not a file; remove it"), held(tmp_path / "pid"):
        pass


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as where the disk is full
    try:
        with pytest.raises(InstanceError, match=f"^{tmp_path}/pid: File too large"), held(tmp_path / "pid"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert holder(tmp_path / "pid") is None

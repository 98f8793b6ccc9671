"""Which folders are memory."""

import os
from pathlib import Path

import pytest

from server.launch import memory_folder
from server.launch.memory_folder import file_system_in_memory, is_folder


def test_a_folder_on_tmpfs_is_in_memory() -> None:
    assert file_system_in_memory("/dev/shm")


@pytest.mark.parametrize("path", ["/proc", "/no/such/folder", "/dev/null"])
def test_anything_else_is_not(path: str) -> None:
    assert not file_system_in_memory(path)


@pytest.mark.parametrize(("kind", "in_memory"), [("hugetlbfs", True), ("ramfs", True), ("ext4", False)])
def test_the_file_system_is_that_of_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, in_memory: bool
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:999 / / rw shared:1 - tmpfs none rw\n"
        f"23 1 {os.major(device)}:{os.minor(device)} / /a rw,relatime shared:1 master:2 - {kind} none rw\n"
    )
    monkeypatch.setattr(memory_folder, "_MOUNTS", mounts)
    assert file_system_in_memory(str(tmp_path)) is in_memory


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    assert is_folder(str(tmp_path))
    assert not is_folder(str(tmp_path / "guest-memory"))

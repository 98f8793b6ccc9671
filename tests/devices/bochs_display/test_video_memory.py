"""The framebuffer's file: what a client can do with its own fd of it, and what is left when the device is gone."""

import errno
import fcntl
import gc
import os

import pytest

from devices.bochs_display import BochsDisplay
from devices.bochs_display.video_memory import VideoMemory
from tests.devices.bochs_display.driver import VRAM, Driver
from tests.fds import open_fds

SIZE = 4 << 20


def allocated(fd: int) -> int:
    """Bytes of the host's memory that a file takes."""
    return os.fstat(fd).st_blocks * 512


@pytest.mark.parametrize("size", [0, 4096, SIZE - 1, SIZE + 1, 1 << 40])
def test_a_client_cannot_change_the_size_of_the_framebuffer(driver: Driver, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(driver.fd, size)
    assert os.fstat(driver.fd).st_size == SIZE


def test_a_client_cannot_forbid_the_device_to_write(driver: Driver) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(driver.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_what_a_client_does_to_its_file_description_is_its_own_affair(driver: Driver) -> None:
    fcntl.fcntl(driver.fd, fcntl.F_SETFL, os.O_APPEND)
    os.lseek(driver.fd, 12345, os.SEEK_SET)
    driver.write(8, 0x11223344, 4, VRAM)
    assert driver.read(8, 4, VRAM) == 0x11223344
    assert os.pread(driver.fd, 4, 8) == bytes.fromhex("44332211")
    driver.device.reset()
    assert driver.read(8, 4, VRAM) == 0


def test_memory_that_nobody_wrote_to_is_not_there() -> None:
    memory = VideoMemory(256 << 20)
    assert memory.read(0, 4096) == bytes(4096)
    memory.clear()
    assert allocated(memory.shared_fd) == 0
    memory.close()


def test_clearing_takes_all_that_was_written_wherever_it_is() -> None:
    memory = VideoMemory(SIZE)
    places = (0, 4095, 5 * 4096, (2 << 20) - 1, SIZE - 3)
    for at in places:
        memory.write(at, memoryview(b"abc"))
    memory.write(3 << 20, memoryview(b"x" * (1 << 19)))
    before = allocated(memory.shared_fd)
    memory.clear()
    assert memory.read(0, SIZE) == bytes(SIZE)
    assert allocated(memory.shared_fd) == before
    memory.close()


def test_a_device_that_is_closed_gives_back_its_fds_once() -> None:
    before = open_fds()
    device = BochsDisplay()
    assert open_fds() == before + 2
    device.close()
    assert open_fds() == before
    with open(os.devnull) as other, open(os.devnull) as another:  # noqa: PTH123 - they take the fds' numbers
        device.close()
        assert os.fstat(other.fileno()).st_rdev == os.fstat(another.fileno()).st_rdev
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            device.region_read(VRAM, 0, 4)


def test_a_device_that_is_dropped_gives_back_its_fds() -> None:
    gc.collect()
    before = open_fds()
    names = BochsDisplay().register_name
    assert names(VRAM, 0) == "framebuffer"
    del names
    gc.collect()
    assert open_fds() == before


def test_a_framebuffer_that_cannot_be_made_leaves_no_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    before = open_fds()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        with pytest.raises(OSError, match="Too many open files"):
            VideoMemory(SIZE)
    assert open_fds() == before

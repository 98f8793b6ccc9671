"""What a server has said when it does not start."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from server.child_server.errors import ServerStartError
from server.child_server.output import ServerOutput, logged_output, unread_output
from server.one_line import LONGEST_REASON
from tests.fds import open_fds

SECONDS = 120
OPEN_LOG = """
import sys
from pathlib import Path
from server.child_server.errors import ServerStartError
from server.child_server.output import logged_output

try:
    with logged_output(Path(sys.argv[1])):
        print("opened")
except ServerStartError as error:
    print(error)
"""


@pytest.fixture(params=["pipe", "file"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "pipe":
        return None
    path = tmp_path / "log"
    path.write_text("vgpud: said by another one\n")
    return path


def output_to(log: Path | None) -> AbstractContextManager[ServerOutput]:
    return unread_output() if log is None else logged_output(log)


def test_the_last_line_is_the_reason_without_the_name_of_the_program(log: Path | None) -> None:
    before = open_fds()
    with output_to(log) as output:
        os.write(output.write_fd, b"listening\nvgpud: \xffno \x1b[31mway\n\n")
        assert output.last_line() == "\ufffdno [31mway"
    assert open_fds() == before


def test_who_said_nothing_is_not_quoted_with_the_words_of_another(log: Path | None) -> None:
    with output_to(log) as output:
        assert output.last_line() == ""


def test_a_reason_is_not_without_end(log: Path | None) -> None:
    with output_to(log) as output:
        os.write(output.write_fd, b"x" * 5000)
        assert len(output.last_line() or "") == LONGEST_REASON + len("...")


def test_what_nobody_reads_does_not_block_the_server() -> None:
    with unread_output() as output:
        assert os.write(output.write_fd, bytes(1 << 20)) < 1 << 20
        with pytest.raises(BlockingIOError):
            os.write(output.write_fd, b"x")


def test_a_log_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for line in (b"first\n", b"second\n"):
        with output_to(log) as output:
            os.write(output.write_fd, line)
    assert log.read_bytes() == b"first\nsecond\n"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=f"--log {tmp_path}: Is a directory"), logged_output(tmp_path):
        pass


def test_a_log_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with logged_output(log) as output:
            os.write(output.write_fd, b"vgpud: no way\n")
            assert output.last_line() is None
            assert os.get_blocking(output.write_fd)
        assert os.read(reader, 100) == b"vgpud: no way\n"
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


def test_a_log_that_may_only_be_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def refuse_to_read(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied")  # which root would never see
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse_to_read)
    with logged_output(tmp_path / "log") as output:
        os.write(output.write_fd, b"vgpud: no way\n")
        assert output.last_line() is None


def test_a_pipe_that_nobody_reads_is_named_with_the_fix_and_not_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    command = [sys.executable, "-c", OPEN_LOG, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout == f"--log {log}: a pipe that nobody reads; start its reader first, or name a file\n"


def test_a_socket_is_no_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(log))
        with (
            pytest.raises(ServerStartError, match=f"^--log {log}: No such device or address$"),
            logged_output(log),
        ):
            pass

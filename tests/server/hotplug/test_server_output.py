"""What a server has said when it does not start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.hotplug.errors import LONGEST_REASON, HotplugError
from server.hotplug.server_output import server_output
from tests.fds import open_fds


@pytest.fixture(params=["pipe", "file"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "pipe":
        return None
    path = tmp_path / "log"
    path.write_text("vgpud: said by another one\n")
    return path


def test_the_last_line_is_the_reason_without_the_name_of_the_program(log: Path | None) -> None:
    before = open_fds()
    with server_output(log) as output:
        os.write(output.write_fd, b"listening\nvgpud: \xffno \x1b[31mway\n\n")
        assert output.last_line() == "\ufffdno [31mway"
    assert open_fds() == before


def test_who_said_nothing_is_not_quoted_with_the_words_of_another(log: Path | None) -> None:
    with server_output(log) as output:
        assert output.last_line() == ""


def test_a_reason_is_not_without_end(log: Path | None) -> None:
    with server_output(log) as output:
        os.write(output.write_fd, b"x" * 5000)
        assert len(output.last_line()) == LONGEST_REASON + len("...")


def test_what_nobody_reads_does_not_block_the_server() -> None:
    with server_output(None) as output:
        assert os.write(output.write_fd, bytes(1 << 20)) < 1 << 20
        with pytest.raises(BlockingIOError):
            os.write(output.write_fd, b"x")


def test_a_log_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for line in (b"first\n", b"second\n"):
        with server_output(log) as output:
            os.write(output.write_fd, line)
    assert log.read_bytes() == b"first\nsecond\n"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(HotplugError, match=f"--log {tmp_path}: Is a directory"), server_output(tmp_path):
        pass

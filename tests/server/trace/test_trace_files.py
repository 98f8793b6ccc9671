"""What a trace is read from: files, pipes, standard input; and what is none."""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
from pathlib import Path

import pytest

from protocol import HEADER
from server.cli import main
from server.trace import trace_files
from server.trace.reader import TracedMessage, TraceReader
from tests.server.test_command_line import SECONDS, VGPUD

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

BOOT = Path(__file__).parents[2] / "traces" / "boot.pcapng"


def show(path: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["trace", "show", "--events", str(path)])
    said = capsys.readouterr()
    return status, said.out, said.err


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """One line on standard error, which names the file."""
    status, out, err = show(path, capsys)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"vgpud: {path}: ")
    return err


def piped(path: Path, data: bytes) -> threading.Thread:
    """Write to a named pipe, which is made, as soon as somebody reads it."""
    os.mkfifo(path)

    def write() -> None:
        try:
            path.write_bytes(data)
        except BrokenPipeError:
            return  # who reads has seen enough

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = piped(tmp_path / "pipe", BOOT.read_bytes())
    assert show(tmp_path / "pipe", capsys) == show(BOOT, capsys)
    writer.join(SECONDS)


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_standard_input_is_read(kind: str) -> None:
    command = [*VGPUD, "trace", "show", "-"]
    if kind == "file":
        with BOOT.open("rb") as trace:
            done = subprocess.run(command, stdin=trace, capture_output=True, timeout=SECONDS, check=True)
    else:
        done = subprocess.run(
            command, input=BOOT.read_bytes(), capture_output=True, timeout=SECONDS, check=True
        )
    by_name = subprocess.run([*command[:-1], str(BOOT)], capture_output=True, timeout=SECONDS, check=True)
    assert done.stdout == by_name.stdout
    assert (done.stderr, len(by_name.stdout) > 1000) == (b"", True)


def test_of_what_is_no_trace_a_pipe_gives_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = piped(tmp_path / "pipe", b"text" * (1 << 20))
    assert "not a pcapng file" in refusal(tmp_path / "pipe", capsys)
    writer.join(SECONDS)
    assert "not a pcapng file" in refusal(Path("/dev/zero"), capsys)


def test_a_pipe_is_not_read_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_files, "MAX_PIPED", 64 << 10)
    writer = piped(tmp_path / "pipe", BOOT.read_bytes())
    assert "save it as a file first" in refusal(tmp_path / "pipe", capsys)
    writer.join(SECONDS)


def test_a_compressed_trace_is_told_from_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boot.pcapng.gz"
    path.write_bytes(gzip.compress(BOOT.read_bytes()))
    assert "is compressed: give what gunzip makes of it" in refusal(path, capsys)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))  # RFC 8878, section 3.1.1
    assert "unzstd" in refusal(path, capsys)


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    status, out, err = show(tmp_path / "empty", capsys)
    assert (status, out) == (0, "")
    assert (
        err == f"vgpud: {tmp_path / 'empty'}: empty: nothing was recorded, or nothing has been written yet\n"
    )


def test_a_length_that_is_damaged_is_not_taken_for_a_file_that_was_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TraceReader(BOOT) as reader:
        message = next(one for one in reader if isinstance(one, TracedMessage) and one.number == 100)
    data = bytearray(BOOT.read_bytes())
    block = data.index(HEADER.pack(*message.header) + message.payload) - 28  # section 4.3 of the draft
    data[block + 6] ^= 0x10  # 1 MiB more than there is
    path = tmp_path / "damaged"
    path.write_bytes(data)
    status, out, err = show(path, capsys)
    assert (status, err.startswith(f"vgpud: {path}: damaged at byte {block}: ")) == (1, True)
    assert out.splitlines()[-1].split()[0] != "100"


def test_a_folder_or_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Is a directory" in refusal(tmp_path, capsys)
    assert "No such file" in refusal(tmp_path / "nowhere", capsys)

"""``vgpud trace show --follow`` as its users meet it: with recorders and pipes, from the first line to its end."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import IO, BinaryIO

import pytest

from protocol import Version, encode_request
from protocol.trace import Access, TraceError
from server.cli import main
from server.trace.output import pause
from server.trace.reader import Traced, TracedEvents, TraceReader
from server.trace.show import follow
from server.trace.show import piped as piped_module
from server.trace.show.piped import PipeReader
from tests.server.test_command_line import SECONDS, VGPUD, greet, serving
from tests.server.trace.proxy.test_command import recording, started
from tests.server.trace.show.following import Writer, piped
from tests.server.trace.showing import show
from tests.server.trace.test_recorder import IN, PAGE, message_of

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

BOOT = Path(__file__).parents[3] / "traces" / "boot.pcapng"


class Follower:
    """A running command, whose lines are taken as they come."""

    def __init__(self, file: str | Path, stdin: BinaryIO | None) -> None:
        command = [*VGPUD, "trace", "show", "--follow", str(file)]
        # Or Python itself would get each line out at once.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self._rest = b""

    def lines(self, count: int) -> list[str]:
        """The next lines, which are there although the command goes on."""
        end = time.monotonic() + SECONDS
        while self._rest.count(b"\n") < count:
            assert select.select([self.stdout], [], [], max(end - time.monotonic(), 0))[0], self._rest
            piece = os.read(self.stdout.fileno(), 1 << 16)
            assert piece, self._rest
            self._rest += piece
        *lines, self._rest = self._rest.split(b"\n", count)
        return [line.decode() for line in lines]

    def end(self) -> tuple[int, str, str]:
        """Its exit status, what else it printed, and what it complained about."""
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, (self._rest + out).decode(), err.decode()


@contextmanager
def following(file: str | Path, stdin: BinaryIO | None = None) -> Iterator[Follower]:
    follower = Follower(file, stdin)
    try:
        yield follower
    finally:
        follower.process.kill()
        follower.process.wait()
        for stream in (follower.process.stdout, follower.process.stderr):
            if stream is not None:
                stream.close()


def words(lines: list[str]) -> list[str]:
    """What lines begin with, after the number and the time."""
    return [" ".join(line.split()[2:4]) for line in lines]


def test_messages_of_a_server_are_shown_while_it_serves_and_until_it_ends(tmp_path: Path) -> None:
    trace, device = tmp_path / "trace", tmp_path / "device"
    with (
        serving("--socket-path", str(device), "--trace", str(trace)) as server,
        following(trace) as follower,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(os.fspath(device))
        client.sendall(encode_request(3, Version(0, 0)))
        session, *messages = follower.lines(3)
        assert session.startswith("session 1: recorded by vgpud serve")
        assert words(messages) == ["-> VERSION", "<- VERSION"]
        client.close()
        greet(device)
        session, *messages = follower.lines(3)
        assert session.startswith("session 2: ")
        assert words(messages) == ["-> VERSION", "<- VERSION"]
        server.terminate()
        assert follower.end() == (0, "", "")


def test_a_proxy_may_record_to_a_pipe_that_is_followed(tmp_path: Path) -> None:
    pipe = tmp_path / "trace"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # so that the proxy finds one, however fast it is
    with serving("--socket-path", str(tmp_path / "device")), following(pipe) as follower:
        with started(*recording(tmp_path)) as proxy:
            greet(tmp_path / "proxy")
            assert words(follower.lines(3)[1:]) == ["-> VERSION", "<- VERSION"]
            os.close(reader)
            proxy.terminate()
            proxy.wait(SECONDS)
        assert follower.end() == (0, "", "")


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with (
        serving("--socket-path", str(tmp_path / "device"), "--trace", str(tmp_path / "trace")),
        following(tmp_path / "trace") as follower,
    ):
        greet(tmp_path / "device")
        follower.lines(3)
        follower.process.send_signal(signal.SIGINT)
        assert follower.end() == (130, "", "vgpud: interrupted\n")


def test_it_ends_when_nobody_reads_its_output_though_nothing_more_is_recorded(tmp_path: Path) -> None:
    with closing(Writer(tmp_path / "trace")) as writer:
        writer.write()
        with following(tmp_path / "trace") as follower:
            follower.lines(2)
            follower.stdout.close()
            assert follower.process.wait(SECONDS) == 0


def test_it_ends_when_nobody_reads_its_output_though_nothing_more_comes_through_the_pipe() -> None:
    reader, target = os.pipe()
    with (
        os.fdopen(reader, "rb") as source,
        os.fdopen(target, "wb", buffering=0) as pipe,
        following("-", stdin=source) as follower,
    ):
        pipe.write(BOOT.read_bytes()[:4000])
        follower.lines(2)
        follower.stdout.close()
        assert follower.process.wait(SECONDS) == 0


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A trace that nobody records to."""
    return Path(shutil.copy(BOOT, tmp_path / "trace"))


@pytest.fixture
def recorded(ended: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trace whose recorder leaves when all that is there has been read."""
    with ended.open("rb") as recorder:
        fcntl.flock(recorder, fcntl.LOCK_EX)
        monkeypatch.setattr(follow, "pause", lambda _output: fcntl.flock(recorder, fcntl.LOCK_UN))
        yield ended


@pytest.fixture
def pipe() -> Iterator[Path]:
    """A trace that is written to a pipe."""
    with piped(BOOT.read_bytes()) as path:
        yield path


@pytest.mark.parametrize("kind", ["ended", "recorded", "pipe"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--events"],
        ["--events", "--json"],
        ["--absolute"],
        ["--command", "DMA_MAP"],
        ["--region", "BAR4"],
        ["--register", "common.*"],
        ["--errors"],
        ["--since", "1"],
        ["--session", "1"],
    ],
    ids=" ".join,
)
def test_what_is_followed_is_what_is_shown(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str, options: list[str]
) -> None:
    path = request.getfixturevalue(kind)
    followed = show(path, capsys, "--follow", *options)
    assert followed == show(BOOT, capsys, *options)
    assert followed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stats"], "--follow goes on until the recording ends: it does not go with --stats"),
        (["--until", "0"], "--follow goes on until the recording ends: it does not go with --until"),
        (["--session", "2"], "there is no session 2; the trace has 1"),
        (["--register", "no.such"], "no message accesses a register 'no.such'"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(
    recorded: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["trace", "show", "--follow", *options, str(recorded)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vgpud: {says}")
    assert said.count("\n") == 1


def test_a_file_that_is_not_there_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "show", "--follow", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"vgpud: {tmp_path}/none: No such file or directory\n"


@pytest.mark.parametrize("size", [0, 100])
def test_a_pipe_that_ends_too_early_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source:
        with os.fdopen(writer, "wb") as target:
            target.write(BOOT.read_bytes()[:size])
        assert main(["trace", "show", "--follow", f"/dev/fd/{source.fileno()}"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert ("empty: nothing was recorded" if size == 0 else "cut short: its last") in said.err


def test_what_came_through_a_pipe_is_kept_as_long_as_promised_and_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each message the device reads a new page, the one of three messages ago, and the one of ten."""
    files: list[IO[bytes]] = []

    def temporary_file(buffering: int) -> IO[bytes]:
        files.append(TemporaryFile(buffering=buffering))  # noqa: SIM115 - the reader closes it
        return files[-1]

    monkeypatch.setattr(piped_module, "tempfile", SimpleNamespace(TemporaryFile=temporary_file))
    monkeypatch.setattr(piped_module, "MAX_KEPT", 10 * PAGE)
    monkeypatch.setattr(piped_module, "PIECE", 1000)
    pages = [hashlib.shake_128(bytes([number])).digest(PAGE) for number in range(60)]
    with closing(Writer(tmp_path / "whole")) as writer:
        for number in range(10, 60):
            writer.recorder.message(IN, message_of(number, 30))
            for ago in (0, 3, 10):
                writer.recorder.read(0, pages[number - ago])
        writer.recorder.flush()
    found: list[bytes | None] = []
    with (
        Path(os.devnull).open("w") as nowhere,
        piped((tmp_path / "whole").read_bytes()) as pipe,
        PipeReader(pipe, nowhere, contents=True) as trace,
    ):
        for one in trace:
            found += _data(trace, one)
            assert sum(os.fstat(file.fileno()).st_size for file in files) <= 10 * PAGE

    assert found[30:] == [
        data for number in range(20, 60) for data in (pages[number], pages[number - 3], None)
    ]


def _data(reader: TraceReader, one: Traced) -> Iterator[bytes | None]:
    for event in one.events if isinstance(one, TracedEvents) else ():
        assert isinstance(event, Access)
        try:
            yield reader.data(event)
        except TraceError:
            yield None


def test_waiting_ends_with_the_reader_of_the_output_or_with_something_to_read() -> None:
    reader, writer = os.pipe()
    source, sender = os.pipe()
    with (
        os.fdopen(writer, "w") as output,
        os.fdopen(sender, "wb", buffering=0) as pipe,
        os.fdopen(source, "rb") as readable,
    ):
        pause(output)
        pipe.write(b"x")
        pause(output, readable.fileno())
        os.close(reader)
        for read_from in (None, readable.fileno()):
            with pytest.raises(BrokenPipeError):
                pause(output, read_from)

"""How commands end that are interrupted, or whose output goes nowhere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import trio

from server.__main__ import main
from server.exit_status import exit_status_of
from server.run_async import run_async
from tests.server.test_command_line import SECONDS, VGPUD

ROOT = Path(__file__).parents[2]
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""
EARLY = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "server.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
runpy.run_module("server", run_name="__main__")
"""

LISTINGS = (["devices"], ["devices", "--json"], ["types"], ["libvirt-xml", "--socket-path", "/x"])
HELP = ["--help"]


def finish(command: list[str], stdout: int, unbuffered: str = "") -> tuple[int, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stderr


@contextmanager
def nobody_reads() -> Iterator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("command", [*LISTINGS, HELP])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(command: list[str], unbuffered: str) -> None:
    with nobody_reads() as pipe:
        assert finish([*VGPUD, *command], pipe, unbuffered) == (0, "")


def test_a_command_that_fails_does_so_whether_or_not_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    with nobody_reads() as pipe:
        status, said = finish([*VGPUD, "list", "--json", "--config-dir", str(tmp_path)], pipe)
    assert (status, said.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [*((command, unbuffered) for command in LISTINGS for unbuffered in ("", "1")), (HELP, "")],
)
def test_output_that_cannot_be_written_is_one_line(command: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        status, said = finish([*VGPUD, *command], full.fileno(), unbuffered)
    assert status == 1
    assert said.startswith("vgpud: ")
    assert said.endswith("No space left on device\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("closed", "says"), [(">&-", "no server answers there"), ("<&- >&- 2>&-", "")])
def test_streams_that_are_closed_are_no_trouble(tmp_path: Path, closed: str, says: str) -> None:
    closing = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    assert finish([*closing, *VGPUD, "devices"], subprocess.PIPE) == (0, "")
    status, said = finish([*closing, *VGPUD, "status", "--control", str(tmp_path / "x")], subprocess.PIPE)
    assert status == 1
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("options", [["show"], ["show", "--follow"], ["diff", os.devnull]])
def test_a_standard_input_that_is_closed_is_an_empty_one(options: list[str]) -> None:
    command = [*VGPUD, "trace", *options, "-"]
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    empty = ["sh", "-c", 'exec "$@" </dev/null', "sh", *command]
    assert finish(closed, subprocess.DEVNULL) == finish(empty, subprocess.DEVNULL)


def test_a_reason_that_nobody_reads_is_no_other_status(tmp_path: Path) -> None:
    with nobody_reads() as pipe:
        command = [*VGPUD, "status", "--control", str(tmp_path / "x")]
        assert subprocess.run(command, stdout=pipe, stderr=pipe, timeout=SECONDS, check=False).returncode == 1


def test_a_broken_pipe_to_somebody_else_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> int:
        raise BrokenPipeError(32, os.strerror(32))

    assert exit_status_of(write) == 1
    assert capsys.readouterr().err == "vgpud: Broken pipe\n"


def _interrupted() -> int:
    raise KeyboardInterrupt


def _interrupted_in_a_task() -> int:
    async def task() -> None:
        raise KeyboardInterrupt

    async def tasks() -> int:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(task)
            inner.start_soon(trio.sleep_forever)
        return 0

    return trio.run(tasks)


@pytest.mark.parametrize("command", [_interrupted, _interrupted_in_a_task])
def test_an_interrupted_command_says_so_in_one_line(
    command: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status_of(command) == INTERRUPTED
    assert capsys.readouterr().err == "vgpud: interrupted\n"


def test_what_is_a_fault_of_ours_is_not_hidden_by_an_interruption() -> None:
    def command() -> int:
        raise BaseExceptionGroup("both", [KeyboardInterrupt(), ZeroDivisionError()])

    with pytest.raises(BaseExceptionGroup):
        exit_status_of(command)


def test_ctrl_c_ends_a_command_that_waits_for_a_server(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(SECONDS)
        command = [*VGPUD, "status", "--control", str(path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            accepted, _ = listener.accept()
            with accepted:
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (INTERRUPTED, "vgpud: interrupted\n")


def test_ctrl_c_reaches_a_command_where_it_waits_and_nowhere_else() -> None:
    reached: list[str] = []

    async def command() -> int:
        begun = trio.sleep_forever()  # noqa: ASYNC105 - that is what is tried
        signal.raise_signal(signal.SIGINT)
        reached.append("the await of what was begun")
        await begun
        return 0

    assert exit_status_of(lambda: run_async(command)) == INTERRUPTED
    assert reached == ["the await of what was begun"]


def test_ctrl_c_while_the_program_is_still_loading_ends_it_without_a_word() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_command_finds_interruptions_as_whoever_started_it_wants_them(
    handler: signal._HANDLER, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[object] = []

    def command() -> int:
        found.append(signal.getsignal(signal.SIGINT))
        return 0

    monkeypatch.setattr("server.cli.main", command)
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert main() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [handler]


def test_the_programs_that_are_installed_are_there() -> None:
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert programs["vgpud"] == "server.__main__:main"
    for program in programs.values():
        module, _, function = program.partition(":")
        assert callable(getattr(import_module(module), function))

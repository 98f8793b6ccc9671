"""A server is ready when it says so, and not when it says anything else."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.child_server.errors import ServerStartError
from server.child_server.readiness import Outcome, Readiness, listen_for_readiness, why_not_ready
from server.notify import notify_ready
from tests.fds import open_fds

SECONDS = 120.0
READY_BESIDE_OTHERS = b"STATUS=up\nREADY=1\nMAINPID=5"
"""The form is that of sd_notify(3): assignments, one per line."""


class Child:
    """A process that ends when it is told to, and the socket by which it would say that it is ready."""

    def __init__(self, readiness: Readiness, program: subprocess.Popen[bytes]) -> None:
        self.readiness = readiness
        self.pidfd = os.pidfd_open(program.pid)
        self.program = program
        self.stop, self._stopper = os.pipe()

    def says(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.sendto(message, self.readiness.address)

    def ends(self) -> None:
        self.program.communicate(timeout=SECONDS)

    def interrupted(self) -> None:
        os.write(self._stopper, b"x")

    async def outcome(self, loop: bool, seconds: float = SECONDS) -> Outcome:
        if loop:
            return await self.readiness.wait(self.pidfd, seconds)
        return self.readiness.wait_without_loop(self.pidfd, self.stop, seconds)

    def close(self) -> None:
        for fd in (self.pidfd, self.stop, self._stopper):
            os.close(fd)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with (
        listen_for_readiness(tmp_path) as readiness,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program,
    ):
        child = Child(readiness, program)
        yield child
        child.close()
        program.communicate()


with_and_without_loop = pytest.mark.parametrize("loop", [True, False], ids=["trio", "poll"])


@with_and_without_loop
async def test_a_server_is_ready_when_it_says_so(
    child: Child, loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", child.readiness.address)
    notify_ready()
    before = open_fds()
    assert await child.outcome(loop) is Outcome.READY
    assert open_fds() == before


@with_and_without_loop
async def test_readiness_may_be_one_of_several_things_that_are_said(child: Child, loop: bool) -> None:
    child.says(READY_BESIDE_OTHERS)
    assert await child.outcome(loop) is Outcome.READY


@pytest.mark.parametrize("message", [b"STATUS=starting", b"READY=0", b"STATUS=READY=1", b""])
@with_and_without_loop
async def test_what_a_server_says_before_it_is_ready_is_passed_over(
    child: Child, loop: bool, message: bytes
) -> None:
    child.says(message)
    assert child.readiness.outcome(child.pidfd) is None
    child.says(message)
    assert await child.outcome(loop, 0.01) is Outcome.LATE
    child.says(message)
    child.says(b"READY=1")
    assert await child.outcome(loop) is Outcome.READY


@pytest.mark.parametrize("message", [None, b"STATUS=starting", b"READY=1"])
@with_and_without_loop
async def test_a_server_that_has_ended_is_not_ready_whatever_it_has_said(
    child: Child, loop: bool, message: bytes | None
) -> None:
    if message is not None:
        child.says(message)
    child.ends()
    assert await child.outcome(loop) is Outcome.ENDED


@with_and_without_loop
async def test_a_server_is_not_waited_for_without_end(child: Child, loop: bool) -> None:
    assert await child.outcome(loop, 0.01) is Outcome.LATE


@pytest.mark.parametrize("ready", [True, False])
@with_and_without_loop
async def test_who_looks_too_late_sees_what_has_come_of_it(child: Child, loop: bool, ready: bool) -> None:
    """As who was stopped by a Ctrl-Z meanwhile."""
    if ready:
        child.says(b"READY=1")
    else:
        child.ends()
    assert await child.outcome(loop, 0.0) is (Outcome.READY if ready else Outcome.ENDED)


def test_who_looks_too_late_can_be_interrupted(child: Child) -> None:
    child.interrupted()
    child.says(b"READY=1")
    assert child.readiness.wait_without_loop(child.pidfd, child.stop, 0.0) is Outcome.INTERRUPTED


def test_who_waits_without_trio_can_be_interrupted(child: Child) -> None:
    child.interrupted()
    child.says(b"READY=1")
    assert child.readiness.wait_without_loop(child.pidfd, child.stop) is Outcome.INTERRUPTED


def test_a_folder_whose_name_is_too_long_is_named_with_the_fix(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with (
        pytest.raises(ServerStartError, match=f"^{folder}/ready.sock: .*; set TMPDIR to another folder"),
        listen_for_readiness(folder),
    ):
        pass


@pytest.mark.parametrize(
    ("outcome", "last_line", "says"),
    [
        (Outcome.ENDED, "no such device", "no such device"),
        (Outcome.ENDED, "", "it has ended without a word"),
        (Outcome.ENDED, None, "it has ended; its log says why"),
        (Outcome.LATE, "no such device", "it does not listen after 60 s"),
    ],
)
def test_the_reason_is_what_the_server_has_said_where_it_has_ended(
    outcome: Outcome, last_line: str | None, says: str
) -> None:
    assert why_not_ready(outcome, last_line) == says

"""Child processes, and what ends them."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import trio

from server.child_server.lifeline import end_with_lifeline, lifeline
from server.launch import process
from server.launch.process import ChildProcess, start
from server.parent_death import end_with_parent
from tests.fds import open_fds
from tests.server.launch.fake_qemu import SECONDS

PAUSE = [sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()",
]
GRANDPARENT = f"""
import os, subprocess
from server.launch.process import start
from server.parent_death import end_with_parent
parent = os.getpid()
start({PAUSE!r}, lambda: end_with_parent(parent), stdin=subprocess.DEVNULL)
os.read(0, 1)
"""


def nothing() -> None:
    pass


class Started:
    """A program that has said that it is ready."""

    def __init__(self, command: list[str], prepare: Callable[[], None] = nothing, **options: object) -> None:
        reading, writing = os.pipe()
        self.process = start(command, prepare, stdout=writing, **options)  # type: ignore[arg-type]
        os.close(writing)
        with os.fdopen(reading) as said:
            assert said.readline() == "ready\n"


@pytest.mark.parametrize(
    ("code", "status"), [("exit(0)", 0), ("exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)]
)
async def test_the_status_is_that_of_a_shell(code: str, status: int) -> None:
    child = start([sys.executable, "-c", f"import os; {code}"], nothing)
    assert await child.wait() == status
    assert await child.wait() == status


async def test_several_tasks_wait_for_one_end_and_no_fd_is_left() -> None:
    before = open_fds()
    child = Started(PAUSE).process
    ends = []

    async def wait() -> None:
        ends.append(await child.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        child.send_signal(signal.SIGTERM)
    assert ends == [143] * 3
    assert open_fds() == before
    child.send_signal(signal.SIGTERM)


async def test_an_end_comes_also_in_a_cancelled_scope() -> None:
    child = Started(PAUSE).process
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await child.end() == 143


async def test_who_does_not_end_when_asked_to_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.05)
    assert await Started(STUBBORN).process.end() == 137


async def test_a_process_ends_when_all_are_gone_that_hold_its_lifeline() -> None:
    with lifeline() as (reading, writing):
        holder = Started(PAUSE, pass_fds=[writing]).process
        child = Started(PAUSE, lambda: end_with_lifeline(reading), pass_fds=[reading]).process
    assert not ended(child)
    assert await holder.end() == 143
    with trio.fail_after(SECONDS):
        assert await child.wait() == 143


def test_a_process_whose_lifeline_ends_while_it_starts_ends_too() -> None:
    to_child, to_parent = os.pipe(), os.pipe()
    with lifeline() as (reading, _):
        os.set_inheritable(reading, True)
        if (child := os.fork()) == 0:
            end_with_lifeline(reading)
            os.write(to_parent[1], b"prepared")
            os.read(to_child[0], 1)
            os.execv(PAUSE[0], PAUSE)  # noqa: S606 - this is where its own end of the lifeline is closed
        assert os.read(to_parent[0], 8) == b"prepared"
    os.write(to_child[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    for fd in (*to_child, *to_parent):
        os.close(fd)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GRANDPARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        assert select.select([parent.stdout], [], [], SECONDS)[0], "the child goes on"
        assert parent.stdout.read() == b""  # the child, which had it too, is gone


async def test_a_process_whose_parent_is_gone_already_does_not_start() -> None:
    child = start(PAUSE, lambda: end_with_parent(os.getpid()), stdout=subprocess.DEVNULL)
    assert await child.wait() == 143


def ended(child: ChildProcess) -> bool:
    pidfd = os.pidfd_open(child.pid)
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)

"""Processes that outlive the one that started them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from server.hotplug.process import PASSED, DetachedProcess, find_process
from tests.fds import open_fds

SECONDS = 120.0
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stderr.write("deaf")
sys.stderr.flush()
while True:
    signal.pause()
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def spawn(program: str, stderr: int, *arguments: str) -> DetachedProcess:
    return DetachedProcess.spawn([sys.executable, "-c", program, *arguments], dict(os.environ), stderr)


async def test_a_process_has_a_session_of_its_own_and_nothing_but_its_stderr(pipe: tuple[int, int]) -> None:
    program = (
        "import os, sys; names = [os.path.basename(os.readlink(f'/proc/self/fd/{n}')) for n in (0, 1)];"
        "sys.stderr.write(f'{os.getsid(0) == os.getpid()} {names} {len(os.listdir(\"/proc/self/fd\"))}')"
    )
    inherited = os.dup(0)
    os.set_inheritable(inherited, True)
    with spawn(program, pipe[1]) as process:
        os.close(inherited)
        assert await process.ended(SECONDS)
        await process.end(0)
    assert os.read(pipe[0], 1000) == b"True ['null', 'null'] 4"  # the three, and the folder that is listed


@pytest.mark.parametrize("is_there_already", [False, True])
async def test_a_process_has_what_it_is_passed_at_one_number(
    pipe: tuple[int, int], is_there_already: bool
) -> None:
    passed = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    kept = os.dup(PASSED) if is_there_already else None
    if kept is not None:
        os.dup2(passed, PASSED, inheritable=False)
    program = f"import os, sys; sys.stderr.write(os.readlink('/proc/self/fd/{PASSED}'))"
    try:
        command = [sys.executable, "-c", program]
        with DetachedProcess.spawn(
            command, dict(os.environ), pipe[1], PASSED if is_there_already else passed
        ) as process:
            assert await process.ended(SECONDS)
            await process.end(0)
    finally:
        os.close(passed)
        if kept is not None:
            os.dup2(kept, PASSED, inheritable=False)
            os.close(kept)
    assert os.read(pipe[0], 1000) == b"/dev/full"


async def test_a_process_is_ended_by_sigterm_and_reaped(pipe: tuple[int, int]) -> None:
    before = open_fds()
    with spawn("import time; time.sleep(1000)", pipe[1]) as process:
        assert not await process.ended(0)
        await process.end(SECONDS)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert open_fds() == before


async def test_a_process_that_ignores_sigterm_is_killed_also_while_everything_is_cancelled(
    pipe: tuple[int, int],
) -> None:
    with spawn(STUBBORN, pipe[1]) as process:
        await trio.lowlevel.wait_readable(pipe[0])
        with trio.CancelScope() as scope:
            scope.cancel()
            await process.end(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_a_process_that_has_ended_is_ended_without_complaint(pipe: tuple[int, int]) -> None:
    with spawn("", pipe[1]) as process:
        assert await process.ended(SECONDS)
        assert await process.ended(0)
        await process.end(0)
        await process.end(0)


async def test_a_process_is_found_by_its_arguments(pipe: tuple[int, int], tmp_path: Path) -> None:
    name = f"{tmp_path}/\u00fc name"
    with spawn("import os, time; os.write(2, b'x'); time.sleep(1000)", pipe[1], "-m", name) as process:
        try:
            await trio.lowlevel.wait_readable(pipe[0])  # exec has taken the arguments
            with find_process(["-m", name]) or pytest.fail("not found") as found:
                assert found.pid == process.pid
            assert find_process([name, "-m"]) is None
            assert find_process(["-m", f"{name}x"]) is None
        finally:
            await process.end(SECONDS)
    assert find_process(["-m", name]) is None

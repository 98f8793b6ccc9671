from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from server.guest.child import started


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_child_is_read_and_awaited() -> None:
    async with started(
        "child", ["sh", "-c", "echo out; echo error >&2; echo $OWN; exit 3"], {"OWN": "x"}
    ) as child:
        assert await child.wait() == 3
        await child.log.wait_for("x")
    assert child.log.lines == ["out", "error", "x"]


async def test_a_child_is_gone_when_its_block_is_left() -> None:
    async with started("child", ["sleep", "1000"]) as child:
        assert child.returncode is None
    assert child.returncode == -signal.SIGTERM
    with pytest.raises(ZeroDivisionError):
        async with started("child", ["sleep", "1000"]) as child:
            _ = 1 / 0
    assert not is_running(child.pid)


async def test_a_child_that_ignores_sigterm_is_killed(autojump_clock: trio.testing.MockClock) -> None:
    async with started("child", ["sh", "-c", "trap '' TERM; echo ready; exec sleep 1000"]) as child:
        await child.log.wait_for("ready")
    assert child.returncode == -signal.SIGKILL


async def test_a_cancelled_child_is_gone() -> None:
    with trio.CancelScope() as scope:
        async with started("child", ["sleep", "1000"]) as child:
            scope.cancel()
            await child.wait()
    assert child.returncode == -signal.SIGTERM


async def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        async with started("child", ["/nonexistent"]):
            pass


async def test_a_child_leaves_no_descriptors_behind() -> None:
    before = {entry.name for entry in os.scandir("/proc/self/fd")}
    async with started("child", ["true"]) as child:
        await child.wait()
    assert {entry.name for entry in os.scandir("/proc/self/fd")} == before


PARENT = """
import trio
from server.guest.child import started

async def main():
    async with started("child", ["sleep", "1000"]) as child:
        print(child.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_child_dies_with_its_parent() -> None:
    async with started("parent", [sys.executable, "-c", PARENT]) as parent:
        _, pid = await parent.log.wait_for(str.isdigit)
        pidfd = os.pidfd_open(int(pid))
        parent.send_signal(signal.SIGKILL)
        with trio.fail_after(120):
            await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)

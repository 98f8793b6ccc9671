"""``vgpud run`` with a real QEMU: whoever is killed, and in which order, nothing is left."""

from __future__ import annotations

import itertools
import os
import select
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from server.control_client import status
from server.socket_path import listen_at
from tests.guest.support import GuestParts
from tests.guest.test_run import SECONDS, paused, program, running
from tests.server.launch.fake_qemu import children

__all__ = ["program"]

pytestmark = pytest.mark.guest

ORDERS = [order for count in (1, 2, 3) for order in itertools.permutations(("run", "server", "qemu"), count)]
WITH_A_GUEST = [("server",), ("run", "server"), ("qemu", "run")]
RESULTS = {"run": -signal.SIGKILL, "server": 1, "qemu": 128 + signal.SIGKILL}
"""The exit status of run where one alone was killed."""
SERVER_IS_GONE = "vgpud: the server of vgpud0 ended first, with status 137; QEMU is told to end"


class Places(NamedTuple):
    """Where something could be left."""

    temporary: Path
    control: Path

    @property
    def spelling(self) -> str:
        """A machine whose name is one of the places."""
        return f"-M q35 -m 512 -name {self.control}"

    @property
    def variables(self) -> Mapping[str, str]:
        return {"TMPDIR": str(self.temporary)}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return Places(temporary, tmp_path / "control")


@contextmanager
def killed(run: int, order: tuple[str, ...], places: Places) -> Iterator[None]:
    """Kill in ``order``, and see behind the block that nothing is left."""
    pids = {"run": run}
    for pid in children(run):
        server = b"\0server.launch\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        pids["server" if server else "qemu"] = pid
    assert pids.keys() == RESULTS.keys()
    assert started_with(places) == set(pids.values())
    ends = {name: os.pidfd_open(pid) for name, pid in pids.items()}
    try:
        for name in order:
            with suppress(ProcessLookupError):  # it has ended with the one before it
                signal.pidfd_send_signal(ends[name], signal.SIGKILL)
        yield
        for end in ends.values():
            assert select.select([end], [], [], SECONDS)[0], "a process is left"
    finally:
        for end in ends.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(end, signal.SIGKILL)
            os.close(end)
    assert not started_with(places)
    assert not list(places.temporary.iterdir())
    if not {"run", "server"} <= set(order):  # nobody else knows of the control socket
        assert not places.control.exists()
    with listen_at(places.control):
        pass


def started_with(places: Places) -> set[int]:
    """The process of run, and all that it has started: each has a path of the test in its command line."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(places.control) in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_nothing_is_left_whoever_is_killed(program: Path, places: Places, order: tuple[str, ...]) -> None:
    options = ("--control", str(places.control))
    with paused(program, places.spelling, *options, variables=places.variables) as run:
        with killed(run.pid, order, places):
            result = run.wait(SECONDS)
        if len(order) == 1:
            assert result == RESULTS[order[0]]
        assert run.stderr is not None
        said = run.stderr.read()
        if order == ("server",):
            assert SERVER_IS_GONE in said


@pytest.mark.parametrize("order", WITH_A_GUEST, ids="-".join)
async def test_nothing_is_left_of_a_guest_that_runs(
    parts: GuestParts, program: Path, places: Places, order: tuple[str, ...]
) -> None:
    options = ("--control", str(places.control))
    async with running(parts, program, places.spelling, *options, variables=places.variables) as guest:
        assert (await status(places.control))["model"]["driver_ok"] is True
        with killed(guest.qemu.pid, order, places):
            result = await guest.qemu.wait()
        if len(order) == 1:
            assert result == RESULTS[order[0]]
            await guest.qemu.log.wait_for(SERVER_IS_GONE, SECONDS)

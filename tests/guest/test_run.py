"""``vgpud run`` with a real QEMU: stock guests on GPUs that were added to their command lines."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio

from server.control_client import status
from server.guest.errors import GuestError
from server.guest.machine import Machine
from server.guest.qemu import Qemu
from server.guest.run import Guest, booted
from server.guest.screen import has_colour_bars, settled
from server.launch.qemu_options import FLAGS
from tests.guest.support import GuestParts
from tests.guest.test_hotplug import vgpud
from tests.guest.test_virtual_gpu import PAGES_OF_MODE, SMPTE_TOP, top_bars
from tests.guest.virtual_gpu import PICTURE_SECONDS, show_test_pattern
from tests.server.launch.fake_qemu import children

pytestmark = pytest.mark.guest

SECONDS = 120
RUN = (sys.executable, "-m", "server", "run")
GPU = ("--gpu", "virtio-gpu,width=1024,height=768")
NUMA = (
    "-object memory-backend-ram,id=a,size=256M"
    """ -object '{"qom-type": "memory-backend-memfd", "id": "b", "size": 268435456, "share": false}'"""
    " -M q35 -m size=512M -numa node,memdev=a -numa node,memdev=b"
)


@dataclass(frozen=True, slots=True)
class SpelledMachine(Machine):
    """A machine whose type and memory are in the user's own words."""

    spelling: str = ""

    def command_line(self, qemu: Qemu, console: int, commands: int) -> list[str]:
        words = Machine.command_line(self, qemu, console, commands)
        for option in ("-machine", "-m", "-object"):
            at = words.index(option, len(qemu.argv))
            del words[at : at + 2]
        return [*words, *shlex.split(self.spelling)]


@pytest.fixture
def program(parts: GuestParts, tmp_path: Path) -> Path:
    """The QEMU of the tests as one program."""
    wrapper = tmp_path / "qemu-system-x86_64"
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in parts.qemu.env.items())
    wrapper.write_text(f'#!/bin/sh\n{variables}exec {shlex.join(parts.qemu.argv)} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@asynccontextmanager
async def running(
    parts: GuestParts,
    program: Path,
    spelling: str,
    *options: str,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Guest]:
    qemu = Qemu((*RUN, *options, "--", str(program)), parts.qemu.version, variables)
    machine = SpelledMachine(parts.kernel.image, parts.image(), parts.accel, spelling=spelling)
    async with booted(qemu, machine) as guest:
        yield guest


@contextmanager
def paused(
    program: Path, spelling: str, *options: str, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    """A machine that stands still, with QMP on its standard input and output."""
    command = [*RUN, *options, "--", str(program), "-S", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    with subprocess.Popen(
        [*command, *shlex.split(spelling)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as run:
        try:
            assert run.stdout is not None
            greeting = run.stdout.readline()
            assert greeting, run.communicate(timeout=SECONDS)
            assert asked(run, "qmp_capabilities") == {}
            yield run
        finally:
            run.kill()


def asked(run: subprocess.Popen[str], command: str, **arguments: object) -> Any:
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    run.stdin.flush()
    for line in run.stdout:
        answer = json.loads(line)
        if "event" not in answer:
            return answer.get("return", answer)
    raise AssertionError(run.communicate(timeout=SECONDS))


def test_the_options_that_take_no_value_are_those_of_qemu(program: Path) -> None:
    text = subprocess.run([program, "-help"], capture_output=True, text=True, check=True).stdout
    heads = [line.split("  ")[0] for line in text.splitlines() if line.startswith("-")]
    names = {name for head in heads for name in re.findall(r"(?:^|[ /])--?([A-Za-z][\w-]*)", head)}
    assert len(names) > 80
    for name in sorted(names):
        # whether a value is missing is looked at before any option does anything
        done = subprocess.run([program, "-version", f"-{name}"], capture_output=True, text=True, check=False)
        assert ("requires an argument" not in done.stderr) == (name in FLAGS), name


@pytest.mark.parametrize(
    ("spelling", "transport"),
    [("-M q35 -m 512", "libvfio-user"), (NUMA, "native")],
    ids=["q35-libvfio-user", "numa-native"],
)
async def test_a_stock_guest_draws_on_the_gpu_that_was_added(
    parts: GuestParts, program: Path, tmp_path: Path, spelling: str, transport: str
) -> None:
    control, log = tmp_path / "control", tmp_path / "log"
    options = (*GPU, "--control", str(control), "--transport", transport, "--log", str(log))
    async with running(parts, program, spelling, *options) as guest:
        await draws_in_shared_memory(guest, control)
        await powers_off(guest)
        assert not control.exists()
    said = log.read_text()
    assert f"transport={transport} " in said
    assert "memory_not_shared" not in said


async def test_a_gpu_without_msix_is_unplugged_from_a_machine_that_lets_it_go_without_a_port(
    parts: GuestParts, program: Path, tmp_path: Path
) -> None:
    control, qmp = tmp_path / "control", tmp_path / "qmp"
    spelling = f"-machine pc --m size=512M -mem-path /dev/shm -qmp unix:{qmp},server=on,wait=off"
    gpu = ("--gpu", f"{GPU[1]},msix=off")
    async with running(parts, program, spelling, *gpu, "--control", str(control)) as guest:
        await draws_in_shared_memory(guest, control)
        with server_of(guest.qemu.pid, "vgpud0") as server:
            assert await vgpud("detach", "--qmp", qmp) == "vgpud0: unplugged\n"
            await until_ended(server)
        await guest.check("! ls -d /dev/dri/card*")
        assert not control.exists()
        await powers_off(guest)
        assert not [line for line in guest.qemu.log.lines if line.startswith("vgpud:")]


async def draws_in_shared_memory(guest: Guest, control: Path) -> None:
    await show_test_pattern(guest)
    pattern = await settled(control, has_colour_bars, PICTURE_SECONDS)
    assert top_bars(pattern) == SMPTE_TOP
    memory = (await status(control))["client"]["memory"]
    assert memory["messages"] == 0
    assert memory["pinned_pages"] >= PAGES_OF_MODE


async def powers_off(guest: Guest) -> None:
    with pytest.raises(GuestError, match="ended"):  # the command's answer does not come
        await guest.run("poweroff -f; sleep 1000")
    with trio.fail_after(SECONDS):
        assert await guest.qemu.wait() == 0


async def test_a_guest_with_two_gpus_loses_the_one_that_is_unplugged(
    parts: GuestParts, program: Path, tmp_path: Path
) -> None:
    control, qmp = tmp_path / "control", tmp_path / "qmp"
    options = (*GPU, *GPU, "--root-port", "--control", str(control), "--transport", "libvfio-user")
    monitor = f"-qmp unix:{qmp},server=on,wait=off"
    async with running(parts, program, f"-M q35 -m 512 {monitor}", *options) as guest:
        cards = "ls -d /sys/class/drm/card?"
        assert len((await guest.check(cards)).split()) == 2
        for number in range(2):
            state = await status(tmp_path / f"control-{number}")
            assert state["model"]["driver_ok"] is True
        with server_of(guest.qemu.pid, "vgpud1") as server:
            assert await vgpud("detach", "--qmp", qmp, "--id", "vgpud1") == "vgpud1: unplugged\n"
            await until_ended(server)
        assert len((await guest.check(cards)).split()) == 1
        await show_test_pattern(guest)
        pattern = await settled(tmp_path / "control-0", has_colour_bars, PICTURE_SECONDS)
        assert top_bars(pattern) == SMPTE_TOP
        await powers_off(guest)


@contextmanager
def server_of(run: int, name: str) -> Iterator[int]:
    """A pidfd of the server that ``run`` has for a GPU."""
    command = f"\0server.launch\0{name}\0".encode()
    (pid,) = (pid for pid in children(run) if command in Path(f"/proc/{pid}/cmdline").read_bytes())
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


async def until_ended(pidfd: int) -> None:
    with trio.fail_after(SECONDS):
        await trio.lowlevel.wait_readable(pidfd)


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "-M q35 -m 1.5G",
        "-m 1000001b",
        "-m 256,slots=2,maxmem=1G --machine pc,memory.size=64M",
        "-M q35,memory.size=0x10000000 -mem-prealloc",
        "-M microvm,pcie=on -m 256",
        "-mem-path /dev/shm -m 64",
        "-M q35,memory-backend=m -object memory-backend-ram,id=m,size=128M,prealloc=on,merge=off,dump=off",
        "--object memory-backend-ram,id=m,size=128M,reserve=off,share=off -M pc -M memory-backend=m",
        """-object '{"qom-type": "memory-backend-ram", "id": "m", "size": 134217728}' -M memory-backend=m""",
        "-object memory-backend-file,id=m,size=128M,mem-path=/dev/shm -M q35,memory-backend=m",
        "-object memory-backend-shm,id=m,size=128M -M q35,memory-backend=m",
        "-M pc -device pxb,id=px,bus=pci.0,bus_nr=12",
        """-M q35 -device pxb-pcie,id=px,bus=pcie.0,bus_nr=12 -device "{'driver':'virtio-rng-pci','bus':'pcie.0'}\"""",
        "-M q35,nvdimm=on -m 256,slots=1,maxmem=1G -object memory-backend-ram,id=n,size=128M -device nvdimm,memdev=n",
        f"{NUMA} -object memory-backend-ram,id=dimm,size=128M -m slots=1,maxmem=2G -device pc-dimm,memdev=dimm",
    ],
)
def test_all_memory_is_shared_however_it_was_spelled(program: Path, spelling: str) -> None:
    with paused(program, spelling) as run:
        backends = asked(run, "query-memdev")
        assert backends
        assert all(backend["share"] for backend in backends)
        asked(run, "quit")
        assert run.wait(SECONDS) == 0


def test_the_guest_can_be_neither_migrated_nor_saved(program: Path, tmp_path: Path) -> None:
    with paused(program, "-M q35") as run:
        migrated = asked(run, "migrate", uri=f"file:{tmp_path}/state")
        assert "vgpud-gpu-cannot-migrate" in migrated["error"]["desc"]
        saved = asked(run, "human-monitor-command", **{"command-line": "savevm x"})
        assert "vgpud-gpu-cannot-migrate" in saved
        assert asked(run, "blockdev-del", **{"node-name": "vgpud-gpu-cannot-migrate"}) == {}
        assert asked(run, "migrate", uri=f"file:{tmp_path}/state") == {}

"""``vgpud attach`` and ``vgpud detach`` as their users meet them: a process, its exit status, what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from protocol import DeviceReset, Header, encode_request
from server.cli import build_parser
from server.hotplug.process import DetachedProcess
from server.hotplug.server_process import find_server
from tests.server.hotplug.fake_qemu import FakeQemu, Json, running
from tests.server.hotplug.vfio_user_qemu import VfioUserQemu, vfio_user_qemu

SECONDS = 120.0


async def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command, whose temporary files are in ``folder``."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    return await trio.run_process(
        command,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_device_is_attached_by_one_process_and_detached_by_another(tmp_path: Path) -> None:
    with vfio_user_qemu() as qemu:
        async with running(qemu, tmp_path) as path:
            attached = await run(tmp_path, "attach", "--qmp", path, "--json", "--bus", "rp1")
            assert (attached.returncode, attached.stderr) == (0, b"")
            done = json.loads(attached.stdout)
            server = done.pop("server")
            assert done == {"id": "vgpud0", "bus": "rp1", "address": "02:00.0"}
            with DetachedProcess(server) as process:
                detached = await run(tmp_path, "detach", "--qmp", path, "--json")
                assert (detached.returncode, json.loads(detached.stdout)) == (0, {"id": "vgpud0"})
                assert await process.ended(SECONDS)
    assert entries(tmp_path) == []


async def test_what_was_done_is_a_sentence(tmp_path: Path) -> None:
    with vfio_user_qemu() as qemu:
        async with running(qemu, tmp_path) as path:
            attached = await run(tmp_path, "attach", "--qmp", path, "--id", "gpu")
            assert attached.stdout.startswith(b"gpu: plugged into rp0, at 01:00.0, served by process ")
            with DetachedProcess(int(attached.stdout.split()[-1])) as server:
                qemu.clients["gpu"].close()
                assert await server.ended(SECONDS)


async def test_the_server_that_is_started_is_scraped_where_it_was_told(tmp_path: Path) -> None:
    scraped = tmp_path / "metrics.sock"
    with vfio_user_qemu() as qemu:
        async with running(qemu, tmp_path) as path:
            attached = await run(tmp_path, "attach", "--qmp", path, "--json", "--metrics", f"unix:{scraped}")
            with DetachedProcess(json.loads(attached.stdout)["server"]) as server:
                async with await trio.open_unix_socket(scraped) as scraper:
                    await scraper.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    said = b"".join([chunk async for chunk in scraper])
                assert b"vgpud_client_attached{" in said
                qemu.clients["vgpud0"].close()
                assert await server.ended(SECONDS)


@asynccontextmanager
async def attaching(qmp: Path, folder: Path) -> AsyncIterator[trio.Process]:
    """An attach that is killed with the block; its temporary files are in ``folder``."""
    command = [sys.executable, "-m", "server", "attach", "--qmp", str(qmp)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, check=False, capture_stderr=True, env=environment)
        process = await nursery.start(start)
        try:
            yield process
        finally:
            process.kill()


async def the_server_of(qmp: Path) -> DetachedProcess:
    with trio.fail_after(SECONDS):
        while (server := find_server("vgpud0", qmp)) is None:
            await trio.sleep(0.005)
    return server


@pytest.mark.parametrize("moment", ["as soon as there is a server", "before QEMU has connected"])
async def test_a_server_ends_whose_attach_is_killed(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    asked = trio.Event()

    def add(_: Json) -> list[Json | bytes]:
        asked.set()
        return []

    async with running(FakeQemu(says={"device_add": add}), tmp_path) as path:
        async with attaching(path, folder):
            if moment == "before QEMU has connected":
                await asked.wait()
            server = await the_server_of(path)
        with server:
            assert await server.ended(SECONDS)
    assert entries(folder) == []


async def test_a_server_that_qemu_has_connected_to_outlives_an_attach_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    with vfio_user_qemu() as qemu:
        asked = trio.Event()

        def add(arguments: Json) -> list[Json | bytes]:
            VfioUserQemu.device_add(qemu, arguments)
            asked.set()
            return []

        qemu.says["device_add"] = add
        async with running(qemu, tmp_path) as path:
            async with attaching(path, folder):
                await asked.wait()
            with await the_server_of(path) as server:
                with trio.fail_after(SECONDS):
                    while entries(folder):
                        await trio.sleep(0.005)
                qemu.clients["vgpud0"].sendall(encode_request(1, DeviceReset()))
                reply = await trio.to_thread.run_sync(qemu.clients["vgpud0"].recv, 4096)
                assert Header.unpack(reply).is_reply
                detached = await run(folder, "detach", "--qmp", path)
                assert (detached.returncode, detached.stderr) == (0, b"")
                assert await server.ended(SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_undoes_what_was_begun(tmp_path: Path, number: signal.Signals) -> None:
    with vfio_user_qemu() as qemu:
        asked = trio.Event()

        def add(arguments: Json) -> list[Json | bytes]:
            VfioUserQemu.device_add(qemu, arguments)
            asked.set()
            return []

        qemu.says["device_add"] = add
        async with running(qemu, tmp_path) as path, trio.open_nursery() as nursery:
            attach = [sys.executable, "-m", "server", "attach", "--qmp", str(path)]
            start = partial(
                trio.run_process,
                attach,
                check=False,
                capture_stderr=True,
                env={**os.environ, "TMPDIR": str(tmp_path)},
            )
            process = await nursery.start(start)
            await asked.wait()
            process.send_signal(number)
            await process.wait()
        assert process.returncode == 1
        assert "vgpud0" not in qemu.devices
        assert qemu.clients == {}
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["attach", "--qmp", "{folder}/none"], "start it with -qmp unix:{folder}/none,server=on,wait=off"),
        (["detach", "--qmp", "{folder}/none"], "start it with -qmp unix:{folder}/none,server=on,wait=off"),
        (
            ["attach", "--qmp", "{qmp}", "--socket-path", "x", "--device", "edu"],
            "give its options to vgpud serve",
        ),
        (["attach", "--qmp", "{qmp}", "--socket-path", "x", "--log", "y"], "give its options to vgpud serve"),
        (
            ["attach", "--qmp", "{qmp}", "--socket-path", "{folder}/x"],
            "start one with vgpud serve --socket-path",
        ),
        (["attach", "--qmp", "{qmp}", "--device", "nothing"], "unknown device 'nothing'"),
        (["attach", "--qmp", "{qmp}", "--id", "rp0"], "choose another id"),
        (["detach", "--qmp", "{qmp}"], "the guest has no vfio-user-pci device"),
    ],
)
async def test_a_mistake_is_one_line_that_names_the_fix(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    async with running(FakeQemu(), tmp_path) as path:
        places = {"folder": tmp_path, "qmp": path}
        result = await run(tmp_path, *(argument.format(**places) for argument in arguments))
        assert (result.returncode, result.stdout) == (1, b"")
        assert result.stderr.startswith(b"vgpud: ")
        assert result.stderr.count(b"\n") == 1
        assert says.format(**places) in result.stderr.decode()


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_timeout_is_a_number_of_seconds(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["detach", "--qmp", "x", f"--timeout={text}"])
    assert "argument --timeout: invalid seconds value" in capsys.readouterr().err

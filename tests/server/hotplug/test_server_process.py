"""The server that attach starts: it outlives attach, and ends with its client."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Collection
from pathlib import Path

import pytest
import trio

from server.control_client import status
from server.hotplug.attach import Attachment, Wish, attach
from server.hotplug.detach import detach
from server.hotplug.errors import HotplugError
from server.hotplug.process import DetachedProcess
from server.hotplug.server_process import ServerOptions, find_server, started
from server.trace.reader import TracedSession, TraceReader
from tests.fds import open_fds
from tests.server.hotplug.fake_qemu import (
    FakeQemu,
    cancelling_the_last_question,
    refuses,
    returns,
    talking_to,
)
from tests.server.hotplug.vfio_user_qemu import vfio_user_qemu

SECONDS = 120.0
ENDED_WITHOUT_READER = (0, 120)
"""120 is what Python ends with when nobody reads its last words (Py_FinalizeEx)."""


@pytest.fixture(autouse=True)
def earlier() -> frozenset[int]:
    """The children of this process that are no server of the test's."""
    return frozenset(children())


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets are made, for tests to see that nothing stays there."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def exit_status(pid: int) -> int:
    """Reap a server, which in these tests is a child of this process."""
    reaped, how = os.waitpid(pid, os.WNOHANG)
    assert reaped == pid
    return os.waitstatus_to_exitcode(how)


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def children(earlier: Collection[int] = ()) -> list[int]:
    """The child processes of this one but for those that were there ``earlier``."""
    pids = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return [pid for pid in pids if pid not in earlier]


async def attach_to(qemu: FakeQemu, folder: Path, **options: object) -> Attachment:
    async with talking_to(qemu, folder) as qmp:
        return await attach(qmp, Wish(server=ServerOptions(**options)))  # type: ignore[arg-type]


async def test_a_server_serves_until_the_guest_lets_the_device_go(tmp_path: Path, temporary: Path) -> None:
    control, log = tmp_path / "control", tmp_path / "log"
    with vfio_user_qemu() as qemu:
        attachment = await attach_to(qemu, tmp_path, device="virtio-gpu,scanouts=2", control=control, log=log)
        assert attachment.server is not None
        assert os.getsid(attachment.server) == attachment.server
        served = await status(control)
        assert served["pid"] == attachment.server
        assert len(served["model"]["scanouts"]) == 2
        assert entries(temporary) == []
        async with talking_to(qemu, tmp_path) as qmp:
            assert await detach(qmp, None, SECONDS) == "vgpud0"
    assert exit_status(attachment.server) == 0
    assert not control.exists()
    assert "client_attached" in log.read_text()


async def test_a_server_has_no_msix_unless_it_was_asked_for(tmp_path: Path) -> None:
    for device, msix in (("virtio-gpu,edid=off", "off"), ("virtio-gpu,msix=on", "on")):
        trace = tmp_path / f"{msix}.pcapng"
        with vfio_user_qemu() as qemu:
            attachment = await attach_to(qemu, tmp_path, device=device, trace=trace)
            assert attachment.server is not None
            async with talking_to(qemu, tmp_path) as qmp:
                await detach(qmp, None, SECONDS)
        assert exit_status(attachment.server) in ENDED_WITHOUT_READER
        with TraceReader(trace) as reader:
            session = next(record for record in reader if isinstance(record, TracedSession))
        assert f"msix={msix}" in session.info.device


async def test_a_server_whose_log_nobody_reads_serves_all_the_same(tmp_path: Path) -> None:
    before = open_fds()
    control = tmp_path / "control"
    with vfio_user_qemu() as qemu:
        attachment = await attach_to(qemu, tmp_path, control=control)
        assert attachment.server is not None
        assert (await status(control))["client"] is not None
        qemu.clients.popitem()[1].close()
        with DetachedProcess(attachment.server) as process:
            assert await process.ended(SECONDS)
    assert exit_status(attachment.server) in ENDED_WITHOUT_READER
    assert open_fds() == before


async def test_each_device_has_a_server_and_detach_knows_which(tmp_path: Path) -> None:
    with vfio_user_qemu() as qemu:
        async with talking_to(qemu, tmp_path) as qmp:
            first, second = await attach(qmp, Wish()), await attach(qmp, Wish(device="gpu"))
            assert (first.id, first.bus, second.id, second.bus) == ("vgpud0", "rp0", "gpu", "rp1")
            for attachment in (second, first):
                with find_server(attachment.id, qmp.path) or pytest.fail("not found") as process:
                    assert process.pid == attachment.server
                await detach(qmp, attachment.id, SECONDS)
                assert exit_status(process.pid) in ENDED_WITHOUT_READER
                assert find_server(attachment.id, qmp.path) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "nothing"}, "unknown device 'nothing'; there are: virtio-gpu"),
        ({"control": Path("/no/such/folder/c")}, "create the folder /no/such/folder first"),
        ({"trace": Path("/no/such/folder/t")}, "No such file"),
    ],
)
@pytest.mark.parametrize("logged", [False, True])
async def test_a_server_that_does_not_start_is_quoted_and_nothing_is_left(
    tmp_path: Path,
    earlier: frozenset[int],
    temporary: Path,
    options: dict[str, object],
    says: str,
    logged: bool,
) -> None:
    log = tmp_path / "log"
    log.write_text("vgpud: from before\n")
    with (
        vfio_user_qemu() as qemu,
        pytest.raises(HotplugError, match=f"^the server cannot be started: .*{says}"),
    ):
        await attach_to(qemu, tmp_path, **options, **({"log": log} if logged else {}))
    assert "device_add" not in qemu.commands()
    assert children(earlier) == []
    assert entries(temporary) == []
    assert log.read_text().startswith("vgpud: from before\n")


async def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(HotplugError, match=r"--log /no/such/log: No such file or directory"):
        await attach_to(FakeQemu(), tmp_path, log=Path("/no/such/log"))


async def test_a_folder_for_sockets_whose_name_is_too_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(HotplugError, match="set TMPDIR to another folder"):
        await attach_to(FakeQemu(), tmp_path)
    assert entries(folder) == []


async def test_a_server_is_ended_when_qemu_does_not_take_the_device(
    tmp_path: Path, earlier: frozenset[int], temporary: Path
) -> None:
    qemu = FakeQemu(says={"device_add": lambda _: [refuses("out of order")]})
    with pytest.raises(HotplugError, match="out of order"):
        await attach_to(qemu, tmp_path)
    assert children(earlier) == []
    assert entries(temporary) == []


async def test_a_server_is_ended_when_the_user_gives_up_while_it_starts(
    tmp_path: Path, earlier: frozenset[int], temporary: Path
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with started(ServerOptions(), "vgpud0", tmp_path / "qmp"):
            raise AssertionError
    assert scope.cancelled_caught
    assert children(earlier) == []
    assert entries(temporary) == []


async def test_a_server_is_ended_when_the_device_was_taken_back(
    tmp_path: Path, earlier: frozenset[int]
) -> None:
    with vfio_user_qemu(says={"query-pci": lambda _: [returns(5)]}) as qemu:
        with pytest.raises(HotplugError, match="query-pci is no array"):
            await attach_to(qemu, tmp_path)
        assert qemu.clients == {}
    assert children(earlier) == []


async def test_a_server_is_ended_when_the_user_gives_up_at_the_last_question(
    tmp_path: Path, earlier: frozenset[int], temporary: Path
) -> None:
    with vfio_user_qemu() as qemu:
        async with talking_to(qemu, tmp_path) as qmp:
            with trio.CancelScope() as scope:
                cancelling_the_last_question(qemu, scope)
                await attach(qmp, Wish())
            assert scope.cancelled_caught
        assert qemu.clients == {}
    assert children(earlier) == []
    assert entries(temporary) == []


async def test_a_server_that_qemu_still_depends_on_is_left_alone(
    tmp_path: Path, earlier: frozenset[int]
) -> None:
    with vfio_user_qemu(
        says={"query-pci": lambda _: [returns(5)], "device_del": lambda _: [refuses("no")]}
    ) as qemu:
        with pytest.raises(HotplugError, match="query-pci is no array"):
            await attach_to(qemu, tmp_path)
        (pid,) = children(earlier)
        with DetachedProcess(pid) as process:
            assert not await process.ended(0.1)
            qemu.clients.popitem()[1].close()
            assert await process.ended(SECONDS)
    assert exit_status(pid) in ENDED_WITHOUT_READER


async def test_a_server_that_does_not_end_with_its_client_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.hotplug.detach.END_SECONDS", 0.1)
    with vfio_user_qemu() as qemu:
        attachment = await attach_to(qemu, tmp_path)
        assert attachment.server is not None
        os.kill(attachment.server, signal.SIGSTOP)
        try:
            async with talking_to(qemu, tmp_path) as qmp:
                with pytest.raises(
                    HotplugError, match=f"its server goes on: end it with kill {attachment.server}"
                ):
                    await detach(qmp, None, SECONDS)
        finally:
            with DetachedProcess(attachment.server) as process:
                os.kill(attachment.server, signal.SIGCONT)
                await process.end(SECONDS)

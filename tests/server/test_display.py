"""``vgpud display``: what it asks, what the server makes of it, and what comes back."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from devices.bochs_display import BochsDisplay
from devices.contract import Device
from devices.display import Display, ScanoutInfo
from devices.virtio.pci import VirtioPci
from devices.virtio_gpu.device import VirtioGpu
from devices.virtio_gpu.options import GpuOptions
from devices.work import Work
from protocol import IrqAction, IrqData, SetIrqs
from server.cli import main
from server.client import VfioUserClient, open_client
from server.control_client import display
from server.control_protocol import MAX_LINE, ControlError
from server.display.command import text_of
from server.display.protocol import DisplayChange, decode_scanouts, encode_scanouts
from tests.server.register_device import INTX, RegisterDevice
from tests.server.running import TRANSPORTS, Server, running_server, with_transport
from tests.server.test_control import answering

VIRTIO_BAR = 4
COMMON, ISR, DEVICE_CONFIG = 0x0000, 0x1000, 0x2000
"""Where the virtio structures are in the BAR."""
DRIVER_FEATURE_SELECT, DRIVER_FEATURE, DEVICE_STATUS = 0x08, 0x0C, 0x14
CONFIGURATION_CHANGED = b"\2"
"""Bit 1 of the ISR status (virtio 1.3, 4.1.4.5)."""
DISPLAY_EVENT = 1
"""VIRTIO_GPU_EVENT_DISPLAY, bit 0 of events_read (virtio 1.3, 5.7.4.1)."""
SECOND = ScanoutInfo(1, True, 1280, 800, 0, 0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server(VirtioPci(VirtioGpu(GpuOptions(scanouts=2)))) as server:
        yield server


async def said(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    """What the server answers to a request made by hand."""
    async with await trio.open_unix_socket(str(server.control)) as stream:
        await stream.send_all(json.dumps({"command": "display", **request}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await stream.receive_some(MAX_LINE))
        return answer


async def test_the_screens_are_listed(server: Server) -> None:
    assert await display(server.control) == [replace(SECOND, index=0), SECOND]


async def test_a_resized_screen_keeps_its_connection_and_the_other_stays_as_it_is(server: Server) -> None:
    changed = await display(server.control, DisplayChange(1, (1920, 1080)))
    assert changed == [replace(SECOND, index=0), replace(SECOND, preferred_width=1920, preferred_height=1080)]
    assert await display(server.control) == changed


async def test_an_unplugged_screen_keeps_its_mode_until_it_is_plugged_in_again(server: Server) -> None:
    for connected in (False, True):
        (_, second) = await display(server.control, DisplayChange(1, connected=connected))
        assert second == replace(SECOND, connected=connected)


async def test_a_screen_is_resized_and_plugged_in_at_once(server: Server) -> None:
    await display(server.control, DisplayChange(1, connected=False))
    (_, second) = await display(server.control, DisplayChange(1, (640, 480), connected=True))
    assert second == replace(SECOND, preferred_width=640, preferred_height=480)


async def start_driver(client: VfioUserClient) -> None:
    """What a driver does until DRIVER_OK, with VERSION_1 as the only feature (virtio 1.3, 3.1.1 and 4.1.4.3)."""
    for offset, value in (
        (DEVICE_STATUS, b"\x03"),
        (DRIVER_FEATURE_SELECT, b"\1\0\0\0"),
        (DRIVER_FEATURE, b"\1\0\0\0"),
        (DEVICE_STATUS, b"\x0b"),
        (DEVICE_STATUS, b"\x0f"),
    ):
        await client.region_write(VIRTIO_BAR, COMMON + offset, value)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_driver_is_interrupted_and_finds_a_display_event(transport: str) -> None:
    device = VirtioPci(VirtioGpu(GpuOptions()))
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        async with (
            running_server(device, with_transport(transport)) as server,
            open_client(server.path) as client,
        ):
            await client.set_irqs(SetIrqs(INTX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), [event])
            await start_driver(client)
            await display(server.control, DisplayChange(0, (800, 600)))
            assert os.eventfd_read(event) == 1
            assert await client.region_read(VIRTIO_BAR, ISR, 1) == CONFIGURATION_CHANGED
            events = await client.region_read(VIRTIO_BAR, DEVICE_CONFIG, 4)
            assert int.from_bytes(events, "little") == DISPLAY_EVENT
    finally:
        os.close(event)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"scanout": 2, "connected": True}, "there is no scanout 2: this device has 2"),
        ({"scanout": 0, "width": 63, "height": 600}, "cannot be 63x600: choose 64 to 16384 pixels"),
        ({"scanout": 0, "width": 10**9, "height": 600}, "width takes a number from 1 to"),
        ({"scanout": 0, "width": 0, "height": 600}, "width takes a number from 1 to"),
        ({"scanout": 0, "width": 800}, "height takes a number"),
        ({"scanout": 0, "height": 600}, "width takes a number"),
        ({"scanout": 0, "width": 800.5, "height": 600}, "width takes a number"),
        ({"scanout": 0, "width": "800", "height": 600}, "width takes a number"),
        ({"scanout": 0, "width": True, "height": 600}, "width takes a number"),
        ({"scanout": 0, "width": None, "height": None}, "width takes a number"),
        ({"scanout": 0, "connected": 1}, "connected takes true or false"),
        ({"scanout": 0, "connected": None}, "connected takes true or false"),
        ({"scanout": -1, "connected": True}, "scanout takes a number from 0"),
        ({"scanout": "0", "connected": True}, "scanout takes a number from 0"),
        ({"scanout": None, "connected": True}, "scanout takes a number from 0"),
        ({"scanout": False, "connected": True}, "scanout takes a number from 0"),
        ({"scanout": 0}, "give a size, or connected"),
        ({"connected": True}, "connected needs a scanout"),
        ({"width": 800, "height": 600}, "width needs a scanout"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_changes_nothing(
    server: Server, request_: dict[str, Any], says: str
) -> None:
    before = await display(server.control)
    answer = await said(server, request_)
    assert answer["ok"] is False
    assert says in answer["error"]
    assert await display(server.control) == before


class FixedScreens(Display):
    """A display that overrides nothing that is optional."""

    @property
    def scanouts(self) -> Sequence[ScanoutInfo]:
        return [ScanoutInfo(0, True, 640, 480, 640, 480)]

    def capture(self, scanout: int) -> Work:
        raise NotImplementedError


def fixed() -> Device:
    device = RegisterDevice()
    device.screens = FixedScreens()
    return device


@pytest.mark.parametrize(
    ("make", "change", "says"),
    [
        (RegisterDevice, DisplayChange(0, (800, 600)), "registers has no screen"),
        (fixed, DisplayChange(0, (800, 600)), "scanout 0: the screens of this device cannot be changed"),
        (BochsDisplay, DisplayChange(0, connected=False), "bochs-display cannot be unplugged"),
    ],
)
async def test_a_device_that_cannot_do_it_refuses_with_one_line(
    make: type[Device], change: DisplayChange, says: str
) -> None:
    device = make()
    try:
        async with running_server(device) as server:
            with pytest.raises(ControlError, match=says) as error:
                await display(server.control, change)
            assert "\n" not in str(error.value)
    finally:
        device.close()


GOOD = encode_scanouts([SECOND])["scanouts"][0]


@pytest.mark.parametrize(
    ("scanouts", "says"),
    [
        (None, "does not say which scanouts"),
        ({}, "does not say which scanouts"),
        ([1], "does not say which scanouts"),
        ([{}], "whether a scanout is connected"),
        ([{**GOOD, "connected": 1}], "whether a scanout is connected"),
        ([{**GOOD, "width": "wide"}], "width takes a number"),
        ([{**GOOD, "x": -1}], "x takes a number"),
        ([{**GOOD, "index": True}], "index takes a number"),
        ([{**GOOD, "y": 1e3}], "y takes a number"),
    ],
)
async def test_a_server_that_answers_nonsense_is_one_line(
    tmp_path: Path, scanouts: object, says: str
) -> None:
    answer = json.dumps({"ok": True, "scanouts": scanouts}).encode() + b"\n"
    async with answering(tmp_path / "x", answer):
        with pytest.raises(ControlError, match=says):
            await display(tmp_path / "x")


def test_what_a_later_server_adds_is_passed_over() -> None:
    assert decode_scanouts({"scanouts": [{**GOOD, "refresh": 75}]}) == [SECOND]


@pytest.mark.parametrize(
    ("screen", "text"),
    [
        (SECOND, "scanout 1: connected, prefers 1280x800, shows nothing"),
        (
            replace(SECOND, connected=False, width=640, height=480),
            "scanout 1: disconnected, prefers 1280x800, shows 640x480",
        ),
        (
            replace(SECOND, width=640, height=480, x=640),
            "scanout 1: connected, prefers 1280x800, shows 640x480 from 640,0 of a larger picture",
        ),
    ],
)
def test_people_read_a_line_per_screen(screen: ScanoutInfo, text: str) -> None:
    assert text_of(screen) == text


async def command(server: Server, *arguments: str) -> int:
    """Run ``vgpud display`` beside the server."""
    return await trio.to_thread.run_sync(main, ["display", "--control", str(server.control), *arguments])


async def test_the_command_lists_and_changes(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command(server) == 0
    assert capsys.readouterr().out.splitlines() == [
        "scanout 0: connected, prefers 1280x800, shows nothing",
        "scanout 1: connected, prefers 1280x800, shows nothing",
    ]
    assert await command(server, "--scanout", "1", "--size", "1920x1080", "--disconnect") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "scanout 1: disconnected, prefers 1920x1080, shows nothing"
    assert "display_changed" in said[0]  # the server's log
    await command(server, "--scanout", "1", "--connect")
    capsys.readouterr()
    assert await command(server, "--scanout", "1", "--json") == 0
    (screen,) = json.loads(capsys.readouterr().out)
    assert screen == {**GOOD, "preferred_width": 1920, "preferred_height": 1080}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", "1920"), "for example 1920x1080"),
        (("--scanout", "0", "--size", "1920x-1"), "for example 1920x1080"),
        (("--scanout", "0", "--size", "99999999x1"), "for example 1920x1080"),
        (("--size", "800x600"), "say which screen with --scanout N"),
        (("--connect",), "say which screen with --scanout N"),
        (("--scanout", "0", "--size", "16x16"), "choose 64 to 16384 pixels"),
        (("--scanout", "7", "--connect"), "there is no scanout 7: this device has 2"),
        (("--scanout", "7"), "there is no scanout 7: this device has 2"),
    ],
)
async def test_a_mistake_is_one_line_that_names_the_fix(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert await command(server, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vgpud: ")
    assert err.count("\n") == 1
    assert says in err

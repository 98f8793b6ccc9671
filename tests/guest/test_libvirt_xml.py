"""What ``vgpud libvirt-xml`` gives to QEMU through libvirt, given to QEMU: a stock guest finds the device."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from server.hotplug.qmp import CommandFailed, connected
from server.libvirt.fragment import QEMU_NAMESPACE, domain_fragment
from tests.guest.support import GuestParts
from tests.guest.virtual_gpu import serving

pytestmark = pytest.mark.guest


async def test_the_devices_of_a_domain_are_on_ports_of_their_own(parts: GuestParts, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, name="first") as first,
        serving(tmp_path, name="second") as second,
    ):
        domain = ET.fromstring(domain_fragment([first.device, second.device]))  # noqa: S314 - it is ours
        arguments = [argument.attrib["value"] for argument in domain.iter(f"{{{QEMU_NAMESPACE}}}arg")]
        async with parts.boot(extra=tuple(arguments), qmp=tmp_path / "qmp") as guest:
            cards = (
                await guest.check("for card in 0 1; do readlink -f /sys/class/drm/card$card/device; done")
            ).split()
            ports = {card.split("/")[4] for card in cards}
            assert ports == {"0000:00:10.0", "0000:00:11.0"}
            async with connected(tmp_path / "qmp") as qmp:
                with pytest.raises(CommandFailed, match="vgpud-gpu-cannot-migrate"):
                    await qmp.execute("migrate", {"uri": f"file:{tmp_path}/state"})
        for server in (first, second):
            assert (await server.status())["model"]["driver_ok"] is True

"""Devices that are no PCI devices: ``--transport libvfio-user`` refuses them before anything listens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from devices.contract import Irq, Region
from devices.registry import DeviceModel
from server import serve as serve_module
from server.cli import main
from server.native.transport import TransportUnavailable
from server.transports import choose_transport
from tests.server.register_device import RegisterDevice


class Shaped(RegisterDevice):
    """With as many regions and interrupts as it is told."""

    name = "shaped"

    def __init__(self, regions: int, irqs: int) -> None:
        super().__init__()
        more = Region("MORE", 4096)
        self._shape = [*self._regions, more, more][:regions]
        self._count = irqs

    @property
    def regions(self) -> Sequence[Region]:
        return self._shape

    @property
    def irqs(self) -> Sequence[Irq]:
        return [*super().irqs, Irq("MORE", 1)][: self._count]


@pytest.mark.parametrize(("regions", "irqs"), [(8, 5), (10, 5), (9, 4), (9, 6), (0, 0), (1, 1)])
def test_another_shape_is_refused_with_a_way_out_and_served_natively(regions: int, irqs: int) -> None:
    device = Shaped(regions, irqs)
    with pytest.raises(TransportUnavailable) as refused:
        choose_transport("libvfio-user", device)
    assert str(refused.value).startswith("shaped ")
    assert "--transport native" in str(refused.value)
    assert "\n" not in str(refused.value)
    for name in ("native", "auto"):
        assert choose_transport(name, device).transport.name == "native"


def test_a_pci_device_is_not_refused() -> None:
    assert choose_transport("libvfio-user", Shaped(9, 5)).transport.name == "libvfio-user"


def test_serve_says_so_in_one_line_and_makes_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = DeviceModel("shaped", "no PCI device", (), lambda _options: Shaped(2, 1))
    monkeypatch.setattr(serve_module, "MODELS", (model,))
    path = tmp_path / "socket"
    arguments = ["serve", "--socket-path", str(path), "--device", "shaped", "--transport", "libvfio-user"]
    assert main(arguments) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "--transport native" in said.err
    assert not path.exists()

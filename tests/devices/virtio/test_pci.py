"""The virtio PCI transport as a driver sees it."""

from __future__ import annotations

import pytest

from devices.testing import FakeHost
from devices.virtio.pci import VirtioPci
from tests.devices.virtio.driver import VirtioDriver
from tests.devices.virtio.echo import EchoDevice


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("features", [None, 1 << 32 | 1 << 28])
def test_a_buffer_goes_to_the_device_and_its_reply_comes_back(
    shared: bool, indirect: bool, features: int | None
) -> None:
    driver = VirtioDriver(
        VirtioPci(EchoDevice()), FakeHost(shared=shared), features=features, indirect=indirect
    ).start()
    assert driver.send(0, [b"hello ", b"world"], [4, 100]) == [b"dlro", b"w olleh"]
    assert driver.send(1, [b"again"], [5]) == [b"niaga"]

"""One machine for all tests, since installing takes longer than booting, and no instance left behind by any of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.instances.places import SYSTEM_DEFINITIONS
from tests.server.instances.booted.machine import Machine, booted, install


@pytest.fixture(scope="session")
def installed() -> Iterator[Machine]:
    with booted() as machine:
        install(machine)
        yield machine


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    yield installed
    installed.well("find", "/run/systemd/system", "-name", "90-test.conf", "-delete")
    for path in installed.path(SYSTEM_DEFINITIONS).glob("*.json"):
        installed.run("vgpud", "stop", "--force", path.stem)
        installed.well("vgpud", "undefine", path.stem)

from collections.abc import Iterator

import pytest

from tests.devices.bochs_display.driver import Driver, plugged_in


@pytest.fixture
def driver() -> Iterator[Driver]:
    with plugged_in(vgamem=4 << 20, width=1024, height=768) as driver:
        yield driver

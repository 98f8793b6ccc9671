"""The count of fds that tests compare."""

from __future__ import annotations

import gc
import os

from tests.fds import open_fds, settled_fds


class Cycle:
    """Holds an fd until the collector comes."""

    def __init__(self) -> None:
        self.me = self
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._fd)


def test_what_waits_for_the_collector_does_not_count_as_settled() -> None:
    before = settled_fds()
    gc.disable()
    try:
        Cycle()
        assert open_fds() == before + 1
        assert settled_fds() == before
    finally:
        gc.enable()

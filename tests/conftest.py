"""What holds for all tests.

Property tests take the time that they need, and try the same examples every time: a run says what the change did.
``--hypothesis-profile new-examples`` looks for what those do not find.
Signals mean what they mean at a terminal, also where whoever runs the tests ignores some (nohup, background jobs).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.fds import open_fds

_PATIENT = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.register_profile("same-examples", _PATIENT, derandomize=True)
settings.register_profile("new-examples", _PATIENT, derandomize=False, max_examples=1000)
settings.load_profile("same-examples")


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> Iterator[None]:
    defaults: dict[signal.Signals, Any] = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    ignored = [number for number in defaults if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, defaults[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that run in the process of the tests set up logging for themselves; the next test begins without."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def no_fd_leaks() -> Iterator[None]:
    """The test gives back every fd that it opens. There may be fewer: what an earlier one left to the collector."""
    before = open_fds()
    yield
    assert open_fds() <= before

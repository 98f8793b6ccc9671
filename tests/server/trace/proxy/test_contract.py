"""The contract of the transports, with a recording proxy between the client and the server.

Left out are the tests that start servers of their own, and those on a clock of their own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.typing import EventDict

from server.client import VfioUserClient, open_client
from server.native.serve import ConnectionOptions
from tests.server.register_device import RegisterDevice
from tests.server.running import Server, running_server
from tests.server.trace.proxy.proxies import running_proxy
from tests.server.transports import (
    test_client_memory,
    test_dma,
    test_faults,
    test_framing,
    test_fuzz,
    test_handshake,
    test_irqs,
    test_pressure,
    test_regions,
)

MODULES = (
    test_client_memory,
    test_dma,
    test_faults,
    test_framing,
    test_fuzz,
    test_handshake,
    test_irqs,
    test_pressure,
    test_regions,
)

NOT_WITH_A_PROXY = {
    "test_a_silent_client_blocks_nobody": "clients are served one after another",
    "test_a_message_that_is_cut_off_is_noted_and_nothing_else": "the proxy has a log line of the same name",
    # With full visibility only:
    "test_a_client_that_is_killed_takes_its_memory_along": "the server maps no memory",
    "test_a_file_cannot_be_shortened_once_it_is_mapped": "the server maps no memory",
    "test_a_file_that_cannot_be_sealed_is_mapped_and_its_pins_look_at_its_size": "the server maps no memory",
    "test_a_file_that_is_shorter_than_promised_is_refused": "the server does not see the file",
    "test_an_eventfd_is_kept_until_it_is_replaced_or_switched_off": "it counts fds, and the proxy has some",
    "test_an_fd_that_is_no_memory_is_refused": "the server does not see the fd",
    "test_private_memory_is_warned_of_where_it_is_as_much_as_what_is_shared": "the server sees no file at all",
    "test_the_device_sees_the_clients_memory": "the server maps no memory",
    "test_unmapping_tells_the_holder_of_a_pin_before_it_is_answered": "the server maps no memory",
    "test_a_size_that_cannot_be_is_refused_and_ends_the_connection": "the proxy waits for the rest",
}
"""What is otherwise, and why."""
NOT_PLAIN_EITHER = {
    "test_a_silent_client_blocks_nobody",
    "test_a_message_that_is_cut_off_is_noted_and_nothing_else",
}


@pytest.fixture
def device() -> Iterator[RegisterDevice]:
    device = RegisterDevice()
    yield device
    device.close()


@pytest.fixture
def options() -> ConnectionOptions:
    return ConnectionOptions()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test comes once for each way in which a proxy works."""
    if "full" in metafunc.fixturenames:
        modes = (
            {"plain": False}
            if metafunc.function.__name__ in NOT_WITH_A_PROXY
            else {"plain": False, "full": True}
        )
        metafunc.parametrize("full", modes.values(), ids=modes.keys())


@pytest.fixture
async def server(
    device: RegisterDevice, log: list[EventDict], options: ConnectionOptions, full: bool, tmp_path: Path
) -> AsyncIterator[Server]:
    """A server of ``device``, whose path is the proxy's."""
    async with (
        running_server(device, options) as server,
        running_proxy(server.path, tmp_path, full=full) as proxy,
    ):
        yield replace(server, path=proxy.path)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[VfioUserClient]:
    async with open_client(server.path) as client:
        yield client


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def _tests() -> Iterator[tuple[str, Callable[..., object]]]:
    for module in MODULES:
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test):
                takes = test.__annotations__
                if {"server", "client"} & set(takes) and "autojump_clock" not in takes:
                    yield name, test


for _name, _test in _tests():
    if _name not in NOT_PLAIN_EITHER:
        assert _name not in globals(), f"{_name} is in two modules"
        globals()[_name] = _test


def test_what_is_otherwise_with_a_proxy_is_still_tested_without() -> None:
    assert set(NOT_WITH_A_PROXY) <= {name for name, _ in _tests()}

"""The endpoint and its clients: what it answers, and what hostile ones cannot do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from server.client import open_client
from server.metrics.endpoint import EXCHANGE_SECONDS, MAX_CONNECTIONS, MAX_HEAD, PACE_SECONDS
from tests.fds import open_fds
from tests.server.metrics.scraping import GET, OPENMETRICS, SECONDS, Endpoint, measured, parse_response
from tests.server.register_device import BAR0, RegisterDevice


@pytest.fixture
def device() -> RegisterDevice:
    return RegisterDevice()


@pytest.fixture
async def endpoint(device: RegisterDevice) -> AsyncIterator[Endpoint]:
    async with measured(device) as endpoint:
        yield endpoint


async def test_the_format_and_its_type_are_what_was_asked_for(endpoint: Endpoint) -> None:
    plain, openmetrics = await endpoint.ask(GET), await endpoint.ask(OPENMETRICS)
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    for response in (plain, openmetrics):
        assert response.status == 200
        assert int(response.headers["content-length"]) == len(response.body)
    assert plain.body != openmetrics.body


async def test_a_head_request_gets_the_head(endpoint: Endpoint) -> None:
    response = await endpoint.ask(GET.replace(b"GET", b"HEAD"))
    assert response.status == 200
    assert int(response.headers["content-length"]) > 0
    assert response.body == ""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metrics/../etc HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metrics?name=x HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),  # no Host: RFC 9112, 3.2
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: \xff\xfe\r\n\r\n", 200),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\0" * 100 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * MAX_HEAD, 431),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * (MAX_HEAD // 6), 431),
    ],
)
async def test_every_request_is_answered(endpoint: Endpoint, request_: bytes, status: int) -> None:
    assert (await endpoint.ask(request_)).status == status
    assert (await endpoint.ask(GET)).status == 200


async def test_one_request_is_served_per_connection(endpoint: Endpoint) -> None:
    async with await endpoint.connect() as stream:
        await stream.send_all(GET * 3)
        received = bytearray()
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                received += data
    assert received.count(b"HTTP/1.1 200") == 1
    assert parse_response(bytes(received)).headers["connection"] == "close"


async def test_a_request_may_come_byte_by_byte(endpoint: Endpoint) -> None:
    async with await endpoint.connect() as stream:
        for byte in GET:
            await stream.send_all(bytes([byte]))
        assert parse_response(b"".join([bytes(data) async for data in stream])).status == 200


async def test_a_client_that_hangs_up_is_forgotten(endpoint: Endpoint) -> None:
    before = open_fds()
    for request in (b"", b"GET /met", GET):
        async with await endpoint.connect() as stream:
            await stream.send_all(request)
    assert (await endpoint.ask(GET)).status == 200
    with trio.fail_after(SECONDS):
        while open_fds() > before:
            await trio.lowlevel.checkpoint()


async def test_a_client_that_says_nothing_is_let_go(endpoint: Endpoint, autojump_clock: MockClock) -> None:
    async with await endpoint.connect() as stream:
        began = trio.current_time()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n")
        assert await stream.receive_some(1) == b""
    assert trio.current_time() - began == pytest.approx(EXCHANGE_SECONDS, abs=PACE_SECONDS)


async def test_a_client_that_sends_for_ever_is_cut_off(endpoint: Endpoint) -> None:
    async with await endpoint.connect() as stream:
        with suppress(trio.BrokenResourceError), trio.fail_after(SECONDS):
            while True:
                await stream.send_all(b"x" * MAX_HEAD)
    assert (await endpoint.ask(GET)).status == 200


async def test_clients_that_keep_all_connections_busy_keep_a_scraper_waiting_and_not_the_device(
    endpoint: Endpoint, autojump_clock: MockClock
) -> None:
    silent = [await endpoint.connect() for _ in range(2 * MAX_CONNECTIONS)]
    async with open_client(endpoint.server.path) as client:
        assert await client.region_read(BAR0, 0, 4) == bytes(4)
    began = trio.current_time()
    assert (await endpoint.ask(GET)).status == 200
    assert trio.current_time() - began < 3 * EXCHANGE_SECONDS
    for stream in silent:
        await stream.aclose()


async def test_a_client_that_asks_for_ever_gets_so_many_answers_per_second(
    endpoint: Endpoint, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    for _ in range(20):
        await endpoint.ask(GET)
    assert trio.current_time() - began >= 19 * PACE_SECONDS


async def test_metrics_that_fail_are_an_answer_and_the_endpoint_goes_on(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("server.metrics.collector.session_families", lambda _engine: 1 / 0)
        assert (await endpoint.ask(GET)).status == 500
    assert (await endpoint.ask(GET)).status == 200


async def test_a_device_model_that_fails_takes_its_own_metrics_along_and_no_others(
    endpoint: Endpoint, device: RegisterDevice
) -> None:
    device.broken.add("status")
    families = await endpoint.families()
    assert "vgpud_sessions" in families

"""A server with a metrics endpoint, and scrapes of it by the parser of Prometheus' own Python client."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from devices.contract import Device
from server.metrics.serving import metrics_server
from server.native.serve import ConnectionOptions
from tests.server.running import Server, running_server

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
SECONDS = 120.0
"""More than any answer takes."""
OPENMETRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n"


def parse(text: str, *, openmetrics: bool) -> list[Metric]:
    """The families of a scrape, as Prometheus' client reads them."""
    return list(parse_openmetrics(text) if openmetrics else parse_text(text))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: str


def parse_response(data: bytes) -> Response:
    """A whole HTTP response, checked as far as scrapers rely on it."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    version, code, *_ = status.split(" ")
    assert version == "HTTP/1.1"
    return Response(int(code), headers, body.decode())


@dataclass(frozen=True)
class Endpoint:
    """A server's metrics, at a UNIX socket.

    What is sent there has arrived; over TCP it may be on its way while nobody runs, and a clock of trio's that jumps
    would jump then.
    """

    server: Server
    path: Path

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)

    async def ask(self, request: bytes) -> Response:
        with trio.fail_after(SECONDS):
            async with await self.connect() as stream:
                await stream.send_all(request)
                return parse_response(b"".join([bytes(data) async for data in stream]))

    async def families(self, request: bytes = GET) -> dict[str, Metric]:
        response = await self.ask(request)
        assert response.status == 200
        families = parse(response.body, openmetrics=request is OPENMETRICS)
        return {family.name: family for family in families}

    async def value(self, sample: str, **labels: str) -> float:
        """The one sample of this name with at least these labels; 0 where there is none."""
        families = await self.families()
        return find_value(families, sample, **labels)


def find_value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    found = [
        float(one.value)
        for family in families.values()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    ]
    assert len(found) <= 1, f"{sample} of {labels} is ambiguous"
    return found[0] if found else 0.0


@asynccontextmanager
async def measured(device: Device, options: ConnectionOptions | None = None) -> AsyncIterator[Endpoint]:
    """Serve ``device`` and its metrics until the block ends."""
    options = options or ConnectionOptions()
    async with running_server(device, options) as server, trio.open_nursery() as nursery:
        path = server.path.with_name("metrics")
        with metrics_server(f"unix:{path}", server.engine, options) as metrics:
            assert metrics is not None
            nursery.start_soon(metrics.serve)
            yield Endpoint(server, path)
            nursery.cancel_scope.cancel()


def port_of(name: str) -> int:
    return int(name.rpartition(":")[2])


@contextmanager
def listener() -> Iterator[socket.socket]:
    """A TCP listener on a port of the loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock

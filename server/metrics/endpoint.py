"""The HTTP server that Prometheus scrapes: GET and HEAD of ``/metrics``, one request per connection.

h11 reads what clients send; it needs no event loop of its own, and knows the corners of HTTP/1.1. The device is in
the same event loop, so what a client may cost is bounded: connections at a time and per second, bytes, and seconds.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple

import h11
import trio

from devices.contract import Log
from server.accepting import accept_stream
from server.log import RepeatLimit
from server.metrics.exposition import choose
from server.metrics.families import Family

PATH = "/metrics"
MAX_CONNECTIONS = 16
MAX_HEAD = 16 << 10
"""Bytes of a request's line and headers together."""
EXCHANGE_SECONDS = 5.0
"""From the connection to the last byte of the answer."""
PACE_SECONDS = 0.02
"""Between two connections: a client that asks for ever costs so much of a processor, and no more."""

_TEXT = "text/plain; charset=utf-8"
Collect = Callable[[], list[Family]]


class Answer(NamedTuple):
    """A response."""

    status: HTTPStatus
    content_type: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()


async def serve_metrics(listeners: Sequence[socket.socket], collect: Collect, log: Log) -> None:
    """Answer scrapers until cancelled, whatever they send."""
    limit = trio.Semaphore(MAX_CONNECTIONS)
    log = RepeatLimit(log)
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            listener.setblocking(False)
            accepting = trio.socket.from_stdlib_socket(listener)
            nursery.start_soon(_accept, accepting, nursery, limit, collect, log)


async def _accept(
    accepting: trio.socket.SocketType,
    nursery: trio.Nursery,
    limit: trio.Semaphore,
    collect: Collect,
    log: Log,
) -> None:
    while True:
        await limit.acquire()
        stream = await accept_stream(accepting, log, socket="metrics")
        nursery.start_soon(_serve, stream, limit, collect, log)
        await trio.sleep(PACE_SECONDS)


async def _serve(stream: trio.SocketStream, limit: trio.Semaphore, collect: Collect, log: Log) -> None:
    try:
        async with stream:
            with trio.move_on_after(EXCHANGE_SECONDS):
                await _exchange(stream, collect, log)
    except trio.BrokenResourceError:
        return  # the client is gone
    finally:
        limit.release()


async def _exchange(stream: trio.SocketStream, collect: Collect, log: Log) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        request = await _request(stream, connection)
    except h11.RemoteProtocolError as error:
        answer = Answer(HTTPStatus(error.error_status_hint), _TEXT, f"{error}\n")
        await stream.send_all(_response(connection, answer, with_body=True))
        return
    if request is not None:
        answer = _answer(request, collect, log)
        await stream.send_all(_response(connection, answer, with_body=request.method != b"HEAD"))


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """The head of the request, None where there is none. Raises RemoteProtocolError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(bytes(await stream.receive_some(MAX_HEAD)))
    return event if isinstance(event, h11.Request) else None


def _answer(request: h11.Request, collect: Collect, log: Log) -> Answer:
    if request.target.partition(b"?")[0] != PATH.encode():
        return Answer(HTTPStatus.NOT_FOUND, _TEXT, f"the metrics are at {PATH}\n")
    if request.method not in (b"GET", b"HEAD"):
        refusal = "only GET and HEAD are served\n"
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, refusal, (("Allow", "GET, HEAD"),))
    accept = b",".join(value for name, value in request.headers if name == b"accept")
    exposition = choose(accept.decode("latin-1"))
    try:
        text = exposition.write(collect())
    except Exception:
        log.warning("metrics_failed", exc_info=True)
        return Answer(
            HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, "the metrics cannot be had; the server's log says why\n"
        )
    return Answer(HTTPStatus.OK, exposition.content_type, text)


def _response(connection: h11.Connection, answer: Answer, *, with_body: bool) -> bytes:
    body = answer.text.encode()
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *answer.headers,
    ]
    status = answer.status
    events: list[h11.Event] = [
        h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers)
    ]
    if with_body:
        events.append(h11.Data(data=body))
    events.append(h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)

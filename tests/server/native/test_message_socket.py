"""Bytes and fds over a socket pair: what the kernel does not take at once is sent later, in order."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import trio

from protocol import ProtocolError
from server.native.message_socket import MessageSocket
from tests.fds import open_fds
from tests.server.libvfio_user.test_failing_requests import room_for_fds


@pytest.fixture
def ends() -> Iterator[tuple[MessageSocket, MessageSocket]]:
    ours, theirs = (MessageSocket(sock, max_fds=4) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


Ends = tuple[MessageSocket, MessageSocket]


async def receive(sock: MessageSocket) -> bytes:
    while (count := sock.receive()) < 0:
        await sock.wait_readable()
    return bytes(sock.view[:count])


def test_there_is_nothing_to_read_at_first(ends: Ends) -> None:
    assert ends[0].receive() == -1
    assert ends[0].receive_soon() == -1


async def test_bytes_and_fds_arrive_together(ends: Ends) -> None:
    ours, theirs = ends
    reader, writer = os.pipe()
    ours.send(b"with an fd", [writer])
    os.close(writer)
    assert await receive(theirs) == b"with an fd"
    (received,) = theirs.take_fds()
    assert not os.get_inheritable(received)
    os.write(received, b"same pipe")
    assert os.read(reader, 100) == b"same pipe"
    os.close(received)
    os.close(reader)
    assert theirs.take_fds() == []


async def test_the_end_of_the_stream_is_zero_bytes(ends: Ends) -> None:
    ours, theirs = ends
    ours.send(b"last words")
    ours.close()
    assert await receive(theirs) == b"last words"
    assert await receive(theirs) == b""


@pytest.mark.parametrize("keep", [False, True])
async def test_what_does_not_fit_is_sent_later_and_in_order(ends: Ends, keep: bool) -> None:
    ours, theirs = ends
    reader, writer = os.pipe()
    big = os.urandom(3 << 20)
    buffer = bytearray(big)
    fds: list[int] = []

    async def read_all() -> bytes:
        data = b""
        while len(data) < len(big) + 10:
            data += await receive(theirs)
            fds.extend(theirs.take_fds())
        return data

    async with trio.open_nursery() as nursery:
        if keep:
            nursery.start_soon(ours.keep_flushing)
            await trio.testing.wait_all_tasks_blocked()
        ours.send(memoryview(buffer))
        buffer[:] = bytes(len(buffer))  # the caller may use it again at once
        ours.send(b"and an fd:", [writer])
        os.close(writer)
        assert ours.congested
        if not keep:
            nursery.start_soon(ours.flush)
        assert await read_all() == big + b"and an fd:"
        assert not ours.congested
        nursery.cancel_scope.cancel()
    assert len(fds) == 1
    os.close(fds[0])
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_fds_that_were_never_sent_are_closed_with_the_socket(ends: Ends) -> None:
    ours, _ = ends
    reader, writer = os.pipe()
    ours.send(bytes(3 << 20))
    ours.send(b"x", [writer])
    os.close(writer)
    ours.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_fds_that_cannot_be_kept_for_later_are_an_os_error_and_none_is_left_open(ends: Ends) -> None:
    ours, _ = ends
    ours.send(bytes(3 << 20))
    before = open_fds()
    with room_for_fds(2), pytest.raises(OSError, match="Too many open files"):
        ours.send(b"x", [0, 0, 0])
    assert open_fds() == before


async def test_too_many_fds_break_the_protocol_and_none_is_kept(ends: Ends) -> None:
    ours, theirs = ends
    reader, writer = os.pipe()
    ours.send(b"x", [writer] * 5)
    os.close(writer)
    with pytest.raises(ProtocolError):
        await receive(theirs)
    theirs.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_sending_to_a_closed_end_is_an_os_error(ends: Ends) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(BrokenPipeError):
        ours.send(b"anybody?")


async def test_flushing_to_an_end_that_closes_is_an_os_error_and_keeps_no_fd(ends: Ends) -> None:
    ours, theirs = ends
    reader, writer = os.pipe()
    ours.send(bytes(1 << 20))
    ours.send(b"x", [writer])
    os.close(writer)
    theirs.close()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        await ours.flush()
    ours.close()
    assert os.read(reader, 1) == b""
    os.close(reader)

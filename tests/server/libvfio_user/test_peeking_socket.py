"""A socket that is looked at: nothing is taken away, fds are known of, and pieces are waited for."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from protocol import HEADER_SIZE
from server.libvfio_user.peeking_socket import PEEK_SIZE, PeekingSocket
from tests.fds import open_fds

MAX_FDS = 4


@pytest.fixture
def ends() -> Iterator[tuple[PeekingSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    peeking = PeekingSocket(ours, MAX_FDS)
    yield peeking, theirs
    peeking.close()
    theirs.close()


Ends = tuple[PeekingSocket, socket.socket]


def test_looking_takes_nothing_away(ends: Ends) -> None:
    ours, theirs = ends
    assert ours.receive() == -1
    theirs.send(b"message")
    for _ in range(2):
        assert ours.receive() == 7
        assert bytes(ours.peeked[:7]) == b"message"
    assert ours.take(3) == 3
    assert bytes(ours.view[:3]) == b"mes"
    assert ours.receive() == 4


def test_the_end_of_the_stream_is_seen_again_and_again(ends: Ends) -> None:
    ours, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    assert [ours.receive(), ours.receive()] == [0, 0]


def test_fds_are_noticed_without_being_received(ends: Ends) -> None:
    ours, theirs = ends
    socket.send_fds(theirs, [bytes(HEADER_SIZE)], [0, 1])
    before = open_fds()
    assert ours.receive() == HEADER_SIZE
    assert ours.fds_waiting
    assert open_fds() == before


async def test_more_is_waited_for_without_being_woken_by_what_is_there(ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"12")
    answers: list[bool] = []

    async def wait() -> None:
        answers.append(await ours.wait_for_more(seen=2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        theirs.send(b"3")
    assert answers == [True]
    assert ours.available() == 3


async def test_what_came_before_the_wait_is_not_waited_for(ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"123")
    assert await ours.wait_for_more(seen=2)


async def test_a_stream_that_ends_in_a_piece_ends_the_wait_whenever_it_ended(ends: Ends) -> None:
    ours, theirs = ends
    theirs.send(b"12")
    theirs.shutdown(socket.SHUT_WR)
    assert await ours.wait_for_more(seen=1)
    for _ in range(2):
        assert not await ours.wait_for_more(seen=2)


def test_there_is_room_until_replies_pile_up(ends: Ends) -> None:
    ours, theirs = ends
    assert ours.writable
    while ours.writable:
        ours.sock.send(bytes(PEEK_SIZE))
    poll = select.poll()
    poll.register(theirs, select.POLLIN)
    while poll.poll(0):
        theirs.recv(1 << 20)
    assert ours.writable

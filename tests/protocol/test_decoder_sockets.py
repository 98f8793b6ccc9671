"""The framing rule against the kernel: real stream sockets, real file descriptors, greedy reads."""

from __future__ import annotations

import array
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import HEADER, HEADER_SIZE, Decoder, Message

MAX_FDS = 8
READ_ALL = 1 << 16


@dataclass(frozen=True)
class Sending:
    """A message of ``length`` payload bytes with ``fds`` file descriptors, in one or two calls of sendmsg."""

    length: int
    fds: int = 0
    split: bool = False
    fds_with_payload: bool = False


class Link:
    """A socket pair whose one end sends messages and whose other end reads them greedily."""

    def __init__(self, stack: ExitStack) -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.left = stack.enter_context(left)
        self.right = stack.enter_context(right)
        self.right.setblocking(False)
        self.stack = stack
        self.sent: list[tuple[int, list[int]]] = []

    def send(self, sending: Sending) -> None:
        files = [os.memfd_create("message") for _ in range(sending.fds)]
        inodes = [os.fstat(fd).st_ino for fd in files]
        head = HEADER.pack(len(self.sent), 2, HEADER_SIZE + sending.length, 0, 0)
        self.sent.append((sending.length, inodes))
        if sending.split and sending.length:
            with_payload = sending.fds_with_payload
            self._sendmsg(head, [] if with_payload else files)
            self._sendmsg(bytes(sending.length), files if with_payload else [])
        else:
            self._sendmsg(head + bytes(sending.length), files)
        for fd in files:
            os.close(fd)

    def _sendmsg(self, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.left.sendmsg([data], rights) == len(data)

    def read(self, size: int) -> tuple[bytes, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.right, size, MAX_FDS)
        for fd in fds:
            self.stack.callback(os.close, fd)
        return data, list(fds)

    def read_all(self, size: int) -> list[Message]:
        decoder = Decoder(READ_ALL, MAX_FDS)
        messages: list[Message] = []
        while True:
            try:
                data, fds = self.read(size)
            except BlockingIOError:
                break
            decoder.feed(data, fds)
            messages.extend(decoder)
        assert decoder.idle
        return messages

    def check(self, messages: list[Message]) -> None:
        came = [(len(message.payload), [os.fstat(fd).st_ino for fd in message.fds]) for message in messages]
        assert came == self.sent


def test_a_greedy_read_ends_behind_the_segment_that_carried_fds() -> None:
    with ExitStack() as stack:
        link = Link(stack)
        for sending in (Sending(4), Sending(8), Sending(12, fds=2), Sending(16), Sending(20, fds=1)):
            link.send(sending)
        first, first_fds = link.read(READ_ALL)
        second, second_fds = link.read(READ_ALL)
        assert (len(first), len(first_fds)) == (3 * HEADER_SIZE + 4 + 8 + 12, 2)
        assert (len(second), len(second_fds)) == (2 * HEADER_SIZE + 16 + 20, 1)
        decoder = Decoder(READ_ALL, MAX_FDS)
        decoder.feed(first, first_fds)
        decoder.feed(second, second_fds)
        link.check(list(decoder))


sendings = st.lists(
    st.builds(Sending, st.integers(0, 100), st.integers(0, 3), st.booleans(), st.booleans()),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60)
@given(sendings, st.integers(1, 64) | st.just(READ_ALL))
def test_fds_reach_the_message_that_they_were_sent_with(stream: list[Sending], size: int) -> None:
    with ExitStack() as stack:
        link = Link(stack)
        for sending in stream:
            link.send(sending)
        link.check(link.read_all(size))

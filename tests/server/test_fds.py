"""Received fds are closed exactly once, by whoever has them."""

from __future__ import annotations

import os

import pytest

from server.fds import ReceivedFds
from tests.fds import open_fds


def pipe_ends(pipes: int) -> list[int]:
    return [end for _ in range(pipes) for end in os.pipe()]


def test_what_nobody_takes_is_closed_with_the_block() -> None:
    before = open_fds()
    with ReceivedFds(pipe_ends(2)) as fds:
        assert len(fds) == 4
        assert open_fds() == before + 4
    assert open_fds() == before


def test_what_is_taken_is_the_takers() -> None:
    before = open_fds()
    ends = pipe_ends(1)
    with ReceivedFds(ends) as fds:
        taken = fds.take()
        assert taken == ends[0]
    assert open_fds() == before + 1
    os.close(taken)


def test_there_is_no_more_to_take_than_came() -> None:
    with ReceivedFds() as fds:
        assert fds.take() is None


def test_an_error_in_the_block_closes_them_too() -> None:
    before = open_fds()
    with pytest.raises(KeyError), ReceivedFds(pipe_ends(1)):
        raise KeyError
    assert open_fds() == before


def test_closing_twice_closes_once() -> None:
    before = open_fds()
    fds = ReceivedFds(pipe_ends(1))
    fds.close()
    ends = pipe_ends(1)  # these get the numbers that have become free
    fds.close()
    assert open_fds() == before + 2
    for end in ends:
        os.close(end)

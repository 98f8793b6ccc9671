"""What a trace says of file descriptors: what the kernel says of them, and nothing that a hostile comment makes up."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.trace.fd_facts import MAX_FDS, NOTHING, FdFacts, MessageFacts, fd_facts, message_facts

SHARED_MEMORY = "/dev/shm"


class Fds:
    """Opens fds for a test, and closes them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def keep(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def memfd(self, size: int, seals: int = 0, flags: int = os.MFD_ALLOW_SEALING) -> int:
        fd = self.keep(os.memfd_create("eventfd", os.MFD_CLOEXEC | flags))
        os.ftruncate(fd, size)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd


@pytest.fixture
def fds() -> Iterator[Fds]:
    with ExitStack() as stack:
        yield Fds(stack)


def status_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_a_memfd_has_a_size_and_its_seals(fds: Fds, seals: int) -> None:
    fd = fds.memfd(12345, seals)
    assert fd_facts(fd) == FdFacts("memfd", *status_of(fd), 12345, seals)


def test_a_memfd_that_cannot_be_sealed_is_sealed_against_seals(fds: Fds) -> None:
    fd = fds.memfd(4096, flags=0)
    assert fd_facts(fd) == FdFacts("memfd", *status_of(fd), 4096, fcntl.F_SEAL_SEAL)


def test_a_file_has_a_size(fds: Fds, tmp_path: Path) -> None:
    (tmp_path / "eventfd").write_bytes(b"12345")
    fd = fds.keep(os.open(tmp_path / "eventfd", os.O_RDONLY))
    facts = fd_facts(fd)
    assert (facts.kind, facts.device, facts.inode, facts.size) == ("file", *status_of(fd), 5)


def test_a_file_in_shared_memory_is_a_file(fds: Fds) -> None:
    path = Path(SHARED_MEMORY) / f"vgpud-test-{os.getpid()}"
    fd = fds.keep(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    path.unlink()
    os.ftruncate(fd, 4096)
    facts = fd_facts(fd)
    assert (facts.kind, facts.device, facts.inode, facts.size) == ("file", *status_of(fd), 4096)


def test_an_eventfd_and_a_socket_and_the_rest_have_no_size(fds: Fds, tmp_path: Path) -> None:
    assert fd_facts(eventfd := fds.keep(os.eventfd(0))) == FdFacts("eventfd", *status_of(eventfd))
    for one in socket.socketpair():
        with one:
            assert fd_facts(one.fileno()) == FdFacts("socket", *status_of(one.fileno()))
    for end in os.pipe():
        fds.keep(end)
        assert fd_facts(end) == FdFacts("other", *status_of(end))
    folder = fds.keep(os.open(tmp_path, os.O_RDONLY))
    assert fd_facts(folder) == FdFacts("other", *status_of(folder))
    with select.epoll() as poll:
        assert fd_facts(poll.fileno()).kind == "other"


def test_what_only_has_the_name_of_an_eventfd_is_none(fds: Fds, tmp_path: Path) -> None:
    path = tmp_path / "anon_inode:[eventfd]"
    os.mkfifo(path)
    assert fd_facts(fds.keep(os.open(path, os.O_RDWR))).kind == "other"


def test_facts_tell_which_fds_are_of_one_file(fds: Fds) -> None:
    one, other = fds.memfd(4096), fds.memfd(4096)
    assert fd_facts(one) == fd_facts(fds.keep(os.dup(one)))
    assert fd_facts(one) != fd_facts(other)


def test_a_comment_is_the_json_that_is_documented(fds: Fds) -> None:
    memfd, eventfd = fds.memfd(4096, fcntl.F_SEAL_SHRINK), fds.keep(os.eventfd(0))
    assert json.loads(message_facts([memfd, eventfd], twin=True)) == {
        "fds": [
            dict(zip(("device", "inode"), status_of(memfd), strict=True))
            | {"kind": "memfd", "size": 4096, "seals": 2},
            dict(zip(("device", "inode"), status_of(eventfd), strict=True)) | {"kind": "eventfd"},
        ],
        "twin": True,
    }


def test_a_message_without_fds_has_no_comment() -> None:
    assert message_facts(()) == ""
    assert MessageFacts.unpack("") == NOTHING
    assert json.loads(message_facts((), twin=True)) == {"twin": True}


number = st.integers(0, 2**64 - 1)
facts = st.builds(
    FdFacts,
    st.sampled_from(["eventfd", "socket", "memfd", "file", "other"]),
    number,
    number,
    number | st.just(-1),
    number | st.just(-1),
)


@given(st.lists(facts, max_size=16).map(tuple), st.booleans())
def test_a_comment_is_read_as_it_was_written(fds: tuple[FdFacts, ...], twin: bool) -> None:
    message = MessageFacts(fds, twin)
    assert MessageFacts.unpack(message.pack()) == message


def test_a_comment_with_as_many_fds_as_linux_passes_fits_in_its_option() -> None:
    longest = FdFacts("eventfd", 2**64 - 1, 2**64 - 1, 2**63 - 1, 2**31 - 1)
    assert len(MessageFacts((longest,) * 253, twin=True).pack()) < 1 << 16


@pytest.mark.parametrize(
    "comment",
    [
        "a remark of the user's",
        "{",
        "{}",
        "{}{}",
        "[1]",
        '"twin"',
        '{"fds": 1}',
        '{"fds": {"kind": "memfd"}}',
        '{"fds": ["memfd", 1, null, []]}',
        '{"twin": 1}',
        '{"twin": "true"}',
        '{"fds": null, "twin": false}',
        '{"fds":' * 5000 + "1" + "}" * 5000,
        '{"fds":' + "[" * 30_000 + "]" * 30_000 + "}",
        '{"fds": [{"size": ' + "9" * 5000 + "}]}",
        "{\udcff",
    ],
)
def test_a_comment_that_says_nothing_of_a_message_is_nothing(comment: str) -> None:
    assert MessageFacts.unpack(comment) == NOTHING


@pytest.mark.parametrize(
    "value", ["true", "1.5", "-2", str(2**64), "9" * 4000, '"1"', "[1]", "null", "{}", "NaN", "1e3"]
)
def test_a_number_that_is_none_of_the_kernels_is_not_known(value: str) -> None:
    comment = f'{{"fds": [{{"kind": "file", "device": {value}, "inode": {value}, "size": {value}, "seals": {value}}}]}}'
    assert MessageFacts.unpack(comment).fds == (FdFacts("file"),)


@pytest.mark.parametrize("kind", ["1", "null", '"disk"', '["memfd"]', '"MEMFD"', "{}"])
def test_a_kind_that_there_is_not_is_another(kind: str) -> None:
    assert MessageFacts.unpack(f'{{"fds": [{{"kind": {kind}}}]}}').fds == (FdFacts("other"),)


def test_so_many_fds_are_read_and_no_more() -> None:
    comment = json.dumps({"fds": [{"inode": number} for number in range(MAX_FDS + 100)]})
    assert [one.inode for one in MessageFacts.unpack(comment).fds] == list(range(MAX_FDS))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["fds", "twin", "kind", "size", "x"]), inner)
    ),
)


@given(
    st.text().map("{".__add__) | anything.map(json.dumps) | anything.map(lambda one: json.dumps({"fds": one}))
)
def test_no_comment_raises(comment: str) -> None:
    found = MessageFacts.unpack(comment)
    assert MessageFacts.unpack(found.pack()) == found

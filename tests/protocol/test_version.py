"""The handshake: version negotiation and its states."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import (
    Capabilities,
    Command,
    Handshake,
    HandshakeState,
    MigrationCapability,
    ProtocolError,
    TwinSocket,
    Version,
    agree,
    negotiate,
)
from tests.protocol import strategies
from tests.protocol.layout import table

# As QEMU 11 writes it: hw/vfio-user/proxy.c, caps_json().
QEMU_JSON = (
    '{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "max_msg_fds": 16, '
    '"max_data_xfer_size": 1048576, "write_multiple": true, "max_dma_maps": 65535, "pgsizes": 4096}}'
)
QEMU_REQUEST = table((0, 2, 0), (2, 2, 0), data=QEMU_JSON.encode() + b"\0")

EVERYTHING = Capabilities(
    max_msg_fds=64,
    max_data_xfer_size=1 << 20,
    max_dma_maps=65535,
    pgsizes=4096,
    twin_socket=TwinSocket(supported=True),
    write_multiple=True,
    migration=MigrationCapability(pgsize=4096),
)


def stated(version: Version) -> dict[str, object]:
    """The capabilities in the JSON of a packed version message."""
    data = version.pack()[4:]
    assert data[-1:] == b"\0"
    document = json.loads(data[:-1])
    assert list(document) == ["capabilities"]
    capabilities: dict[str, object] = document["capabilities"]
    return capabilities


def test_qemu_is_answered_with_what_it_can_read() -> None:
    reply = negotiate(Version.unpack(QEMU_REQUEST), EVERYTHING)
    assert (reply.major, reply.minor) == (0, 0)
    assert stated(reply) == {"max_msg_fds": 16, "write_multiple": True, "migration": {"pgsize": 4096}}
    assert len(reply.pack()) <= len(QEMU_REQUEST)


def test_the_reply_to_qemu_is_never_longer_than_its_request() -> None:
    longest = Capabilities(16, (1 << 26) - 1, 65534, 2**64 - 4096, TwinSocket(True), True)
    assert len(negotiate(Version.unpack(QEMU_REQUEST), longest).pack()) <= len(QEMU_REQUEST)


def test_a_client_that_proposes_nothing_is_told_nothing() -> None:
    assert negotiate(Version(0, 0), EVERYTHING).pack() == table((0, 2, 0), (2, 2, 0))
    assert stated(negotiate(Version(0, 0, Capabilities()), EVERYTHING)) == {}


@given(strategies.capabilities, strategies.capabilities)
def test_only_what_was_proposed_is_stated(theirs: Capabilities, ours: Capabilities) -> None:
    request = Version(0, 1, theirs)
    if not _pgsizes(theirs) & _pgsizes(ours):
        with pytest.raises(ProtocolError):
            negotiate(request, ours)
        return
    reply = negotiate(request, ours)
    assert set(stated(reply)) <= set(stated(request))
    agreement = agree(request, reply)
    assert agreement.server_max_msg_fds <= 16
    assert agreement.pgsizes & ~_pgsizes(theirs) == 0


def _pgsizes(capabilities: Capabilities) -> int:
    return 4096 if capabilities.pgsizes is None else capabilities.pgsizes


@pytest.mark.parametrize(("proposed", "answered"), [(0, 0), (1, 1), (2, 1), (65535, 1)])
def test_the_minor_version_is_the_lower_one(proposed: int, answered: int) -> None:
    assert negotiate(Version(0, proposed), Capabilities()).minor == answered


def test_another_major_version_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        negotiate(Version(1, 0), Capabilities())
    assert caught.value.errno == errno.EOPNOTSUPP


def test_page_sizes_in_common_are_agreed_on() -> None:
    request = Version(0, 0, Capabilities(pgsizes=4096 | 1 << 21))
    reply = negotiate(request, Capabilities(pgsizes=4096 | 65536 | 1 << 21))
    assert agree(request, reply).pgsizes == 4096 | 1 << 21


def test_no_page_size_in_common_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        negotiate(Version(0, 0, Capabilities(pgsizes=65536)), Capabilities())
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_lower_number_of_dma_maps_holds() -> None:
    request = Version(0, 0, Capabilities(max_dma_maps=100))
    assert agree(request, negotiate(request, Capabilities(max_dma_maps=50))).max_dma_maps == 50
    assert agree(request, negotiate(request, Capabilities(max_dma_maps=200))).max_dma_maps == 100


def test_each_side_states_its_own_transfer_size() -> None:
    request = Version(0, 0, Capabilities(max_data_xfer_size=4096))
    agreement = agree(request, negotiate(request, Capabilities(max_data_xfer_size=65536)))
    assert agreement.client_max_data_xfer_size == 4096
    assert agreement.server_max_data_xfer_size == 65536


def test_what_is_not_stated_has_the_default_of_the_specification() -> None:
    agreement = agree(Version(0, 0), Version(0, 0))
    assert agreement.client_max_msg_fds == agreement.server_max_msg_fds == 1
    assert agreement.client_max_data_xfer_size == agreement.server_max_data_xfer_size == 1048576
    assert agreement.max_dma_maps == 65535
    assert agreement.pgsizes == 4096
    assert not agreement.write_multiple
    assert agreement.twin_socket_fd is None
    assert agreement.migration is None


def test_a_twin_socket_needs_both_sides() -> None:
    wanting = Version(0, 0, Capabilities(twin_socket=TwinSocket(supported=True)))
    reply = negotiate(wanting, EVERYTHING)
    assert stated(reply) == {"twin_socket": {"supported": True, "fd_index": 0}}
    assert agree(wanting, reply).twin_socket_fd == 0
    declining = Version(0, 0, Capabilities(twin_socket=TwinSocket(supported=False)))
    assert stated(negotiate(declining, EVERYTHING)) == {}
    assert stated(negotiate(wanting, Capabilities())) == {}


def test_write_multiple_needs_both_sides() -> None:
    wanting = Version(0, 0, Capabilities(write_multiple=True))
    assert agree(wanting, negotiate(wanting, EVERYTHING)).write_multiple
    assert not agree(wanting, negotiate(wanting, Capabilities())).write_multiple
    declining = Version(0, 0, Capabilities(write_multiple=False))
    assert not agree(declining, negotiate(declining, EVERYTHING)).write_multiple


def test_a_twin_socket_that_was_not_asked_for_breaks_the_rules() -> None:
    reply = Version(0, 0, Capabilities(twin_socket=TwinSocket(supported=True, fd_index=0)))
    with pytest.raises(ProtocolError):
        agree(Version(0, 0, Capabilities()), reply)


def test_a_twin_socket_without_its_fd_breaks_the_rules() -> None:
    request = Version(0, 0, Capabilities(twin_socket=TwinSocket(supported=True)))
    with pytest.raises(ProtocolError):
        agree(request, Version(0, 0, Capabilities(twin_socket=TwinSocket(supported=True))))


@pytest.mark.parametrize(("major", "minor"), [(1, 0), (0, 1)])
def test_a_reply_with_a_newer_version_breaks_the_rules(major: int, minor: int) -> None:
    with pytest.raises(ProtocolError):
        agree(Version(0, 0), Version(major, minor))


@pytest.mark.parametrize("command", [command for command in Command if command is not Command.VERSION])
def test_nothing_is_allowed_before_version(command: Command) -> None:
    handshake = Handshake(EVERYTHING)
    with pytest.raises(ProtocolError) as caught:
        handshake.check(command)
    assert caught.value.errno == errno.EINVAL
    assert handshake.state is HandshakeState.FAILED


@given(st.integers(0, 0xFFFF))
def test_everything_but_version_is_allowed_after_version(command: int) -> None:
    handshake = Handshake(EVERYTHING)
    handshake.check(Command.VERSION)
    handshake.receive(QEMU_REQUEST)
    assert handshake.state is HandshakeState.READY
    if command != Command.VERSION:
        handshake.check(command)


def test_a_second_version_is_refused_and_changes_nothing() -> None:
    handshake = Handshake(EVERYTHING)
    handshake.receive(QEMU_REQUEST)
    agreement = handshake.agreement
    assert agreement is not None
    with pytest.raises(ProtocolError) as caught:
        handshake.receive(QEMU_REQUEST)
    assert caught.value.errno == errno.EINVAL
    assert handshake.state is HandshakeState.READY
    assert handshake.agreement is agreement


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", QEMU_REQUEST[:-1], b"\1\0\0\0" + QEMU_REQUEST[4:]])
def test_a_failed_negotiation_is_the_end(payload: bytes) -> None:
    handshake = Handshake(EVERYTHING)
    with pytest.raises(ProtocolError):
        handshake.receive(payload)
    assert handshake.state is HandshakeState.FAILED
    assert handshake.agreement is None
    for command in Command:
        with pytest.raises(ProtocolError):
            handshake.check(command)

"""Capabilities: JSON from a peer that is not trusted yet."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import Capabilities, MigrationCapability, ProtocolError, TwinSocket
from protocol.capabilities import MAX_JSON_SIZE
from tests.protocol.layout import attempt


def unpack(text: str) -> Capabilities:
    return Capabilities.unpack(text.encode() + b"\0")


def refusal(text: str) -> int:
    with pytest.raises(ProtocolError) as caught:
        unpack(text)
    return caught.value.errno


def test_all_capabilities_of_the_specification_are_read() -> None:
    text = """{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 65536, "max_dma_maps": 100,
        "pgsizes": 4096, "twin_socket": {"supported": true, "fd_index": 0}, "write_multiple": true,
        "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}}}"""
    assert unpack(text) == Capabilities(
        8, 65536, 100, 4096, TwinSocket(True, 0), True, MigrationCapability(4096, 268435456)
    )


def test_the_migration_capability_of_older_peers_is_read() -> None:
    assert unpack('{"capabilities": {"migration": {"pgsize": 4096}}}') == Capabilities(
        migration=MigrationCapability(pgsize=4096)
    )


@pytest.mark.parametrize("text", ["{}", '{"capabilities": {}}', '{"other": 1}', ' {"capabilities":{} } '])
def test_no_capability_has_to_be_stated(text: str) -> None:
    assert unpack(text) == Capabilities()


def test_unknown_names_are_noted_and_ignored() -> None:
    text = '{"capabilities": {"zebra": [1.5, null], "max_msg_fds": 2, "apple": {}}, "more": true}'
    assert unpack(text) == Capabilities(max_msg_fds=2, unknown=("zebra", "apple"))


def test_a_twin_socket_is_unsupported_unless_it_says_so() -> None:
    assert unpack('{"capabilities": {"twin_socket": {}}}').twin_socket == TwinSocket(supported=False)


def test_json_is_packed_without_spaces() -> None:
    packed = Capabilities(max_msg_fds=8, pgsizes=4096, write_multiple=True).pack()
    assert packed == b'{"capabilities":{"max_msg_fds":8,"pgsizes":4096,"write_multiple":true}}\0'


@pytest.mark.parametrize("name", ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"])
@pytest.mark.parametrize("value", ["-1", "1.5", "1e3", "true", "null", '"1"', "[]", "{}", str(2**64)])
def test_a_number_must_be_an_unsigned_integer(name: str, value: str) -> None:
    assert refusal(f'{{"capabilities": {{"{name}": {value}}}}}') == errno.EINVAL


@pytest.mark.parametrize("name", ["max_data_xfer_size", "pgsizes"])
def test_nothing_can_be_transferred_or_mapped_with_zero(name: str) -> None:
    assert refusal(f'{{"capabilities": {{"{name}": 0}}}}') == errno.EINVAL


@pytest.mark.parametrize("value", ["1", "null", '"true"', "[]", "{}"])
def test_a_boolean_must_be_one(value: str) -> None:
    assert refusal(f'{{"capabilities": {{"write_multiple": {value}}}}}') == errno.EINVAL
    assert refusal(f'{{"capabilities": {{"twin_socket": {{"supported": {value}}}}}}}') == errno.EINVAL


@pytest.mark.parametrize("name", ["twin_socket", "migration"])
@pytest.mark.parametrize("value", ["1", "null", "true", "[]", '"x"'])
def test_an_object_must_be_one(name: str, value: str) -> None:
    assert refusal(f'{{"capabilities": {{"{name}": {value}}}}}') == errno.EINVAL


@pytest.mark.parametrize("text", ["[]", "1", "null", '"capabilities"', '{"capabilities": []}'])
def test_version_data_must_be_objects(text: str) -> None:
    assert refusal(text) == errno.EINVAL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"capabilities": {}} trailing',
        "{'capabilities': {}}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 1}',
        '{"capabilities": {"max_msg_fds": 1, "max_msg_fds": 2}}',
        '{"capabilities": {"x": {"y": 1, "y": 1}}}',
        '{"a": 1}\0',
        "\0" + "{}",
    ],
)
def test_what_is_not_strict_json_is_refused(text: str) -> None:
    assert refusal(text) == errno.EINVAL


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ProtocolError):
        Capabilities.unpack(b'{"\xff": 1}\0')


@pytest.mark.parametrize("data", [b"{}", b"{} ", b""])
def test_the_terminating_nul_is_required(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Capabilities.unpack(data)


def nested(depth: int) -> str:
    """JSON with ``depth`` containers inside each other."""
    inner = depth - 3
    return '{"capabilities": {"x": {"y": ' + "[" * inner + "]" * inner + "}}}"


def test_nesting_is_accepted_up_to_the_limit() -> None:
    assert unpack(nested(8)).unknown == ("x",)
    assert refusal(nested(9)) == errno.EINVAL


def test_nesting_beyond_the_recursion_of_the_parser_is_refused() -> None:
    assert refusal('{"a": ' + "[" * 4000) == errno.EINVAL
    assert refusal("[" * 2000 + "]" * 2000) == errno.EINVAL


def test_version_data_over_the_limit_is_refused_unread() -> None:
    largest = '{"x": "' + "y" * (MAX_JSON_SIZE - 10) + '"}'
    assert len(largest) + 1 == MAX_JSON_SIZE
    assert unpack(largest) == Capabilities()
    assert refusal(largest + " ") == errno.E2BIG


text = st.text('ab"\\\u00e9\U0001f600', max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(["max_msg_fds", "pgsizes", "twin_socket", "write_multiple", "migration", "other"])


@given(st.dictionaries(names, json_values))
def test_any_json_is_read_or_refused(capabilities: dict[str, object]) -> None:
    data = json.dumps({"capabilities": capabilities}).encode() + b"\0"
    match attempt(Capabilities.unpack, data):
        case ProtocolError(errno=code):
            assert code in {errno.EINVAL, errno.E2BIG}
        case unpacked:
            assert unpacked.unknown == (("other",) if "other" in capabilities else ())

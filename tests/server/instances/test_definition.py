"""Definitions and their JSON: what is written is read again, and nothing else is taken for a definition."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.instances.definition import MAX_BYTES, Definition, decode, encode, parse_device
from server.instances.errors import InstanceError
from server.instances.types import find_type
from tests.server.instances.command import ONE
from tests.server.instances.definitions import definitions

TYPE = find_type("vgpud-virtio-2")
GOOD = {"mdev_type": "vgpud-virtio-2", "start": "manual"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "mdev_type": st.just("vgpud-virtio-1") | VALUES,
        "start": st.sampled_from(["auto", "manual"]) | VALUES,
        "attrs": st.lists(st.dictionaries(st.sampled_from(["width", "blob"]) | st.text(), VALUES)) | VALUES,
        "transport": st.just("auto") | VALUES,
        "metrics": st.just("on") | VALUES,
        "other": VALUES,
    },
)


def refusal(content: bytes) -> str:
    with pytest.raises(InstanceError) as raised:
        decode(ONE, content)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def definition_or_complaint(content: bytes) -> Definition | str:
    try:
        return decode(ONE, content)
    except InstanceError as error:
        return str(error)


@given(definitions())
def test_what_is_written_is_read_again(definition: Definition) -> None:
    assert decode(definition.uuid, encode(definition)) == definition


def test_the_keys_are_those_of_mdevctl() -> None:
    """mdevctl(8): mdev_type, start as auto or manual, and attrs as an array of objects of one text each."""
    definition = Definition(ONE, TYPE, auto=True, attrs={"edid": "off", "width": "800"})
    stored = json.loads(encode(definition))
    assert stored == {
        "mdev_type": "vgpud-virtio-2",
        "start": "auto",
        "attrs": [{"edid": "off"}, {"width": "800"}],
        "transport": "auto",
    }


def test_what_may_be_missing_has_its_default() -> None:
    assert decode(ONE, json.dumps(GOOD).encode()) == Definition(ONE, TYPE)


def test_an_instance_may_have_no_msix() -> None:
    definition = decode(ONE, json.dumps({**GOOD, "attrs": [{"msix": "off"}]}).encode())
    assert definition.device.split(",")[-1] == "msix=off"
    assert parse_device("virtio-gpu,msix=off", TYPE) == definition.attrs


@given(st.binary(max_size=200))
def test_bytes_that_are_no_definition_are_refused_in_one_line(content: bytes) -> None:
    refusal(content)


@given(VALUES | NEARLY)
def test_json_is_a_definition_or_refused_in_one_line(value: Any) -> None:
    definition = definition_or_complaint(json.dumps(value).encode())
    if isinstance(definition, Definition):
        assert decode(ONE, encode(definition)) == definition
    else:
        assert "\n" not in definition


@given(definitions(), st.data())
def test_a_damaged_file_is_refused_in_one_line_or_is_another_definition(
    definition: Definition, data: st.DataObject
) -> None:
    content = bytearray(encode(definition))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = definition_or_complaint(bytes(content))
    assert isinstance(damaged, Definition) or "\n" not in damaged


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mdev_type": None}, "key 'mdev_type' is missing or no text"),
        ({"mdev_type": "i915-GVTg_V5_4"}, "there is no type 'i915-GVTg_V5_4'; choose of vgpud-virtio-1,"),
        ({"start": "sometimes"}, "start is 'sometimes'; write auto or manual"),
        ({"start": 1}, "key 'start' is missing or no text"),
        ({"uuid": "x"}, "unknown key 'uuid'; there are mdev_type, start, attrs, transport"),
        ({"transport": "tcp"}, "transport 'tcp': choose of auto, native, libvfio-user"),
        ({"attrs": {}}, 'attrs is not of the form [{"OPTION": "VALUE"}, ...]'),
        ({"attrs": [{"a": "1", "b": "2"}]}, "attrs is not of the form"),
        ({"attrs": [{"width": 800}]}, "attrs: 'width' is no text"),
        ({"attrs": [{"width": "800"}, {"width": "900"}]}, "attrs: 'width' is there twice"),
        ({"attrs": [{"colour": "red"}]}, "virtio-gpu has no option 'colour'; it has: scanouts,"),
        ({"attrs": [{"msix": "maybe"}]}, "virtio-gpu: msix=maybe: 'maybe' is neither on nor off"),
        ({"attrs": [{"width": "1"}]}, "choose 64 to 16384 pixels"),
        ({"attrs": [{"max_hostmem": "4K"}]}, "cannot hold one screen of 1920x1080"),
        ({"attrs": [{"width": "800,scanouts=16"}]}, "is no option of a device"),
        ({"attrs": [{"a\nb": "1"}]}, "is no option of a device"),
        ({"attrs": [{"width": "8" * 65}]}, "is no option of a device"),
    ],
)
def test_a_wrong_definition_says_what_is_wrong_with_it(changed: dict[str, Any], says: str) -> None:
    assert says in refusal(json.dumps({**GOOD, **changed}).encode())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 60_000, "not JSON"),
        (b'{"start": "auto", "start": "manual"}', "a key is there twice"),
        (b'{"start": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (MAX_BYTES + 1), "longer than 65536 bytes"),
    ],
)
def test_what_is_no_json_object_says_so(content: bytes, says: str) -> None:
    assert says in refusal(content)


def test_a_device_of_the_command_line_becomes_attributes() -> None:
    assert parse_device("virtio-gpu", TYPE) == {}
    assert parse_device("virtio-gpu,width=800,edid=off", TYPE) == {"width": "800", "edid": "off"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("edu", "type vgpud-virtio-2 is a virtio-gpu; write --device virtio-gpu,OPTION=VALUE"),
        ("virtio-gpu,width", "option 'width' needs a value: width=VALUE"),
    ],
)
def test_a_device_that_is_not_the_types_is_refused(text: str, says: str) -> None:
    with pytest.raises(InstanceError, match=says):
        parse_device(text, TYPE)

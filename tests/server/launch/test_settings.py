"""Values of QEMU's options: taken apart, changed, and written again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.launch.settings import Settings, parse_settings

KEYS = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)
PAIRS = st.lists(st.tuples(KEYS, st.text(max_size=12)), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("memory-backend-ram,id=m,size=1G", {"qom-type": "memory-backend-ram", "id": "m", "size": "1G"}),
        ("qom-type=memory-backend-ram,id=m", {"qom-type": "memory-backend-ram", "id": "m"}),
        ("x,mem-path=/a,,b,share=on", {"qom-type": "x", "mem-path": "/a,b", "share": "on"}),
        ("x,mem-path=/a,,,share=on", {"qom-type": "x", "mem-path": "/a,", "share": "on"}),
        ("x,share", {"qom-type": "x", "share": "on"}),
        ("x,id=a=b", {"qom-type": "x", "id": "a=b"}),
        ("x,share=off,share=on", {"qom-type": "x", "share": "on"}),
        ("", {}),
        ('{"qom-type": "x", "share": true, "size": 5}', {"qom-type": "x", "share": True, "size": 5}),
        ("{'qom-type': 'x', 'share': true}", {"qom-type": "x", "share": True}),
        (
            r"""{'a': "it's", "b": 'say "no"', 'c': '\'\\\n', "d": "\'"}""",
            {"a": "it's", "b": 'say "no"', "c": "'\\\n", "d": "'"},
        ),
    ],
)
def test_settings_are_read_as_qemu_reads_them(text: str, pairs: dict[str, object]) -> None:
    assert dict(parse_settings(text, "qom-type").items()) == pairs


@pytest.mark.parametrize("text", ["x,id=m,share", "id=m,mem-path=a,,b", "x", "x,,y,id=m", ""])
def test_what_is_not_changed_is_written_as_it_was(text: str) -> None:
    assert str(parse_settings(text, "qom-type")) == text


@given(PAIRS)
def test_settings_that_are_written_are_read_as_the_same(pairs: list[tuple[str, str]]) -> None:
    assert parse_settings(str(Settings(tuple(pairs)))).pairs == tuple(pairs)


@given(PAIRS)
def test_settings_in_json_that_are_written_are_read_as_the_same(pairs: list[tuple[str, str]]) -> None:
    settings = parse_settings(json.dumps(dict(pairs)))
    assert settings.is_json
    assert parse_settings(str(settings)) == settings


def test_a_setting_that_comes_twice_is_changed_in_both_places() -> None:
    assert str(parse_settings("x,share=off,share=no", "t").having("share", "on")) == "x,share=on,share=on"


def test_the_value_without_a_key_can_be_changed() -> None:
    settings = parse_settings("memory-backend-ram,id=m", "qom-type")
    assert str(settings.having("qom-type", "memory-backend-memfd")) == "memory-backend-memfd,id=m"


@pytest.mark.parametrize(
    ("text", "is_on"),
    [("share=on", True), ("share=yes", True), ("share=true", True), ("share=y", True), ("x=1,share", True),
     ("share=off", False), ("share=no", False), ('{"share": true}', True), ('{"share": false}', False)],
)  # fmt: skip
def test_a_boolean_has_many_spellings(text: str, is_on: bool) -> None:
    assert parse_settings(text).is_on("share", default=not is_on) is is_on


def test_a_boolean_that_is_missing_is_the_default() -> None:
    assert parse_settings("id=m").is_on("share", default=True)
    assert not parse_settings("id=m").is_on("share")


@pytest.mark.parametrize("text", ["{", "{a: 1}", "{'a: 1}", '{"a": 1} x', '{"a":' * 5000])
def test_broken_json_is_an_error_that_names_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match="strings need quotes"):
        parse_settings(text)

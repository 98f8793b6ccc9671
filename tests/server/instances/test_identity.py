"""UUIDs become names of files, sockets, units and users: only the one form is taken."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.instances.errors import InstanceError
from server.instances.identity import canonical_uuid, parse_uuid, user_name

SYSTEMD_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
"""systemd's strict form of user names (USER_NAMES of systemd.io)."""


@given(st.uuids())
def test_a_uuid_is_read_in_either_case(uuid: UUID) -> None:
    assert parse_uuid(str(uuid)) == parse_uuid(str(uuid).upper()) == canonical_uuid(str(uuid)) == uuid


def is_the_text_of_a_uuid(text: str) -> bool:
    """By Python's parser, which takes more forms than the one that it writes."""
    try:
        return text.isascii() and str(UUID(text)) == text.lower()
    except ValueError:
        return False


@given(st.text() | st.from_regex(r"[0-9a-f-]{36}") | st.uuids().map(lambda uuid: f"{uuid}\n"))
def test_what_is_read_is_the_text_of_the_uuid_and_nothing_else(text: str) -> None:
    if not is_the_text_of_a_uuid(text):
        with pytest.raises(InstanceError) as raised:
            parse_uuid(text)
        assert "\n" not in str(raised.value)
    else:
        assert str(parse_uuid(text)) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../../etc/passwd",
        "{00000000-0000-4000-8000-000000000001}",
        "urn:uuid:00000000-0000-4000-8000-000000000001",
        "00000000000040008000000000000001",
        "00000000-0000-4000-8000-00000000000１",  # noqa: RUF001 - a digit, but of another script
        "00000000-0000-4000-8000-00000000000K",
        "00000000-0000-4000-8000-000000000001/..",
        " 00000000-0000-4000-8000-000000000001",
        "00000000-0000-4000-8000-000000000001\n",
    ],
)
def test_other_forms_of_uuids_are_refused(text: str) -> None:
    with pytest.raises(InstanceError, match="is no UUID; write it as"):
        parse_uuid(text)
    assert canonical_uuid(text) is None


def test_names_of_files_are_in_lower_case() -> None:
    assert canonical_uuid("ABCDEF00-0000-4000-8000-000000000001") is None


@given(st.uuids())
def test_the_name_of_the_user_is_one_that_systemd_takes_and_means_that_uuid(uuid: UUID) -> None:
    name = user_name(uuid)
    assert SYSTEMD_USER.fullmatch(name)
    assert int(name.removeprefix("vgpud-"), 36) == uuid.int


def test_even_the_largest_uuid_has_a_user() -> None:
    assert SYSTEMD_USER.fullmatch(user_name(UUID(int=2**128 - 1)))

"""Definitions for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from server.instances.definition import Definition
from server.instances.types import TYPES
from server.transport_names import CHOICES

_ATTRS = st.fixed_dictionaries(
    {},
    optional={
        "width": st.integers(64, 4096).map(str),
        "height": st.integers(64, 4096).map(str),
        "max_hostmem": st.sampled_from(["64M", "256M", "1G", "134217728"]),
        "blob": st.sampled_from(["on", "off", "auto"]),
        "edid": st.sampled_from(["on", "off"]),
        "scanouts": st.integers(1, 16).map(str),
    },
)


def definitions() -> st.SearchStrategy[Definition]:
    """Every definition that can be stored."""
    return st.builds(
        Definition,
        st.uuids(),
        st.sampled_from(TYPES),
        st.booleans(),
        _ATTRS,
        st.sampled_from(CHOICES),
        st.booleans(),
    )

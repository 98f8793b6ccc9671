"""``vgpud status`` for people."""

from __future__ import annotations

from server.status_text import status_lines


def test_nested_values_are_indented_below_their_name() -> None:
    status = {
        "pid": 7,
        "client": None,
        "model": {"pages_pinned": 3, "refused": {}, "names": ["a", "b"]},
        "scanouts": [{"index": 0, "width": 1280}, {"index": 1, "width": 640}],
    }
    assert list(status_lines(status)) == [
        "pid: 7",
        "client: none",
        "model:",
        "  pages pinned: 3",
        "  refused:",
        "  names: ['a', 'b']",
        "scanouts 0:",
        "  index: 0",
        "  width: 1280",
        "scanouts 1:",
        "  index: 1",
        "  width: 640",
    ]

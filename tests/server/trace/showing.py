"""``vgpud trace show`` and ``diff``, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli import main


def show(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines of a show that has nothing to complain about."""
    assert main(["trace", "show", *options, str(path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()

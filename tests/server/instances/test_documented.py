"""What docs/instances.md says of types, states and files."""

from __future__ import annotations

import re
from pathlib import Path

from server.instances.definition import decode
from server.instances.direct import MAX_LOG
from server.instances.state import ANSWER_SECONDS, State
from server.instances.systemd import UNITS
from server.instances.types import TYPES
from tests.docs.documents import ROOT, blocks
from tests.server.instances.command import ONE

DOCUMENT = ROOT / "docs" / "instances.md"
TEXT = DOCUMENT.read_text()


def table(first_column: str) -> list[list[str]]:
    lines = TEXT[TEXT.index(f"| {first_column} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_types_are_those_that_there_are() -> None:
    assert table("type") == [
        [
            known.name,
            str(known.screens),
            f"{known.width}x{known.height}",
            f"{known.video_memory({}) >> 20} MiB",
            str(known.cpu_weight),
        ]
        for known in TYPES
    ]


def test_the_states_are_those_that_there_are() -> None:
    assert {row[0] for row in table("state")} == {state.value for state in State}
    assert f"within {ANSWER_SECONDS:.0f} s" in TEXT


def test_the_example_of_a_definition_is_one() -> None:
    (example,) = (block.text for block in blocks(DOCUMENT) if block.language == "json")
    definition = decode(ONE, example.encode())
    assert (definition.auto, definition.attrs, definition.transport) == (True, {"edid": "off"}, "native")


def test_files_are_where_it_says() -> None:
    (install,) = (line for line in TEXT.splitlines() if line.startswith("sudo install "))
    units, folder = map(Path, re.findall(r"\S+/\S+", install))
    assert {unit.name for unit in (ROOT / "systemd").glob(units.name)} == {"vgpud@.service", "vgpud@.socket"}
    assert folder == UNITS
    assert f"{MAX_LOG >> 20} MiB of it at most" in TEXT

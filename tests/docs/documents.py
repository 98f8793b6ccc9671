"""Reading the project's documents: links, headings and fenced blocks of Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
_FILE = re.compile(r"(?P<part>From )?`(?P<path>[\w./-]+)`:\n\n\Z")


class Block(NamedTuple):
    """A fenced block; ``path`` is the file that it says it shows, or shows lines of if it is a ``part``."""

    language: str
    text: str
    path: str | None
    part: bool


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        named = _FILE.search(text[: match.start()])
        path, part = (named["path"], bool(named["part"])) if named else (None, False)
        found.append(Block(match["language"], match["text"], path, part))
    return found


def links(document: Path) -> list[str]:
    """The targets of links and images outside of blocks."""
    return [match["target"] for match in _LINK.finditer(_BLOCK.sub("", document.read_text()))]


def anchors(document: Path) -> set[str]:
    """The fragments that headings have, as GitHub makes them."""
    titles = (match["title"] for match in _HEADING.finditer(_BLOCK.sub("", document.read_text())))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_commands(document: Path) -> Iterator[list[str]]:
    """Every command line in the shell blocks of a document, as words."""
    for block in blocks(document):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words

"""The value of a QEMU option: ``key=value`` settings with commas between them, or JSON.

In the first form a comma within a value is written twice, the first value may come without its key, and a later key
without a value means on. In the second, strings may stand in single quotes as well. Source: QEMU's ``util/keyval.c``,
``util/qemu-option.c``, ``qobject/json-lexer.c``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_SETTING = re.compile(r"((?:[^,]|,,)*)(?:,|$)")
_STRING = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.DOTALL)
_QUOTES = re.compile(r'\\(.)|(")', re.DOTALL)
_ON = ("on", "yes", "true", "y")


@dataclass(frozen=True, slots=True)
class Settings:
    """Keys and values in order; of a key that comes twice the last value counts.

    Values are text, except in JSON. ``implied`` is the key that was left out in front of the first value, or "".
    """

    pairs: tuple[tuple[str, object], ...]
    implied: str = ""
    is_json: bool = False

    def items(self) -> Iterator[tuple[str, object]]:
        """The keys and values; a value that was left out is on."""
        return ((key, "on" if value is None else value) for key, value in self.pairs)

    def get(self, key: str) -> object:
        """The value of a key, None where it has none."""
        return dict(self.items()).get(key)

    def is_on(self, key: str, default: bool = False) -> bool:
        """Whether a boolean is on, however that is spelled."""
        value = self.get(key)
        return default if value is None else is_on(value)

    def having(self, key: str, value: object) -> Settings:
        """The settings with one of them changed, or added at the end."""
        if any(known == key for known, _ in self.pairs):
            pairs = tuple((known, value if known == key else old) for known, old in self.pairs)
        else:
            pairs = (*self.pairs, (key, value))
        return replace(self, pairs=pairs)

    def __str__(self) -> str:
        """The text that QEMU reads as these settings."""
        if self.is_json:
            return json.dumps(dict(self.pairs))
        texts = [_written(key, value) for key, value in self.pairs]
        if self.implied and self.pairs:
            texts[0] = _escaped(self.pairs[0][1])
        return ",".join(texts)


def is_on(value: object) -> bool:
    """Whether a value is one of the spellings of on."""
    return value is True or value in _ON


def parse_settings(text: str, implied: str = "") -> Settings:
    """Take the value of an option apart; ``implied`` is the key of a first value that has none.

    Raises ValueError where it is broken JSON.
    """
    if text.startswith("{"):
        return Settings(tuple(_object(text).items()), is_json=True)
    parts = [match[1] for match in _SETTING.finditer(text) if match.start() < len(text)]
    pairs: list[tuple[str, object]] = []
    left_out = False
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            pairs.append((key, _unescaped(value)))
        elif implied and not pairs:
            left_out = True
            pairs.append((implied, _unescaped(part)))
        else:
            pairs.append((key, None))
    return Settings(tuple(pairs), implied if left_out else "")


def _object(text: str) -> dict[str, object]:
    try:
        value = json.loads(_STRING.sub(_in_double_quotes, text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}; strings need quotes") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - callers handle one exception
    return value


def _in_double_quotes(string: re.Match[str]) -> str:
    """The same string as JSON has it: in double quotes, and with no backslash in front of a single one."""

    def escaped(character: re.Match[str]) -> str:
        if character[1] == "'":
            return "'"
        return '\\"' if character[2] else character[0]

    return f'"{_QUOTES.sub(escaped, string[0][1:-1])}"'


def _written(key: str, value: object) -> str:
    return key if value is None else f"{key}={_escaped(value)}"


def _escaped(value: object) -> str:
    return str(value).replace(",", ",,")


def _unescaped(text: str) -> str:
    return text.replace(",,", ",")

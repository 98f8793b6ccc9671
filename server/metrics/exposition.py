"""The text formats of Prometheus (0.0.4) and OpenMetrics (1.0.0), and which of them a client wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from server.metrics.families import Family, Kind, Labels, number

UNITS = ("seconds", "bytes")
"""Base units that the end of a family's name may say (OpenMetrics, "Units and Base Units")."""

_OPENMETRICS_TYPE = "application/openmetrics-text"
_PLAIN_TYPES = ("text/plain", "text/*", "*/*")
_LABEL_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Exposition:
    """A text format: its content type, and what writes it."""

    content_type: str
    write: Callable[[Iterable[Family]], str]


def prometheus_text(families: Iterable[Family]) -> str:
    """Version 0.0.4, which everything understands: a counter's metadata has the name of its sample."""
    return _text(families, _prometheus_metadata)


def openmetrics_text(families: Iterable[Family]) -> str:
    """OpenMetrics 1.0.0."""
    return _text(families, _openmetrics_metadata) + "# EOF\n"


PROMETHEUS = Exposition("text/plain; version=0.0.4; charset=utf-8", prometheus_text)
OPENMETRICS = Exposition(f"{_OPENMETRICS_TYPE}; version=1.0.0; charset=utf-8", openmetrics_text)


def choose(accept: str) -> Exposition:
    """The format that an Accept header asks for; version 0.0.4 where it asks for neither."""
    weights = dict(_ranges(accept))
    plain = max(weights.get(kind, 0.0) for kind in _PLAIN_TYPES)
    wanted = weights.get(_OPENMETRICS_TYPE, 0.0)
    return OPENMETRICS if wanted and wanted >= plain else PROMETHEUS


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Media ranges and their weights, lightest first, so that of a repeated one the heaviest counts."""
    found = []
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        weight = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        try:
            found.append((kind, float(weight)))
        except ValueError:
            continue
    return iter(sorted(found, key=lambda entry: entry[1]))


def _text(families: Iterable[Family], metadata: Callable[[Family], Iterator[str]]) -> str:
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines += metadata(family)
        for suffix, labels, value in family.samples:
            lines.append(f"{family.name}{suffix}{_braced(labels)} {number(value)}")
    return "".join(f"{line}\n" for line in lines)


def _prometheus_metadata(family: Family) -> Iterator[str]:
    name = f"{family.name}_total" if family.kind is Kind.COUNTER else family.name
    yield f"# HELP {name} {family.help.translate(_HELP_ESCAPES)}"
    yield f"# TYPE {name} {family.kind.value}"


def _openmetrics_metadata(family: Family) -> Iterator[str]:
    unit = family.name.rpartition("_")[2]
    yield f"# TYPE {family.name} {family.kind.value}"
    if unit in UNITS:
        yield f"# UNIT {family.name} {unit}"
    yield f"# HELP {family.name} {family.help.translate(_LABEL_ESCAPES)}"


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"

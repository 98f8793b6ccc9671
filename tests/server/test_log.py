"""What the log looks like, for people and for programs, and how often one event is said."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from devices.testing import FakeLog
from server.log import REPEATS, RepeatLimit, configure


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def raising(secret: str) -> None:
    raise ValueError(f"no {len(secret)}")


def said(format_name: str, level: str = "info") -> str:
    stream = io.StringIO()
    configure(format_name, level, stream)
    log = structlog.get_logger().bind(client=1)
    log.debug("hidden")
    log.info("client_attached", version="0.1", reason='with "quotes"\nand a line feed', number=3)
    log.warning("unusual", value=b"\xff", kind=ValueError)
    try:
        raising("hunter2")
    except ValueError as error:
        log.warning("device_fault", where="a test", exc_info=error)
        log.warning("device_fault", where="a test", exc_info=True)
    return stream.getvalue()


def test_json_is_one_object_per_line() -> None:
    events = [json.loads(line) for line in said("json").splitlines()]
    assert [event["event"] for event in events] == [
        "client_attached",
        "unusual",
        "device_fault",
        "device_fault",
    ]
    first = events[0]
    assert first["level"] == "info"
    assert first["client"] == 1
    assert first["reason"] == 'with "quotes"\nand a line feed'
    assert first["timestamp"].endswith("Z")


def test_json_has_tracebacks_without_the_values_of_variables() -> None:
    text = said("json")
    faults = [json.loads(line) for line in text.splitlines()][2:]
    for fault in faults:
        assert fault["exception"][0]["exc_type"] == "ValueError"
        assert fault["exception"][0]["frames"][-1]["name"] == "raising"
    assert "hunter2" not in text


def test_the_console_has_tracebacks_without_the_values_of_variables() -> None:
    text = said("console")
    assert text.count("ValueError: no 7") == 2
    assert "client_attached" in text
    assert "\x1b[" not in text  # colours are for terminals


def test_the_level_decides_what_is_said() -> None:
    assert "hidden" not in said("console")
    assert "hidden" in said("console", "debug")
    assert "client_attached" not in said("console", "warning")
    assert "device_fault" not in said("console", "error")


def test_an_event_that_comes_too_often_is_said_at_debug_level() -> None:
    kept = FakeLog()
    log = RepeatLimit(kept)
    for number in range(REPEATS + 5):
        log.info("request_refused", number=number)
    levels = [level for level, _, _ in kept.events]
    assert levels == ["info"] * REPEATS + ["debug"] * 5
    marked = [fields["number"] for _, _, fields in kept.events if "further" in fields]
    assert marked == [REPEATS - 1]


def test_each_event_has_its_own_limit() -> None:
    kept = FakeLog()
    log = RepeatLimit(kept)
    for _ in range(REPEATS + 1):
        log.warning("device_fault")
        log.debug("chatter")
    log.info("client_left")
    levels = [level for level, event, _ in kept.events if event == "device_fault"]
    assert levels == ["warning"] * REPEATS + ["debug"]
    assert kept.events[-1] == ("info", "client_left", {})
    assert all(level == "debug" for level, event, _ in kept.events if event == "chatter")

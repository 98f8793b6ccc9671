"""Messages of every kind, drawn from the strategies: the same ones each time."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from protocol import (
    Command,
    DeviceFeature,
    DeviceState,
    DmaLoggingControl,
    DmaLoggingReport,
    Feature,
    FeatureFlags,
    LoggingRange,
    MigrationFlags,
    MigrationState,
    MigrationSupport,
    bitmap_size,
    encode_error,
    encode_reply,
    encode_request,
)
from tests.protocol.strategies import REPLIES, REQUESTS, data, feature_flags, page_size, u16, u64

PER_KIND = 200

Drawn = TypeVar("Drawn")


class Example(NamedTuple):
    command: Command
    reply: bool
    message: bytes


def _feature(
    number: Feature, flags: FeatureFlags, content: st.SearchStrategy[Any]
) -> st.SearchStrategy[DeviceFeature]:
    return content.map(lambda value: DeviceFeature(number, flags, value.pack() if value else b""))


@st.composite
def _reports(draw: st.DrawFn) -> DmaLoggingReport:
    unit, words = draw(page_size), draw(st.integers(0, 8))
    length = draw(st.integers(max(0, words - 1) * 64 * unit + 1, words * 64 * unit)) if words else 0
    assert bitmap_size(length, unit) == words * 8
    return DmaLoggingReport(draw(u64), length, unit, draw(st.binary(min_size=words * 8, max_size=words * 8)))


GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE
_nothing = st.none()
_support = st.builds(MigrationSupport, st.sampled_from([MigrationFlags(bits) for bits in range(8)]))
_state = st.builds(MigrationState, st.sampled_from(DeviceState), st.integers(-(2**31), 2**31 - 1))
_control = st.builds(
    DmaLoggingControl, page_size, st.lists(st.builds(LoggingRange, u64, u64), max_size=4).map(tuple)
)
_queries = st.builds(DmaLoggingReport, u64, u64, page_size)
_unknown = st.builds(
    DeviceFeature, st.sampled_from([0, 3, 4, 5]) | u16.map(lambda n: n | 16), feature_flags, data
)
_probes = st.builds(
    DeviceFeature, st.sampled_from(Feature), st.sampled_from([PROBE, PROBE | GET, PROBE | SET])
)
_either_way = [
    _unknown,
    _probes,
    _feature(Feature.MIG_DEVICE_STATE, SET, _state),
    _feature(Feature.DMA_LOGGING_START, SET, _control),
    _feature(Feature.DMA_LOGGING_STOP, SET, _nothing),
]
_feature_requests = st.one_of(
    *_either_way,
    _feature(Feature.MIGRATION, GET, _nothing),
    _feature(Feature.MIG_DEVICE_STATE, GET, _nothing),
    _feature(Feature.DMA_LOGGING_REPORT, GET, _queries),
)
_feature_replies = st.one_of(
    *_either_way,
    _feature(Feature.MIGRATION, GET, _support),
    _feature(Feature.MIG_DEVICE_STATE, GET, _state),
    _feature(Feature.DMA_LOGGING_REPORT, GET, _reports()),
    st.just(DeviceFeature(Feature.MIGRATION, GET, argsz=16)),
)


def draw(strategy: st.SearchStrategy[Drawn], number: int) -> list[Drawn]:
    """At most ``number`` values, the same ones each time."""
    drawn: list[Drawn] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Drawn) -> None:
        drawn.append(value)

    collect()
    return drawn


@cache
def examples() -> list[Example]:
    """Requests, replies and errors of every command."""
    found = []
    for command in Command:
        requests = _feature_requests if command == Command.DEVICE_FEATURE else REQUESTS[command]
        for number, request in enumerate(draw(requests, PER_KIND)):
            message = encode_request(number, request, no_reply=number % 5 == 0)
            found.append(Example(command, False, message))
        replies = _feature_replies if command == Command.DEVICE_FEATURE else REPLIES[command]
        for number, reply in enumerate(draw(replies, PER_KIND)):
            found.append(Example(command, True, encode_reply(number, command, reply)))
        found += [Example(command, True, encode_error(errno, command, errno)) for errno in (0, 22, 4096)]
    return found

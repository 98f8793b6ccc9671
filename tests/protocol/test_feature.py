"""DEVICE_FEATURE: operations, sizes, and the data of the features."""

from __future__ import annotations

import errno

import pytest

from protocol import (
    DeviceFeature,
    DeviceState,
    DmaLoggingControl,
    DmaLoggingReport,
    Feature,
    FeatureFlags,
    MigDataRead,
    MigrationFlags,
    MigrationState,
    MigrationSupport,
    ProtocolError,
)
from tests.protocol.layout import table


def feature(operations: int, index: int = 2, argsz: int = 16) -> bytes:
    return table((0, 4, argsz), (4, 4, operations << 16 | index))


GET, SET, PROBE = 1, 2, 4


@pytest.mark.parametrize("operations", [GET, SET, PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET])
def test_an_operation_on_a_feature_is_read(operations: int) -> None:
    request = DeviceFeature.unpack(feature(operations))
    assert request.feature == Feature.MIG_DEVICE_STATE
    assert request.flags == FeatureFlags(operations << 16)
    assert request.probe is bool(operations & PROBE)


@pytest.mark.parametrize("operations", [0, GET | SET, 8, 8 | GET, 0x8000])
def test_no_operation_or_ones_that_exclude_each_other_are_refused(operations: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        DeviceFeature.unpack(feature(operations))
    assert caught.value.errno == errno.EINVAL


def test_a_short_argsz_is_refused() -> None:
    with pytest.raises(ProtocolError):
        DeviceFeature.unpack(feature(GET, argsz=7))


def test_setting_and_probing_are_answered_with_the_request() -> None:
    payload = feature(SET, argsz=999) + MigrationState(DeviceState.STOP).pack()
    assert DeviceFeature.unpack(payload).reply().pack() == payload


def test_getting_adds_the_data_to_the_request() -> None:
    support = MigrationSupport(MigrationFlags.STOP_COPY).pack()
    reply = DeviceFeature.unpack(feature(GET, index=1, argsz=64)).reply(support)
    assert reply.pack() == feature(GET, index=1, argsz=16) + support


def test_data_that_does_not_fit_is_left_out_and_its_size_said() -> None:
    support = MigrationSupport(MigrationFlags.STOP_COPY).pack()
    reply = DeviceFeature.unpack(feature(GET, index=1, argsz=15)).reply(support)
    assert reply.pack() == feature(GET, index=1, argsz=16)


@pytest.mark.parametrize("state", [8, 0xFFFFFFFF])
def test_a_state_that_does_not_exist_is_refused(state: int) -> None:
    with pytest.raises(ProtocolError):
        MigrationState.unpack(table((0, 4, state), (4, 4, 0)))


@pytest.mark.parametrize("page_size", [0, 3, 4097])
def test_odd_page_sizes_are_refused(page_size: int) -> None:
    with pytest.raises(ProtocolError):
        DmaLoggingControl.unpack(table((0, 8, page_size), (8, 4, 0), (12, 4, 0)))
    with pytest.raises(ProtocolError):
        DmaLoggingReport.unpack(table((0, 8, 0), (8, 8, 4096), (16, 8, page_size)))


@pytest.mark.parametrize("count", [0, 2, 0xFFFFFFFF])
def test_ranges_that_do_not_match_their_count_are_refused(count: int) -> None:
    with pytest.raises(ProtocolError):
        DmaLoggingControl.unpack(table((0, 8, 4096), (8, 4, count), (12, 4, 0), data=bytes(16)))


def test_a_report_has_room_for_a_bit_per_page() -> None:
    report = DmaLoggingReport(0, 65 * 4096, 4096)
    assert report.bitmap_size == 16
    answered = DmaLoggingReport(0, 65 * 4096, 4096, bytes(16))
    assert DmaLoggingReport.unpack(answered.pack()) == answered
    with pytest.raises(ProtocolError):
        DmaLoggingReport.unpack(answered.pack() + bytes(8))


def test_a_read_of_migration_data_may_leave_the_data_out_of_its_argsz() -> None:
    # As the client in libvfio-user's tests does.
    assert MigDataRead.unpack(table((0, 4, 8), (4, 4, 4))).size == 4
    with pytest.raises(ProtocolError):
        MigDataRead.unpack(table((0, 4, 7), (4, 4, 4)))

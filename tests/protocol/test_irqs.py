"""SET_IRQS: which combinations are a message."""

from __future__ import annotations

import errno
from itertools import combinations

import pytest

from protocol import GetIrqInfo, IrqAction, IrqData, ProtocolError, SetIrqs
from tests.protocol.layout import table


def set_irqs(flags: int, start: int = 0, count: int = 1, argsz: int = 20, data: bytes = b"") -> bytes:
    return table((0, 4, argsz), (4, 4, flags), (8, 4, 2), (12, 4, start), (16, 4, count), data=data)


def refused(payload: bytes) -> bool:
    with pytest.raises(ProtocolError) as caught:
        SetIrqs.unpack(payload)
    return caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("data", IrqData)
@pytest.mark.parametrize("action", IrqAction)
def test_each_data_goes_with_each_action(data: IrqData, action: IrqAction) -> None:
    irqs = SetIrqs.unpack(set_irqs(data | action, argsz=21, data=b"\1"))
    assert (irqs.data, irqs.action) == (data, action)
    assert irqs.bools == ((True,) if data is IrqData.BOOL else ())


@pytest.mark.parametrize("data", [0, *(a | b for a, b in combinations(IrqData, 2)), 7])
def test_exactly_one_kind_of_data_is_given(data: int) -> None:
    assert refused(set_irqs(data | IrqAction.TRIGGER, argsz=21, data=b"\1"))


@pytest.mark.parametrize("action", [0, *(a | b for a, b in combinations(IrqAction, 2)), 0x38])
def test_exactly_one_action_is_given(action: int) -> None:
    assert refused(set_irqs(IrqData.NONE | action))


@pytest.mark.parametrize("flags", [1 << 6, 1 << 31])
def test_unknown_flags_are_refused(flags: int) -> None:
    assert refused(set_irqs(flags | IrqData.NONE | IrqAction.TRIGGER))


def test_a_count_of_zero_switches_the_index_off() -> None:
    assert SetIrqs.unpack(set_irqs(IrqData.NONE | IrqAction.TRIGGER, count=0)).disables
    assert not SetIrqs.unpack(set_irqs(IrqData.NONE | IrqAction.TRIGGER, count=1)).disables


@pytest.mark.parametrize("data", [IrqData.BOOL, IrqData.EVENTFD])
def test_a_count_of_zero_needs_no_data(data: IrqData) -> None:
    assert refused(set_irqs(data | IrqAction.TRIGGER, count=0))


def test_a_count_of_zero_starts_at_zero() -> None:
    assert refused(set_irqs(IrqData.NONE | IrqAction.TRIGGER, start=1, count=0))


@pytest.mark.parametrize(("start", "count"), [(1, 0xFFFFFFFF), (0xFFFFFFFF, 1), (0x80000000, 0x80000000)])
def test_a_range_that_wraps_is_refused(start: int, count: int) -> None:
    assert refused(set_irqs(IrqData.EVENTFD | IrqAction.TRIGGER, start, count))


@pytest.mark.parametrize(("argsz", "data"), [(23, b"\1\1"), (22, b"\1\1\1"), (20, b"")])
def test_missing_booleans_are_refused(argsz: int, data: bytes) -> None:
    assert refused(set_irqs(IrqData.BOOL | IrqAction.MASK, count=3, argsz=argsz, data=data))


def test_a_huge_count_of_booleans_is_refused_without_making_them() -> None:
    assert refused(set_irqs(IrqData.BOOL | IrqAction.MASK, count=0xFFFFFFF0, argsz=0xFFFFFFFF))


def test_a_short_argsz_is_refused() -> None:
    assert refused(set_irqs(IrqData.NONE | IrqAction.TRIGGER, argsz=19))
    with pytest.raises(ProtocolError):
        GetIrqInfo.unpack(table((0, 4, 15), (4, 4, 0), (8, 4, 2), (12, 4, 0)))


def test_any_byte_but_zero_is_true() -> None:
    irqs = SetIrqs.unpack(
        set_irqs(IrqData.BOOL | IrqAction.MASK, start=4, count=3, argsz=23, data=b"\0\1\xff")
    )
    assert irqs.bools == (False, True, True)
    assert list(irqs.vectors) == [5, 6]


def test_without_booleans_all_of_the_range_is_meant() -> None:
    assert list(SetIrqs(2, 4, 3, IrqData.NONE, IrqAction.TRIGGER).vectors) == [4, 5, 6]


@pytest.mark.parametrize("number", [0, 3])
def test_eventfds_come_for_all_vectors_or_for_none(number: int) -> None:
    SetIrqs(2, 0, 3, IrqData.EVENTFD, IrqAction.TRIGGER).check_fds(number)


@pytest.mark.parametrize(
    ("data", "number"), [(IrqData.EVENTFD, 1), (IrqData.EVENTFD, 4), (IrqData.NONE, 1), (IrqData.NONE, 3)]
)
def test_a_wrong_number_of_fds_is_refused(data: IrqData, number: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        SetIrqs(2, 0, 3, data, IrqAction.TRIGGER).check_fds(number)
    assert caught.value.errno == errno.EINVAL

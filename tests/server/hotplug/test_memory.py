"""Whether a guest's memory is shared, and what its user is told where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.hotplug.answers import UnexpectedAnswer
from server.hotplug.errors import HotplugError
from server.hotplug.memory import check_memory_is_shared
from tests.server.hotplug.fake_qemu import FakeQemu, returns, talking_to

GIB = 1 << 30
DIMM = {"type": "dimm", "data": {"id": "dimm0", "memdev": "/objects/more"}}


async def check(qemu: FakeQemu, folder: Path) -> None:
    async with talking_to(qemu, folder) as qmp:
        await check_memory_is_shared(qmp)


@pytest.mark.parametrize(
    "qemu",
    [
        FakeQemu(),
        FakeQemu(backends={"mem": (GIB, True), "unused": (GIB, False)}),
        FakeQemu(backends={"mem": (GIB, True), "more": (GIB, True)}, memory_devices=[DIMM]),
        FakeQemu(backends={"a": (GIB, True), "b": (GIB, True)}, main_memory=""),
        FakeQemu(memory_devices=[{"type": "hv-balloon", "data": {"max-size": 0}}]),
    ],
    ids=["plain", "unused backend", "DIMM", "NUMA", "balloon"],
)
async def test_shared_memory_will_do(tmp_path: Path, qemu: FakeQemu) -> None:
    await check(qemu, tmp_path)


@pytest.mark.parametrize(
    ("size", "option"), [(2 * GIB, "2G"), (1536 << 20, "1536M"), ((1 << 20) + 4096, "1052672")]
)
async def test_memory_that_qemu_made_by_itself_is_replaced_by_a_shared_one_of_that_size(
    tmp_path: Path, size: int, option: str
) -> None:
    qemu = FakeQemu(backends={"pc.ram": (size, False)}, main_memory="/objects/pc.ram")
    with pytest.raises(HotplugError) as failure:
        await check(qemu, tmp_path)
    assert str(failure.value) == (
        "the guest's memory is private: start QEMU with -object memory-backend-memfd,id=mem,"
        f"size={option},share=on and -machine memory-backend=mem"
    )


@pytest.mark.parametrize(
    ("qemu", "name"),
    [
        (FakeQemu(backends={"mem": (GIB, False)}), "mem"),
        (FakeQemu(backends={"a": (GIB, True), "b": (GIB, False)}, main_memory=""), "b"),
        (FakeQemu(backends={"mem": (GIB, True), "more": (GIB, False)}, memory_devices=[DIMM]), "more"),
    ],
    ids=["main", "NUMA", "DIMM"],
)
async def test_a_private_backend_of_the_users_is_named(tmp_path: Path, qemu: FakeQemu, name: str) -> None:
    with pytest.raises(HotplugError, match=f"share=on in the -object that has id={name}$"):
        await check(qemu, tmp_path)


@pytest.mark.parametrize(
    ("command", "answer", "says"),
    [
        ("query-memdev", {}, "query-memdev is no array"),
        ("query-memdev", [5], "an item of query-memdev is no object"),
        ("query-memdev", [{"id": "mem", "size": -1, "share": True}], "size is no number"),
        ("query-memdev", [{"id": "mem", "size": GIB, "share": "yes"}], "share is neither true nor false"),
        ("query-memdev", [{"id": 5, "size": GIB, "share": True}], "id is no string"),
        ("query-memdev", [], "/objects/mem is in no list"),
        ("qom-get", None, "memory-backend is no string"),
        ("query-memory-devices", [{"type": "dimm"}], "data is no object"),
        ("query-memory-devices", [{"data": {"memdev": []}}], "memdev is no string"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_refused(
    tmp_path: Path, command: str, answer: Any, says: str
) -> None:
    with pytest.raises(UnexpectedAnswer, match=says):
        await check(FakeQemu(says={command: lambda _: [returns(answer)]}), tmp_path)

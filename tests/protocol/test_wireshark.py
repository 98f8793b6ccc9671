"""The dissector for Wireshark shows of every message what our decoder makes of it."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

import pytest

from protocol import (
    HEADER_SIZE,
    Acknowledgement,
    Capabilities,
    Command,
    DeviceFeature,
    DeviceInfo,
    DeviceState,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaWrite,
    DmaWriteReply,
    Feature,
    FeatureFlags,
    GetIrqInfo,
    GetRegionInfo,
    Header,
    IoFdType,
    IrqFlags,
    IrqInfo,
    MigrationState,
    PciIrq,
    PciRegion,
    RegionCapabilityId,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteReply,
    SetIrqs,
    Version,
    decode_reply,
    decode_request,
    encode,
    encode_error,
    encode_reply,
    encode_request,
)
from protocol.trace import EventKind, RecordKind
from protocol.vfio import DeviceFlags, DmaMapFlags, DmaUnmapFlags, IrqAction, IrqData
from tests.protocol.layout import table
from tests.protocol.tshark import (
    COLUMNS,
    EXPERTS,
    WARNING,
    Row,
    capture_of,
    field_types,
    glossary,
    rows,
    tshark,
)
from tests.protocol.wireshark_examples import PER_KIND, Example, examples
from tests.protocol.wireshark_fields import header_fields, payload_fields

GENERATED = ("vfio_user.response_in", "vfio_user.response_to", "vfio_user.time")

Shown = list[tuple[Example, Row]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Every example, and what tshark shows of it."""
    file = tmp_path_factory.mktemp("wireshark") / "messages.pcapng"
    capture_of((example.message for example in examples()), file)
    return list(zip(examples(), rows(file, "-2"), strict=True))


def fields_of(row: Row) -> Row:
    """The fields that stand for bytes of the message."""
    other = (*GENERATED, *COLUMNS, *EXPERTS)
    return {name: values for name, values in row.items() if values and name not in other}


def expected(message: bytes) -> Row:
    header = Header.unpack(message)
    payload = message[HEADER_SIZE:]
    if header.is_reply:
        return header_fields(header) | payload_fields(decode_reply(header, payload), reply=True)
    return header_fields(header) | payload_fields(decode_request(header, payload), reply=False)


@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
@pytest.mark.parametrize("command", Command, ids=lambda command: command.name)
def test_every_field_of_every_message_is_what_the_decoder_reads(
    shown: Shown, command: Command, reply: bool
) -> None:
    mine = [(example, row) for example, row in shown if (example.command, example.reply) == (command, reply)]
    assert mine
    for example, row in mine:
        assert fields_of(row) == expected(example.message), example.message.hex()


def test_valid_messages_are_not_malformed(shown: Shown) -> None:
    assert len(shown) > len(Command) * PER_KIND
    for example, row in shown:
        severities = [value for value in row["_ws.expert.severity"] if isinstance(value, int)]
        assert row["_ws.malformed"] == []
        assert all(severity < WARNING for severity in severities), (example, row["_ws.expert.message"])


def test_every_field_is_shown_of_some_message(shown: Shown) -> None:
    seen = {name for _, row in shown for name, values in row.items() if values}
    known = {name for name in field_types() if name.startswith("vfio_user.")}
    # Remarks, and what no valid message has.
    unseen = {"vfio_user.malformed", "vfio_user.short_count", "vfio_user.data", *GENERATED}
    assert known - seen == unseen - seen


def test_the_columns_name_the_protocol_and_the_command(shown: Shown) -> None:
    for example, row in shown:
        assert row["_ws.col.Protocol"] == ["VFIO-USER"]
        assert re.match(rf"{example.command.name}( reply| error|\b)", str(row["_ws.col.Info"][0]))
        assert len(row["_ws.col.Info"]) == 1


def value_names(field: str) -> dict[int, str]:
    return {int(line[2], 0): line[3] for line in glossary("values") if line[:2] == ["V", field]}


ENUMS: list[tuple[str, type[IntEnum]]] = [
    ("vfio_user.command", Command),
    ("vfio_user.region.index", PciRegion),
    ("vfio_user.irq.index", PciIrq),
    ("vfio_user.region.cap.id", RegionCapabilityId),
    ("vfio_user.io_fd.type", IoFdType),
    ("vfio_user.feature.index", Feature),
    ("vfio_user.migration.state", DeviceState),
    ("vgpud.kind", RecordKind),
    ("vgpud.event.kind", EventKind),
    ("vgpud.event.index", PciIrq),
    ("vgpud.area.region", PciRegion),
]


@pytest.mark.parametrize(("field", "enum"), ENUMS, ids=lambda part: part if isinstance(part, str) else "")
def test_numbers_have_the_names_of_the_specification(field: str, enum: type[IntEnum]) -> None:
    assert value_names(field) == {member.value: member.name for member in enum}


def test_errors_have_the_names_of_linux() -> None:
    names = value_names("vfio_user.errno")
    assert names.pop(0) == "none"
    # Later than Python 3.11 knows.
    assert names.pop(133) == "EHWPOISON"
    assert set(names) == set(errno.errorcode)
    assert all(getattr(errno, name) == number for number, name in names.items())


def lines(messages: Iterable[bytes], folder: Path) -> list[str]:
    return [str(row["_ws.col.Info"][0]) for row in rows(capture_of(messages, folder / "file.pcapng"))]


BAR4, CONFIG, MSIX = PciRegion.BAR4, PciRegion.CONFIG, PciIrq.MSIX
SET_STATE = DeviceFeature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, MigrationState(DeviceState.STOP).pack())
RW = DmaMapFlags.READ | DmaMapFlags.WRITE
LINES = {
    "VERSION 0.1": encode_request(0, Version(0, 1, Capabilities(max_msg_fds=8))),
    "VERSION reply 0.0": encode_reply(0, Command.VERSION, Version(0, 0)),
    "DMA_MAP 0x0+0x80000000 rw": encode_request(0, DmaMap(0, 0x80000000, RW)),
    "DMA_MAP 0xfffffffffffff000+0x1000 r-": encode_request(0, DmaMap(2**64 - 4096, 4096, DmaMapFlags.READ)),
    "DMA_MAP reply": encode_reply(0, Command.DMA_MAP, Acknowledgement()),
    "DMA_UNMAP all": encode_request(0, DmaUnmap(flags=DmaUnmapFlags.ALL)),
    "DMA_UNMAP 0x1000+0x2000": encode_request(0, DmaUnmap(0x1000, 0x2000)),
    "DEVICE_GET_INFO reply 9 regions 5 interrupt indexes reset pci": encode_reply(
        0, Command.DEVICE_GET_INFO, DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5)
    ),
    "DEVICE_GET_REGION_INFO region 9": encode_request(0, GetRegionInfo(9)),
    "DEVICE_GET_REGION_INFO reply CONFIG 0x1000 bytes read write": encode_reply(
        0,
        Command.DEVICE_GET_REGION_INFO,
        RegionInfo(CONFIG, RegionFlags.READ | RegionFlags.WRITE, 0x1000),
    ),
    "DEVICE_GET_IRQ_INFO MSIX": encode_request(0, GetIrqInfo(MSIX)),
    "DEVICE_GET_IRQ_INFO reply MSIX 4 vectors eventfd noresize": encode_reply(
        0, Command.DEVICE_GET_IRQ_INFO, IrqInfo(MSIX, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 4)
    ),
    "DEVICE_SET_IRQS MSIX eventfd trigger, vectors 1-3": encode_request(
        0, SetIrqs(MSIX, 1, 3, IrqData.EVENTFD, IrqAction.TRIGGER)
    ),
    "DEVICE_SET_IRQS MSIX none trigger, no vectors": encode_request(
        0, SetIrqs(MSIX, 0, 0, IrqData.NONE, IrqAction.TRIGGER)
    ),
    "REGION_READ BAR4+0x14 4 bytes": encode_request(0, RegionRead(0x14, BAR4, 4)),
    "REGION_READ reply 0x0000001f": encode_reply(
        0, Command.REGION_READ, RegionReadReply(0x14, BAR4, b"\x1f\0\0\0")
    ),
    "REGION_READ reply 5 bytes": encode_reply(0, Command.REGION_READ, RegionReadReply(0, BAR4, bytes(5))),
    "REGION_READ error EINVAL": encode_error(0, Command.REGION_READ, errno.EINVAL),
    "REGION_READ error none": encode_error(0, Command.REGION_READ, 0),
    "REGION_READ error number 4096": encode_error(0, Command.REGION_READ, 4096),
    "REGION_WRITE BAR4+0x3000 = 0x0102 (no reply)": encode_request(
        0, RegionWrite(0x3000, BAR4, b"\2\1"), no_reply=True
    ),
    "REGION_WRITE reply 2 bytes": encode_reply(0, Command.REGION_WRITE, RegionWriteReply(0x3000, BAR4, 2)),
    "REGION_WRITE_MULTI 1 writes": encode_request(0, RegionWriteMulti((RegionWrite(0, BAR4, b"a"),))),
    "DMA_READ 0x1000+0x40": encode_request(0, DmaRead(0x1000, 64)),
    "DMA_WRITE 0x1000+0x8 = 0x0807060504030201": encode_request(0, DmaWrite(0x1000, b"\1\2\3\4\5\6\7\x08")),
    "DEVICE_FEATURE MIG_DEVICE_STATE set STOP": encode_request(0, SET_STATE),
    "DEVICE_FEATURE feature 77 probe": encode_request(0, DeviceFeature(77, FeatureFlags.PROBE)),
}


def test_the_info_column_says_in_a_line_what_a_message_does(tmp_path: Path) -> None:
    assert lines(LINES.values(), tmp_path) == list(LINES)


def test_the_json_of_a_version_is_taken_apart_by_wireshark(tmp_path: Path) -> None:
    capabilities = Capabilities(max_msg_fds=8, pgsizes=4096)
    file = capture_of([encode_request(0, Version(0, 1, capabilities))], tmp_path / "file.pcapng")
    members = tshark(file, "-T", "fields", "-e", "json.key").strip().split(",")
    assert sorted(members) == sorted(["capabilities", *json.loads(capabilities.pack()[:-1])["capabilities"]])


def test_the_names_of_numbers_can_be_filtered_for(tmp_path: Path) -> None:
    messages = [encode_request(number, RegionRead(0, number, 4)) for number in range(9)]
    file = capture_of(messages, tmp_path / "file.pcapng")
    [row] = rows(file, "-Y", 'vfio_user.command == "REGION_READ" && vfio_user.region.index == "CONFIG"')
    assert row["vfio_user.message_id"] == [CONFIG]


def test_a_dma_write_reply_with_a_count_of_32_bits_is_read(tmp_path: Path) -> None:
    reply = encode(0, Command.DMA_WRITE, 1, table((0, 8, 0x1000), (8, 4, 77)))
    assert decode_reply(Header.unpack(reply), reply[HEADER_SIZE:]) == DmaWriteReply(0x1000, 77)
    [row] = rows(capture_of([reply], tmp_path / "file.pcapng"))
    assert fields_of(row) == expected(reply)
    assert row["_ws.expert.severity"] == []


def test_a_dma_read_reply_of_qemu_before_11_is_explained(tmp_path: Path) -> None:
    contents = [b"", b"abc", b"abcd", bytes(8)]
    replies = [
        encode(0, Command.DMA_READ, 1, table((0, 8, 0x1000), (8, 4, len(data)), data=data))
        for data in contents
    ]
    for data, row in zip(contents, rows(capture_of(replies, tmp_path / "file.pcapng")), strict=True):
        assert row["vfio_user.dma.count"] == [len(data)]
        assert row["vfio_user.dma.data"] == ([data] if data else [])
        assert row["_ws.expert.severity"] == [WARNING]


def test_a_dma_read_reply_that_could_be_either_is_the_specifications(tmp_path: Path) -> None:
    reply = encode_reply(0, Command.DMA_READ, DmaReadReply(0x1000, b"abcd"))
    [row] = rows(capture_of([reply], tmp_path / "file.pcapng"))
    assert fields_of(row) == expected(reply)

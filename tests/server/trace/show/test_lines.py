"""What ``vgpud trace show`` says of each message; the words follow from vfio-user's tables of the fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import (
    Acknowledgement,
    BitmapRequest,
    Capabilities,
    Command,
    DeviceFeature,
    DeviceFlags,
    DeviceInfo,
    DeviceReset,
    DeviceState,
    DmaLoggingControl,
    DmaLoggingReport,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlags,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
    Feature,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    Header,
    IoFdType,
    IrqAction,
    IrqData,
    IrqFlags,
    IrqInfo,
    LoggingRange,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationFlags,
    MigrationState,
    MigrationSupport,
    MsixMappable,
    OtherCapability,
    RegionFlags,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionType,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    SparseArea,
    SparseMmap,
    SubRegion,
    TwinSocket,
    Version,
)
from protocol.codec import Packable, PackableRequest
from tests.server.trace.show_files import EVENTFD, MEMFD, Fds, TraceFile
from tests.server.trace.showing import show

RW = DmaMapFlags.READ | DmaMapFlags.WRITE
NO_FDS: Fds = ()
PLUG = {"kind": "socket", "device": 8, "inode": 77}

REQUESTS: list[tuple[PackableRequest, Fds, str]] = [
    (Version(0, 1), NO_FDS, "VERSION                  0.1"),
    (
        Version(0, 0, Capabilities(8, 65536, 100, 4096, TwinSocket(True), True)),
        NO_FDS,
        (
            "VERSION                  0.0 max_msg_fds=8 max_data_xfer_size=65536 max_dma_maps=100 pgsizes=4096 "
            "write_multiple=True twin_socket=True"
        ),
    ),
    (
        DmaMap(0x1000, 0x2000, RW, 0x3000),
        [MEMFD],
        "DMA_MAP                  0x1000-0x2fff (8 KiB) rw from +0x3000 of memfd 1:2052 (1 GiB, sealed: shrink grow)",
    ),
    (
        DmaMap(0, 1000, DmaMapFlags.READ | DmaMapFlags.MAPPABLE),
        NO_FDS,
        "DMA_MAP                  0x0-0x3e7 (1000 bytes) r- mappable without a file",
    ),
    (DmaUnmap(0x1000, 0x1000), NO_FDS, "DMA_UNMAP                0x1000-0x1fff (4 KiB)"),
    (DmaUnmap(flags=DmaUnmapFlags.ALL), NO_FDS, "DMA_UNMAP                everything"),
    (
        DmaUnmap(0, 0x1000, DmaUnmapFlags.GET_DIRTY_BITMAP, BitmapRequest(4096, 8)),
        NO_FDS,
        "DMA_UNMAP                0x0-0xfff (4 KiB), asks for dirty pages of 4 KiB",
    ),
    (GetInfo(), NO_FDS, "DEVICE_GET_INFO"),
    (GetRegionInfo(4), NO_FDS, "DEVICE_GET_REGION_INFO   BAR4"),
    (GetRegionInfo(9), NO_FDS, "DEVICE_GET_REGION_INFO   region 9"),
    (GetRegionIoFds(0), NO_FDS, "DEVICE_GET_REGION_IO_FDS BAR0"),
    (GetIrqInfo(2), NO_FDS, "DEVICE_GET_IRQ_INFO      MSIX"),
    (GetIrqInfo(77), NO_FDS, "DEVICE_GET_IRQ_INFO      irq 77"),
    (
        SetIrqs(2, 1, 2, IrqData.EVENTFD, IrqAction.TRIGGER),
        [EVENTFD, {**EVENTFD, "inode": 9}],
        "DEVICE_SET_IRQS          MSIX 1-2: trigger through 2 eventfds",
    ),
    (
        SetIrqs(2, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER),
        NO_FDS,
        "DEVICE_SET_IRQS          MSIX 0: trigger through nothing",
    ),
    (SetIrqs(0, 0, 0, IrqData.NONE, IrqAction.TRIGGER), NO_FDS, "DEVICE_SET_IRQS          INTX: off"),
    (SetIrqs(0, 0, 1, IrqData.NONE, IrqAction.UNMASK), NO_FDS, "DEVICE_SET_IRQS          INTX 0: unmask"),
    (
        SetIrqs(1, 4, 3, IrqData.BOOL, IrqAction.MASK, (True, False, True)),
        NO_FDS,
        "DEVICE_SET_IRQS          MSI 4-6: mask 4 6",
    ),
    (RegionRead(0x16, 4, 2), NO_FDS, "REGION_READ              BAR4 common.queue_select (2 bytes)"),
    (RegionRead(0, 7, 256), NO_FDS, "REGION_READ              CONFIG +0x0 (256 bytes)"),
    (RegionWrite(0x16, 4, b"\1\0"), NO_FDS, "REGION_WRITE             BAR4 common.queue_select 0x0001"),
    (RegionWrite(0x16, 0, b"\1\2\3"), NO_FDS, "REGION_WRITE             BAR0 +0x16 0x030201"),
    (
        RegionWrite(4, 7, bytes(range(1, 9))),
        NO_FDS,
        "REGION_WRITE             CONFIG command 0x0807060504030201",
    ),
    (
        RegionWrite(0, 12, b"123456789"),
        NO_FDS,
        "REGION_WRITE             region 12 +0x0 313233343536373839 (9 bytes)",
    ),
    (RegionWrite(0, 2, bytes(17)), NO_FDS, f"REGION_WRITE             BAR2 +0x0 {'00' * 16}... (17 bytes)"),
    (RegionWrite(0, 2, b""), NO_FDS, "REGION_WRITE             BAR2 +0x0 (0 bytes)"),
    (DmaRead(0x5000, 16), NO_FDS, "DMA_READ                 0x5000-0x500f (16 bytes)"),
    (DmaRead(0x5000, 0), NO_FDS, "DMA_READ                 0x5000 (0 bytes)"),
    (DmaWrite(0x5000, b"\xff"), NO_FDS, "DMA_WRITE                0x5000 0xff"),
    (DeviceReset(), NO_FDS, "DEVICE_RESET"),
    (
        RegionWriteMulti((RegionWrite(0x14, 4, b"\x0b"), RegionWrite(0, 1, b"\1\0\0\0"))),
        NO_FDS,
        "REGION_WRITE_MULTI       2 writes: BAR4 common.device_status 0x0b; BAR1 msix.table[0].address 0x00000001",
    ),
    (
        RegionWriteMulti(5 * (RegionWrite(0, 0, b"\7"),)),
        NO_FDS,
        "REGION_WRITE_MULTI       5 writes: " + 4 * "BAR0 +0x0 0x07; " + "and 1 more",
    ),
    (
        DeviceFeature(
            Feature.MIG_DEVICE_STATE, FeatureFlags.SET, MigrationState(DeviceState.STOP_COPY).pack()
        ),
        NO_FDS,
        "DEVICE_FEATURE           MIG_DEVICE_STATE SET STOP_COPY",
    ),
    (
        DeviceFeature(
            Feature.DMA_LOGGING_START,
            FeatureFlags.SET,
            DmaLoggingControl(4096, (LoggingRange(0, 0x2000),)).pack(),
        ),
        NO_FDS,
        "DEVICE_FEATURE           DMA_LOGGING_START SET 0x0-0x1fff (8 KiB) pages of 4 KiB",
    ),
    (
        DeviceFeature(99, FeatureFlags.PROBE | FeatureFlags.GET),
        NO_FDS,
        "DEVICE_FEATURE           feature 99 GET|PROBE",
    ),
    (
        DeviceFeature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, b"\xff\xff"),
        NO_FDS,
        "DEVICE_FEATURE           MIG_DEVICE_STATE SET 0xffff",
    ),
    (MigDataRead(1 << 20), NO_FDS, "MIG_DATA_READ            up to 1 MiB"),
    (MigDataWrite(b"abc"), NO_FDS, "MIG_DATA_WRITE           0x636261"),
    (
        DeviceReset(),
        [PLUG, MEMFD],
        "DEVICE_RESET             with socket, memfd 1:2052 (1 GiB, sealed: shrink grow)",
    ),
]

REPLIES: list[tuple[Command, Packable, str]] = [
    (
        Command.VERSION,
        Version(0, 1, Capabilities(max_msg_fds=16, twin_socket=TwinSocket(True, 0))),
        "VERSION                  reply 0.1 max_msg_fds=16 twin_socket=True,fd_index:0",
    ),
    (Command.DMA_MAP, Acknowledgement(), "DMA_MAP                  reply"),
    (
        Command.DMA_UNMAP,
        DmaUnmapReply(0x1000, 0x1000),
        "DMA_UNMAP                reply 0x1000-0x1fff (4 KiB)",
    ),
    (
        Command.DMA_UNMAP,
        DmaUnmapReply(0, 0x1000, DmaUnmapFlags.GET_DIRTY_BITMAP, 4096, b"\1" + bytes(7)),
        "DMA_UNMAP                reply 0x0-0xfff (4 KiB), dirty pages of 4 KiB: 0x0000000000000001",
    ),
    (
        Command.DEVICE_GET_INFO,
        DeviceInfo(DeviceFlags.PCI | DeviceFlags.RESET, 9, 5),
        "DEVICE_GET_INFO          reply RESET|PCI 9 regions, 5 irqs",
    ),
    (
        Command.DEVICE_GET_INFO,
        DeviceInfo(DeviceFlags(0x102), 1, 0),
        "DEVICE_GET_INFO          reply PCI|0x100 1 region, 0 irqs",
    ),
    (
        Command.DEVICE_GET_REGION_INFO,
        RegionInfo(
            0,
            RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP,
            0x4000,
            0x8000,
            (
                SparseMmap((SparseArea(0, 0x1000), SparseArea(0x2000, 0x1000))),
                RegionType(1, 2),
                MsixMappable(),
                OtherCapability(77, 1, bytes(8)),
            ),
        ),
        (
            "DEVICE_GET_REGION_INFO   reply BAR0 16 KiB READ|WRITE|MMAP, at +0x8000 of its fd, "
            "mappable areas: 0x0-0xfff (4 KiB) 0x2000-0x2fff (4 KiB), type 0x1 subtype 0x2, MSI-X table mappable, "
            "capability 77 version 1 0x0000000000000000"
        ),
    ),
    (
        Command.DEVICE_GET_REGION_INFO,
        RegionInfo(5, RegionFlags.NONE, 0, needed=64),
        "DEVICE_GET_REGION_INFO   reply BAR5 0 bytes none, cut: the whole reply takes 64 bytes",
    ),
    (
        Command.DEVICE_GET_REGION_IO_FDS,
        RegionIoFds(0, (SubRegion(0, 4, 0), SubRegion(8, 2, 1, IoFdType.IOREGIONFD, 1, 0xAB))),
        (
            "DEVICE_GET_REGION_IO_FDS reply BAR0, 0x0-0x3 (4 bytes) ioeventfd fd 0, "
            "0x8-0x9 (2 bytes) ioregionfd fd 1 flags 0x1 data 0xab"
        ),
    ),
    (Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(1), "DEVICE_GET_REGION_IO_FDS reply BAR1, no fds"),
    (
        Command.DEVICE_GET_IRQ_INFO,
        IrqInfo(2, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 3),
        "DEVICE_GET_IRQ_INFO      reply MSIX 3 vectors EVENTFD|NORESIZE",
    ),
    (Command.DEVICE_SET_IRQS, Acknowledgement(), "DEVICE_SET_IRQS          reply"),
    (
        Command.REGION_READ,
        RegionReadReply(0, 7, b"\xf4\x1a\x50\x10"),
        "REGION_READ              reply CONFIG vendor_id 0x10501af4",
    ),
    (
        Command.REGION_WRITE,
        RegionWriteReply(0x14, 4, 1),
        "REGION_WRITE             reply BAR4 common.device_status (1 byte)",
    ),
    (Command.REGION_WRITE_MULTI, RegionWriteMultiReply(3), "REGION_WRITE_MULTI       reply 3 writes"),
    (Command.DEVICE_RESET, Acknowledgement(), "DEVICE_RESET             reply"),
    (
        Command.DEVICE_FEATURE,
        DeviceFeature(
            Feature.MIGRATION,
            FeatureFlags.GET,
            MigrationSupport(MigrationFlags.STOP_COPY | MigrationFlags.P2P).pack(),
        ),
        "DEVICE_FEATURE           reply MIGRATION GET STOP_COPY|P2P",
    ),
    (
        Command.DEVICE_FEATURE,
        DeviceFeature(
            Feature.DMA_LOGGING_REPORT,
            FeatureFlags.GET,
            DmaLoggingReport(0, 0x1000, 4096, b"\1" + bytes(7)).pack(),
        ),
        "DEVICE_FEATURE           reply DMA_LOGGING_REPORT GET 0x0-0xfff (4 KiB) pages of 4 KiB: 0x0000000000000001",
    ),
    (Command.MIG_DATA_READ, MigDataReadReply(b""), "MIG_DATA_READ            reply (0 bytes)"),
    (Command.MIG_DATA_WRITE, Acknowledgement(), "MIG_DATA_WRITE           reply"),
]


@pytest.mark.parametrize(
    ("value", "fds", "words"), REQUESTS, ids=[f"{n}-{one[0].command.name}" for n, one in enumerate(REQUESTS)]
)
def test_a_request_says_what_it_asks_for(
    value: PackableRequest, fds: Fds, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = TraceFile().request(1, value, fds=fds).save(tmp_path / "trace")

    _, line = show(path, capsys)

    assert line == f"     1    0.000000 -> {words}"


@pytest.mark.parametrize(
    ("command", "value", "words"), REPLIES, ids=[f"{n}-{one[0].name}" for n, one in enumerate(REPLIES)]
)
def test_a_reply_says_what_it_answers(
    command: Command, value: Packable, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = TraceFile().reply(1, command, value).save(tmp_path / "trace")

    _, line = show(path, capsys)

    assert line == f"     1    0.000000 <- {words} [no request]"


def test_every_command_has_words() -> None:
    assert {value.command for value, _, _ in REQUESTS} == set(Command)
    assert {command for command, _, _ in REPLIES} >= set(Command) - {Command.DMA_READ, Command.DMA_WRITE}


def test_requests_of_the_server_go_the_other_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TraceFile()
    trace.request(7, DmaRead(0x1000, 4), 100, server=True, twin=True)
    trace.reply(7, Command.DMA_READ, DmaReadReply(0x1000, b"\1\2\3\4"), 150, client=True, twin=True)
    trace.request(8, DmaWrite(0x1000, b"\5"), 200, server=True)
    trace.reply(8, Command.DMA_WRITE, DmaWriteReply(0x1000, 1), 210, client=True)
    trace.request(9, DmaWrite(0x2000, b"\5"), 300, server=True)
    trace.reply(9, Command.DMA_WRITE, DmaWriteReply(), 310, client=True)

    lines = show(trace.save(tmp_path / "trace"), capsys)

    assert lines[1:] == [
        "     1    0.000000 <- DMA_READ                 0x1000-0x1003 (4 bytes) [twin]",
        "     2    0.000050 -> DMA_READ                 reply 0x1000 0x04030201 [twin]  50.0us",
        "     3    0.000100 <- DMA_WRITE                0x1000 0x05",
        "     4    0.000110 -> DMA_WRITE                reply 0x1000-0x1000 (1 byte)  10.0us",
        "     5    0.000200 <- DMA_WRITE                0x2000 0x05",
        "     6    0.000210 -> DMA_WRITE                reply  10.0us",
    ]


def test_what_does_not_decode_is_shown_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile()
    trace.raw(1, Command.REGION_READ, 0, b"\1\2\3")
    trace.raw(2, 14, 0, b"")
    trace.raw(3, Command.DEVICE_RESET, 0x7, bytes(20))
    trace.raw(4, Command.DEVICE_RESET, 0x21, b"?", server=True)
    trace.message(Header(5, Command.DEVICE_RESET, 99).pack())

    lines = show(trace.save(tmp_path / "trace"), capsys)

    assert lines[1:] == [
        "     1    0.000000 -> REGION_READ              does not decode: REGION_READ takes 16 bytes, got 3; 0x030201",
        "     2    0.000000 -> command 14               does not decode: there is no command 14; (0 bytes)",
        (
            "     3    0.000000 -> DEVICE_RESET             does not decode: flags 0x7 where a command is due; "
            f"{'00' * 16}... (20 bytes)"
        ),
        (
            "     4    0.000000 <- DEVICE_RESET             error errno 0 does not decode: "
            "an error reply takes no payload, got 1 bytes; 0x3f [no request]"
        ),
        "     5    0.000000 -> DEVICE_RESET             [16 bytes, where its header says 99]",
    ]


def test_what_a_stranger_wrote_does_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceFile()
    trace.raw(1, Command.VERSION, 0, b'\0\0\0\0{"capabilities":{"\\u001b[2J\\ud800\\n":1}}\0')

    line = show(trace.save(tmp_path / "trace"), capsys)[1]

    assert line == "     1    0.000000 -> VERSION                  0.0 unknown=\\x1b[2J\\ud800\\n"

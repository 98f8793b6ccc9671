"""The vfio-user protocol, without I/O.

vfio-user is VFIO's device interface as messages on a UNIX socket: a *client*, which is a virtual machine
monitor such as QEMU, asks a *server*, which implements a device, about regions and interrupts, shares guest
memory with it, and forwards the guest's accesses. The specification is QEMU's docs/interop/vfio-user.rst; its
structures are those of <linux/vfio.h>.

Nothing here opens, reads, waits or closes. Bytes and file descriptor numbers go in, values come out, and the
other way round, so the same code serves a server, a client, a proxy, a trace reader and a test.

**Reading.** Feed every read of the socket, with the file descriptors that came along, to a :class:`Decoder`,
and take whole :class:`Message` s out: a :class:`Header`, a payload, and the file descriptors that belong to
it. Which value the payload is follows from the command: :func:`decode_request` and :func:`decode_reply` look
it up. Each command family has a file, each request and each reply a frozen dataclass that checks itself while
it is unpacked. Whatever a peer sends, the only exception that comes out is :class:`ProtocolError`, with the
errno that an error reply should carry.

**Writing.** Build a value, and :func:`encode_request` or :func:`encode_reply` makes the whole message;
:func:`encode_error` the reply to what failed.

**The first message** of a connection must be VERSION. A server leaves that to a :class:`Handshake`: it
refuses everything else until then, answers with :func:`negotiate`, and ends with an :class:`Agreement` on
limits and features.

**The fast path.** Register accesses are most of the traffic, and their values are not needed for anything: a
server reads them with :data:`HEADER` and :data:`REGION_ACCESS` straight from the buffer, and writes replies
with :func:`pack_read_reply_into`, :func:`pack_write_reply_into`, :func:`pack_reply_header_into` and
:func:`pack_error_into` into another that it keeps.

**Sizes.** Replies that can be longer than their client expects have a ``room`` to be packed for, the
request's argsz. Structures with an argsz may be longer in a message than they are here, since VFIO's
structures grow at their end; all other payloads have exactly the length that they say.
"""

from protocol.capabilities import Capabilities, MigrationCapability, TwinSocket
from protocol.codec import (
    REPLIES,
    REQUESTS,
    Acknowledgement,
    ErrorReply,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode,
    encode_error,
    encode_reply,
    encode_request,
)
from protocol.commands import REPLIES_WITH_FDS, REQUESTS_WITH_FDS, SERVER_COMMANDS, Command
from protocol.decoder import DEFAULT_MAX_FDS, MESSAGE_ROOM, Decoder, Message, max_message_size
from protocol.device_info import DeviceInfo, DeviceReset, GetInfo
from protocol.dma import (
    BitmapRequest,
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
)
from protocol.errors import ProtocolError
from protocol.feature import (
    DeviceFeature,
    DmaLoggingControl,
    DmaLoggingReport,
    LoggingRange,
    MigrationState,
    MigrationSupport,
)
from protocol.header import (
    FLAG_ERROR,
    FLAG_NO_REPLY,
    HEADER,
    HEADER_SIZE,
    TYPE_MASK,
    Header,
    MessageType,
    pack_error_into,
    pack_reply_header_into,
)
from protocol.irqs import GetIrqInfo, IrqInfo, SetIrqs
from protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite
from protocol.region_info import (
    GetRegionInfo,
    MsixMappable,
    OtherCapability,
    RegionCapability,
    RegionInfo,
    RegionType,
    SparseArea,
    SparseMmap,
)
from protocol.region_io import (
    REGION_ACCESS,
    REGION_REPLY_SIZE,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    pack_read_reply_into,
    pack_write_reply_into,
)
from protocol.region_io_fds import GetRegionIoFds, RegionIoFds, SubRegion
from protocol.version import (
    MAJOR,
    MINOR,
    Agreement,
    Handshake,
    HandshakeState,
    Version,
    agree,
    negotiate,
)
from protocol.vfio import (
    PCI_NUM_IRQS,
    PCI_NUM_REGIONS,
    DeviceFlags,
    DeviceState,
    DmaMapFlags,
    DmaUnmapFlags,
    Feature,
    FeatureFlags,
    IoEventFdFlags,
    IoFdType,
    IoRegionFdFlags,
    IrqAction,
    IrqData,
    IrqFlags,
    MigrationFlags,
    PciIrq,
    PciRegion,
    RegionCapabilityId,
    RegionFlags,
)
from protocol.wire import bitmap_size

__all__ = [
    "DEFAULT_MAX_FDS",
    "FLAG_ERROR",
    "FLAG_NO_REPLY",
    "HEADER",
    "HEADER_SIZE",
    "MAJOR",
    "MESSAGE_ROOM",
    "MINOR",
    "PCI_NUM_IRQS",
    "PCI_NUM_REGIONS",
    "REGION_ACCESS",
    "REGION_REPLY_SIZE",
    "REPLIES",
    "REPLIES_WITH_FDS",
    "REQUESTS",
    "REQUESTS_WITH_FDS",
    "SERVER_COMMANDS",
    "TYPE_MASK",
    "Acknowledgement",
    "Agreement",
    "BitmapRequest",
    "Capabilities",
    "Command",
    "Decoder",
    "DeviceFeature",
    "DeviceFlags",
    "DeviceInfo",
    "DeviceReset",
    "DeviceState",
    "DmaLoggingControl",
    "DmaLoggingReport",
    "DmaMap",
    "DmaMapFlags",
    "DmaRead",
    "DmaReadReply",
    "DmaUnmap",
    "DmaUnmapFlags",
    "DmaUnmapReply",
    "DmaWrite",
    "DmaWriteReply",
    "ErrorReply",
    "Feature",
    "FeatureFlags",
    "GetInfo",
    "GetIrqInfo",
    "GetRegionInfo",
    "GetRegionIoFds",
    "Handshake",
    "HandshakeState",
    "Header",
    "IoEventFdFlags",
    "IoFdType",
    "IoRegionFdFlags",
    "IrqAction",
    "IrqData",
    "IrqFlags",
    "IrqInfo",
    "LoggingRange",
    "Message",
    "MessageType",
    "MigDataRead",
    "MigDataReadReply",
    "MigDataWrite",
    "MigrationCapability",
    "MigrationFlags",
    "MigrationState",
    "MigrationSupport",
    "MsixMappable",
    "OtherCapability",
    "PciIrq",
    "PciRegion",
    "ProtocolError",
    "RegionCapability",
    "RegionCapabilityId",
    "RegionFlags",
    "RegionInfo",
    "RegionIoFds",
    "RegionRead",
    "RegionReadReply",
    "RegionType",
    "RegionWrite",
    "RegionWriteMulti",
    "RegionWriteMultiReply",
    "RegionWriteReply",
    "Reply",
    "Request",
    "SetIrqs",
    "SparseArea",
    "SparseMmap",
    "SubRegion",
    "TwinSocket",
    "Version",
    "agree",
    "bitmap_size",
    "decode_reply",
    "decode_request",
    "encode",
    "encode_error",
    "encode_reply",
    "encode_request",
    "max_message_size",
    "negotiate",
    "pack_error_into",
    "pack_read_reply_into",
    "pack_reply_header_into",
    "pack_write_reply_into",
]

"""Constants and structures on the wire of a virtio GPU (virtio 1.3, section 5.7).

Structures are precompiled; those of requests do not include the control header, which is unpacked once, so they are
unpacked from offset :data:`HEADER_SIZE`. All fields are little endian.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

DEVICE_ID = 16
PCI_CLASS_DISPLAY_OTHER = 0x038000
"""Display controller without VGA compatibility (5.7.7)."""

MAX_SCANOUTS = 16
CURSOR_SIDE = 64
"""Cursors are exactly this wide and high (5.7.6.5)."""
EDID_CAPACITY = 1024


class Feature(IntEnum):
    """Feature bit numbers (5.7.3)."""

    VIRGL = 0
    EDID = 1
    RESOURCE_UUID = 2
    RESOURCE_BLOB = 3
    CONTEXT_INIT = 4


class Event(IntFlag):
    """Bits of events_read and events_clear in the configuration space (5.7.4.2)."""

    DISPLAY = 1


class Queue(IntEnum):
    """Virtqueue indexes (5.7.2)."""

    CONTROL = 0
    CURSOR = 1


class Command(IntEnum):
    """Request types (5.7.6.7)."""

    GET_DISPLAY_INFO = 0x0100
    RESOURCE_CREATE_2D = 0x0101
    RESOURCE_UNREF = 0x0102
    SET_SCANOUT = 0x0103
    RESOURCE_FLUSH = 0x0104
    TRANSFER_TO_HOST_2D = 0x0105
    RESOURCE_ATTACH_BACKING = 0x0106
    RESOURCE_DETACH_BACKING = 0x0107
    GET_CAPSET_INFO = 0x0108
    GET_CAPSET = 0x0109
    GET_EDID = 0x010A
    RESOURCE_ASSIGN_UUID = 0x010B
    RESOURCE_CREATE_BLOB = 0x010C
    SET_SCANOUT_BLOB = 0x010D

    CTX_CREATE = 0x0200
    CTX_DESTROY = 0x0201
    CTX_ATTACH_RESOURCE = 0x0202
    CTX_DETACH_RESOURCE = 0x0203
    RESOURCE_CREATE_3D = 0x0204
    TRANSFER_TO_HOST_3D = 0x0205
    TRANSFER_FROM_HOST_3D = 0x0206
    SUBMIT_3D = 0x0207
    RESOURCE_MAP_BLOB = 0x0208
    RESOURCE_UNMAP_BLOB = 0x0209

    UPDATE_CURSOR = 0x0300
    MOVE_CURSOR = 0x0301


class Response(IntEnum):
    """Response types (5.7.6.7)."""

    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_CAPSET_INFO = 0x1102
    OK_CAPSET = 0x1103
    OK_EDID = 0x1104
    OK_RESOURCE_UUID = 0x1105
    OK_MAP_INFO = 0x1106

    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205


class HeaderFlag(IntFlag):
    """Flags of the control header (5.7.6.7)."""

    FENCE = 1
    INFO_RING_IDX = 2


class BlobMem(IntEnum):
    """What memory a blob resource is made of."""

    GUEST = 1
    HOST3D = 2
    HOST3D_GUEST = 3


class BlobFlag(IntFlag):
    """What a blob resource is for."""

    USE_MAPPABLE = 1
    USE_SHAREABLE = 2
    USE_CROSS_DEVICE = 4


HEADER = Struct("<IIQIB3x")
"""struct virtio_gpu_ctrl_hdr: type, flags, fence_id, ctx_id, ring_idx."""
HEADER_SIZE = HEADER.size

RESOURCE_ID = Struct("<I4x")
"""resource_id of unref, detach backing and assign UUID; the scanout of get EDID."""
CREATE_2D = Struct("<IIII")
"""resource_id, format, width, height."""
SET_SCANOUT = Struct("<IIIIII")
"""r.x, r.y, r.width, r.height, scanout_id, resource_id."""
FLUSH = Struct("<IIIII4x")
"""r.x, r.y, r.width, r.height, resource_id."""
TRANSFER_2D = Struct("<IIIIQI4x")
"""r.x, r.y, r.width, r.height, offset, resource_id."""
ATTACH_BACKING = Struct("<II")
"""resource_id, nr_entries; the entries follow."""
MEM_ENTRY = Struct("<QI4x")
"""addr, length."""
GET_CAPSET = Struct("<II")
"""capset_id, capset_version; for capset info, capset_index and padding."""
CREATE_BLOB = Struct("<IIIIQQ")
"""resource_id, blob_mem, blob_flags, nr_entries, blob_id, size; the entries follow."""
SET_SCANOUT_BLOB = Struct("<IIIIIIIII4x4I4I")
"""r.x, r.y, r.width, r.height, scanout_id, resource_id, width, height, format, strides[4], offsets[4]."""
UPDATE_CURSOR = Struct("<Iii4xIII4x")
"""pos.scanout_id, pos.x, pos.y, resource_id, hot_x, hot_y; a position left or above of the screen is negative."""

REQUEST_LIMIT = HEADER_SIZE + SET_SCANOUT_BLOB.size
"""Bytes of the longest request, backing entries apart: no more of a buffer is read before it is understood."""

DISPLAY_ONE = Struct("<IIIIII")
"""r.x, r.y, r.width, r.height, enabled, flags; sixteen of them are the response to get display info."""
EDID_RESPONSE = Struct(f"<I4x{EDID_CAPACITY}s")
"""size, edid."""

CONFIG = Struct("<IIII")
"""Device configuration: events_read, events_clear, num_scanouts, num_capsets (5.7.4)."""

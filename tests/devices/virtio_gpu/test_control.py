from struct import pack, unpack_from

import pytest

from devices.virtio_gpu import GpuOptions
from devices.virtio_gpu.device import VirtioGpu

from .guest import (
    ATTACH,
    BAD_PARAMETER,
    BAD_RESOURCE,
    BAD_SCANOUT,
    BLOB,
    CREATE_2D,
    CREATE_BLOB,
    CTX_CREATE,
    CURSOR,
    FENCE,
    FLUSH,
    GET_CAPSET,
    GET_CAPSET_INFO,
    GET_DISPLAY_INFO,
    GET_EDID,
    MAP_BLOB,
    MOVE_CURSOR,
    OK,
    OK_DISPLAY_INFO,
    OK_EDID,
    RING_IDX,
    SET_SCANOUT,
    SET_SCANOUT_BLOB,
    TRANSFER,
    UNMAP_BLOB,
    UNSPEC,
    UPDATE_CURSOR,
    UUID,
    Guest,
    header,
    parse,
)

# Lengths of the structures in linux/virtio_gpu.h, headers included.
LENGTHS = {
    CREATE_2D: 40,
    SET_SCANOUT: 48,
    FLUSH: 48,
    TRANSFER: 56,
    ATTACH: 32,
    CREATE_BLOB: 56,
    SET_SCANOUT_BLOB: 96,
    GET_EDID: 32,
    GET_CAPSET: 32,
}


def test_a_fence_comes_back_in_the_response_of_a_flush() -> None:
    guest = Guest()
    guest.show(1, width=4, height=4)
    body = pack("<IIIIII", 0, 0, 4, 4, 1, 0)
    response = guest.exchange(header(FLUSH, FENCE, 0x1122334455667788, 9) + body, space=24)
    assert response == pack("<IIQII", OK, FENCE, 0x1122334455667788, 9, 0)


def test_a_fence_comes_back_in_an_error_too() -> None:
    reply = parse(Guest().exchange(header(FLUSH, FENCE, 7) + bytes(24)))
    assert (reply.type, reply.flags, reply.fence_id) == (BAD_RESOURCE, FENCE, 7)
    reply = parse(Guest().exchange(header(0xDEAD, FENCE, 8)))
    assert (reply.type, reply.flags, reply.fence_id) == (UNSPEC, FENCE, 8)


def test_a_fence_comes_back_with_data() -> None:
    reply = parse(Guest().exchange(header(GET_DISPLAY_INFO, FENCE, 5)))
    assert (reply.type, reply.flags, reply.fence_id, len(reply.data)) == (OK_DISPLAY_INFO, FENCE, 5, 16 * 24)


def test_the_ring_index_of_a_fence_comes_back() -> None:
    reply = parse(Guest().exchange(header(GET_DISPLAY_INFO, FENCE | RING_IDX | 0x80, 5, 2, 63)))
    assert (reply.flags, reply.ctx_id, reply.ring_idx) == (FENCE | RING_IDX, 2, 63)


def test_without_a_fence_no_flag_is_set() -> None:
    guest = Guest()
    guest.show(1, width=4, height=4)
    assert guest.exchange(header(FLUSH) + pack("<IIIIII", 0, 0, 4, 4, 1, 0)) == pack("<IIQII", OK, 0, 0, 0, 0)


@pytest.mark.parametrize("length", [0, 1, 23])
def test_a_request_shorter_than_a_header_is_an_error(length: int) -> None:
    assert parse(Guest().exchange(header(GET_DISPLAY_INFO)[:length])).type == UNSPEC


@pytest.mark.parametrize("command", LENGTHS)
def test_a_request_shorter_than_its_structure_is_an_error(command: int) -> None:
    guest = Guest()
    for length in (24, LENGTHS[command] - 1):
        request = header(command, FENCE, 3) + bytes(length - 24)
        reply = parse(guest.exchange(request))
        assert (reply.type, reply.fence_id) == (UNSPEC, 3)
    assert (
        parse(guest.exchange(header(command) + bytes(LENGTHS[command] - 24))).type != UNSPEC
        or command == ATTACH
    )


def test_a_response_is_cut_where_the_buffer_ends() -> None:
    guest = Guest()
    assert len(guest.exchange(header(GET_DISPLAY_INFO), space=100)) == 100
    assert guest.exchange(header(GET_DISPLAY_INFO), space=0) == b""


@pytest.mark.parametrize(
    "command", [*range(CTX_CREATE, 0x20A), 0, 0xFF, 0x10E, 0x300, 0x301, 0x1100, 0xFFFFFFFF]
)
def test_3d_and_unknown_commands_are_unspecified_errors(command: int) -> None:
    assert Guest().ask(command, bytes(128)).type == UNSPEC


@pytest.mark.parametrize("command", [MAP_BLOB, UNMAP_BLOB])
def test_no_blob_can_be_mapped_without_host_visible_memory(command: int) -> None:
    guest = Guest()
    assert guest.create_blob(1, 4096, [(0, 4096)]) == OK
    assert guest.ask(command, pack("<IIQ", 1, 0, 0)).type == UNSPEC


def test_a_cursor_command_is_served_on_the_cursor_queue_only() -> None:
    guest = Guest()
    for command in (UPDATE_CURSOR, MOVE_CURSOR):
        assert guest.ask(command, bytes(32)).type == UNSPEC
        assert guest.ask(command, bytes(32), queue=CURSOR).type == OK
    assert guest.ask(GET_DISPLAY_INFO, queue=CURSOR).type == UNSPEC


@pytest.mark.parametrize("command", [GET_CAPSET_INFO, GET_CAPSET])
def test_there_is_no_capability_set(command: int) -> None:
    assert Guest().ask(command, bytes(8)).type == BAD_PARAMETER


def test_display_info_lists_the_screens_from_left_to_right() -> None:
    guest = Guest(GpuOptions(scanouts=3, width=1024, height=768))
    guest.gpu.set_mode(1, 640, 480, connected=False)
    guest.gpu.set_mode(2, 800, 600)
    data = guest.ask(GET_DISPLAY_INFO).data
    modes = [unpack_from("<6I", data, 24 * index) for index in range(16)]
    assert modes[:3] == [(0, 0, 1024, 768, 1, 0), (0, 0, 0, 0, 0, 0), (1024, 0, 800, 600, 1, 0)]
    assert modes[3:] == [(0, 0, 0, 0, 0, 0)] * 13


def test_the_edid_of_a_screen_follows_its_mode() -> None:
    guest = Guest(GpuOptions(scanouts=2))
    guest.gpu.set_mode(1, 1600, 900)
    for screen, width in ((0, 1280), (1, 1600)):
        reply = guest.ask(GET_EDID, pack("<II", screen, 0))
        assert (reply.type, len(reply.data)) == (OK_EDID, 8 + 1024)
        assert unpack_from("<II", reply.data) == (128, 0)
        edid = reply.data[8:]
        assert edid[56] | edid[58] >> 4 << 8 == width
        assert not any(edid[128:])
    assert guest.ask(GET_EDID, pack("<II", 2, 0)).type == BAD_SCANOUT


def test_the_edid_of_a_large_screen_has_an_extension() -> None:
    guest = Guest(GpuOptions(width=5120, height=2880))
    reply = guest.ask(GET_EDID, pack("<II", 0, 0))
    assert unpack_from("<II", reply.data) == (256, 0)
    assert reply.data[8 + 128] == 0x70


def test_commands_of_features_that_were_not_negotiated_are_unknown() -> None:
    guest = Guest(features=0)
    assert guest.ask(GET_EDID, bytes(8)).type == UNSPEC
    assert guest.create_blob(1, 4096, [(0, 4096)]) == UNSPEC
    assert guest.create_2d(1) == OK
    assert guest.ask(0x10B, pack("<II", 1, 0)).type == UNSPEC
    assert guest.set_scanout_blob(0, 0, (0, 0, 0, 0), width=0, height=0, stride=0) == UNSPEC


def test_features_that_were_not_offered_cannot_be_negotiated() -> None:
    guest = Guest(GpuOptions(blob=False, edid=False))
    assert guest.gpu.features == UUID
    assert guest.create_blob(1, 4096, [(0, 4096)]) == UNSPEC
    assert guest.ask(GET_EDID, bytes(8)).type == UNSPEC
    assert Guest().gpu.features == 2 | UUID | BLOB


@pytest.mark.parametrize(
    ("width", "height", "blob", "offered"),
    [
        (1280, 800, None, 0),
        (2560, 1440, None, BLOB),
        (3840, 2160, None, BLOB),
        (1280, 800, True, BLOB),
        (3840, 2160, False, 0),
    ],
)
def test_blobs_are_offered_where_they_pay_unless_told_otherwise(
    width: int, height: int, blob: bool | None, offered: int
) -> None:
    assert VirtioGpu(GpuOptions(width=width, height=height, blob=blob)).features & BLOB == offered


def test_what_was_served_and_refused_is_counted() -> None:
    guest = Guest()
    guest.show(1, width=4, height=4)
    guest.flush(1, (0, 0, 4, 4))
    guest.flush(1, (0, 0, 5, 4))
    guest.flush(2, (0, 0, 4, 4))
    guest.ask(0xBAD)
    guest.exchange(b"")
    guest.cursor(MOVE_CURSOR)
    assert guest.status["commands"] == {
        "resource_create_2d": 1,
        "set_scanout": 1,
        "resource_flush": 3,
        "move_cursor": 1,
    }
    assert guest.status["refused"] == {
        "resource_flush: err_invalid_parameter": 1,
        "resource_flush: err_invalid_resource_id": 1,
        "unknown command: err_unspec": 1,
        "request: err_unspec": 1,
    }
    assert (guest.status["flips"], guest.status["flushes"]) == (1, 1)

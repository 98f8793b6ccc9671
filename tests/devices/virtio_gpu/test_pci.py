"""The device as a guest finds it: a PCI function with virtqueues in guest memory."""

from struct import pack, unpack_from

import pytest

from devices.testing import FakeHost
from devices.virtio.pci import VirtioPci
from devices.virtio_gpu import GpuOptions, VirtioGpu
from tests.devices.virtio.driver import CONFIG, VirtioDriver

from .guest import (
    ATTACH,
    CREATE_2D,
    CREATE_BLOB,
    CURSOR,
    FENCE,
    FLUSH,
    GET_DISPLAY_INFO,
    MOVE_CURSOR,
    OK,
    OK_DISPLAY_INFO,
    PAGE,
    SET_SCANOUT,
    SET_SCANOUT_BLOB,
    TRANSFER,
    Reply,
    header,
    mem_entries,
    noise,
    parse,
)

FRAMEBUFFER = 0x80000
WIDTH, HEIGHT = 64, 32
SIZE = WIDTH * HEIGHT * 4
WHOLE = (0, 0, WIDTH, HEIGHT)


class GpuDriver(VirtioDriver):
    """Sends commands as Linux does: backing entries in a descriptor of their own, a fence in each header."""

    def __init__(self, gpu: VirtioGpu, *, shared: bool = True, indirect: bool = False) -> None:
        self.gpu = gpu
        super().__init__(VirtioPci(gpu), FakeHost(1 << 20, shared=shared), indirect=indirect)
        self.fence = 0

    def command(self, kind: int, *parts: bytes, space: int = 24) -> Reply:
        self.fence += 1
        body, *rest = parts or (b"",)
        (response,) = self.send(0, [header(kind, FENCE, self.fence) + body, *rest], [space])
        reply = parse(response)
        assert (reply.flags, reply.fence_id) == (FENCE, self.fence)
        return reply

    def show_image(self) -> None:
        for kind, *parts in (
            (CREATE_2D, pack("<IIII", 1, 2, WIDTH, HEIGHT)),
            (ATTACH, pack("<II", 1, 2), mem_entries([(FRAMEBUFFER, PAGE), (FRAMEBUFFER + PAGE, PAGE)])),
            (SET_SCANOUT, pack("<6I", *WHOLE, 0, 1)),
            (TRANSFER, pack("<4IQII", *WHOLE, 0, 1, 0)),
            (FLUSH, pack("<6I", *WHOLE, 1, 0)),
        ):
            assert self.command(kind, *parts).type == OK

    def pixels(self) -> bytes:
        frame = self.host.drive(self.gpu.capture(0))
        pixels: bytes = frame.buffer.pixels  # type: ignore[attr-defined]
        return pixels


def driver(*, shared: bool = True, indirect: bool = False) -> GpuDriver:
    gpu_driver = GpuDriver(VirtioGpu(GpuOptions(scanouts=2, blob=True)), shared=shared, indirect=indirect)
    gpu_driver.start()
    gpu_driver.poke(FRAMEBUFFER, noise(SIZE))
    return gpu_driver


def test_it_is_found_as_a_virtio_gpu_with_edid_uuid_and_blobs() -> None:
    gpu = driver()
    assert gpu.read(CONFIG, 0, 4) == 0x1050_1AF4
    assert gpu.read(CONFIG, 9, 3) == 0x038000
    assert gpu.features & 0xFF == 0b1110
    assert gpu.config_read(8, 4) == b"\x02\0\0\0"
    assert [ring.size for ring in gpu.rings] == [256, 16]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
def test_a_driver_shows_an_image(shared: bool, indirect: bool) -> None:
    gpu = driver(shared=shared, indirect=indirect)
    gpu.show_image()
    assert gpu.pixels() == noise(SIZE)


@pytest.mark.parametrize("shared", [True, False])
def test_a_driver_shows_a_blob_and_draws_on(shared: bool) -> None:
    gpu = driver(shared=shared)
    create = pack("<IIIIQQ", 1, 1, 2, 1, 0, SIZE)
    assert gpu.command(CREATE_BLOB, create, mem_entries([(FRAMEBUFFER, SIZE)])).type == OK
    framebuffer = (
        pack("<6I", *WHOLE, 0, 1) + pack("<4I", WIDTH, HEIGHT, 2, 0) + pack("<8I", 4 * WIDTH, *[0] * 7)
    )
    assert gpu.command(SET_SCANOUT_BLOB, framebuffer).type == OK
    gpu.poke(FRAMEBUFFER, b"drawn")
    assert gpu.command(FLUSH, pack("<6I", *WHOLE, 1, 0)).type == OK
    assert gpu.pixels() == b"drawn" + noise(SIZE)[5:]


def test_display_info_reaches_the_driver_whole() -> None:
    reply = driver().command(GET_DISPLAY_INFO, space=408)
    assert reply.type == OK_DISPLAY_INFO
    assert unpack_from("<6I", reply.data, 24) == (1280, 0, 1280, 800, 1, 0)


def test_a_new_mode_interrupts_the_driver() -> None:
    gpu = driver()
    gpu.host.interrupts.clear()
    gpu.gpu.set_mode(0, 800, 600)
    assert gpu.host.interrupts == [(2, 0)]
    assert gpu.config_read(0, 4) == b"\x01\0\0\0"
    gpu.config_write(4, b"\x01\0\0\0")
    assert gpu.config_read(0, 4) == bytes(4)


def test_a_cursor_moves_without_room_for_a_response() -> None:
    gpu = driver()
    assert gpu.exchange(CURSOR, [header(MOVE_CURSOR) + bytes(32)], []) == (0, [])
    assert not gpu.needs_reset


def test_a_driver_that_resets_the_device_leaves_nothing_pinned() -> None:
    gpu = driver()
    gpu.show_image()
    assert gpu.gpu.status()["pages_pinned"] == 2
    gpu.status = 0
    assert gpu.host.memory.pins == []
    assert gpu.gpu.status()["resources"] == 0


def test_the_picture_outlives_the_client() -> None:
    gpu = driver()
    gpu.show_image()
    gpu.device.disconnect()
    assert gpu.host.memory.pins == []
    assert gpu.pixels() == noise(SIZE)

"""The image that keeps QEMU from migrating. The layout is that of VDI 1.1: VirtualBox's VDICore.h."""

from __future__ import annotations

import struct

from server.qemu.migration_guard import IMAGE


def test_the_image_is_a_vdi_without_a_block() -> None:
    image = IMAGE.read_bytes()
    assert len(image) == 512
    assert struct.unpack_from("<II", image, 0x40) == (0xBEDA107F, 0x00010001)  # signature, version 1.1
    assert struct.unpack_from("<II", image, 0x48) == (0x180, 1)  # bytes of the header, dynamic
    assert struct.unpack_from("<II", image, 0x154) == (512, 512)  # where the block map is, where data is
    assert struct.unpack_from("<I", image, 0x168) == (512,)  # bytes of a sector
    assert struct.unpack_from("<QI", image, 0x170) == (0, 1 << 20)  # bytes of the disk, of a block
    assert struct.unpack_from("<II", image, 0x180) == (0, 0)  # blocks, blocks that have data
    assert (
        image[:64].rstrip(b"\0\n").decode() == "<<< vgpud: a guest with a virtual GPU cannot be migrated >>>"
    )

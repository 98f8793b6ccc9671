"""The image that keeps QEMU from migrating. The layout is that of VDI 1.1: VirtualBox's VDICore.h."""

import json
import struct
from pathlib import Path

import pytest

from server.launch.migration_guard import knows_image, with_migration_guard
from server.launch.qemu_options import parse_command
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


def test_qemu_opens_the_image_read_only_and_for_no_device() -> None:
    option, value = with_migration_guard(parse_command(["qemu", "-nographic"])).words[2:]
    assert option == "-blockdev"
    assert json.loads(value) == {
        "driver": "vdi",
        "node-name": "vgpud-gpu-cannot-migrate",
        "read-only": True,
        "file": {"driver": "file", "filename": str(IMAGE)},
    }


@pytest.mark.parametrize(
    ("formats", "known"),
    [
        ("Supported formats: raw qcow2\nSupported formats (read-only): raw vdi vmdk", True),
        ("Supported formats: raw vdi qcow2\nSupported formats (read-only): raw qcow2", False),
        ("", False),
    ],
)
def test_a_qemu_may_lack_the_format(tmp_path: Path, formats: str, known: bool) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = '-drive format=help' ] && printf '%b' '{formats}'\n")
    program.chmod(0o755)
    assert knows_image(str(program)) is known

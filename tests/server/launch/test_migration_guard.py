"""What keeps QEMU from migrating, on its command line."""

import json
from pathlib import Path

import pytest

from server.launch.migration_guard import knows_image, with_migration_guard
from server.launch.qemu_options import parse_command
from server.qemu.migration_guard import IMAGE


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

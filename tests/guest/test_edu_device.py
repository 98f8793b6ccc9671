"""A stock guest with two educational devices, ours and QEMU's own: it cannot tell which is which.

The addresses of registers and what they answer are those of QEMU's docs/specs/edu.rst.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.support import GuestParts
from tests.guest.virtual_gpu import serving

pytestmark = pytest.mark.guest

DRIVE = r"""
cd /sys/bus/pci/devices/$1
cat vendor device class revision
echo 1 >enable
printf '\006' | dd of=config bs=1 seek=4 conv=notrunc 2>/dev/null
bar=$(head -n 1 resource | cut -d ' ' -f 1)
stat -c %s resource0
read32() { devmem $((bar + $1)) 32; }
write() { devmem $((bar + $1)) $2 $3; }
read32 0x00
write 0x04 32 0x12345678; read32 0x04
write 0x08 32 10; while [ $(($(read32 0x20) & 1)) = 1 ]; do :; done; read32 0x08
write 0x60 32 6; write 0x60 32 1; write 0x64 32 2; read32 0x24; write 0x64 32 5; read32 0x24
write 0x80 64 0xf0000; write 0x88 64 0x40000; write 0x90 64 4096; write 0x98 32 5
while [ $(($(read32 0x98) & 1)) = 1 ]; do :; done; read32 0x98; read32 0x24; write 0x64 32 0x100
read32 0x80; devmem $((bar + 0x90)) 64; read32 0x60; read32 0x40000
"""
ANSWERS = [
    "0x1234", "0x11e8", "0x00ff00", "0x10", "1048576", "0x010000ED", "0xEDCBA987", "0x00375F00", "0x00000005",
    "0x00000000", "0x00000004", "0x00000100", "0x000F0000", "0x0000000000001000", "0xFFFFFFFF", "0xFFFFFFFF",
]  # fmt: skip


async def test_a_guest_finds_the_edu_device_and_cannot_tell_it_from_the_one_of_qemu(
    parts: GuestParts, tmp_path: Path
) -> None:
    theirs = {"driver": "edu", "addr": "0x6"}
    async with (
        serving(tmp_path, device="edu", name="edu") as server,
        parts.boot(server.gpu(addr="0x5"), theirs) as guest,
    ):
        await guest.check(f"cat >/tmp/drive.sh <<'EOF'\n{DRIVE}\nEOF")
        ours = (await guest.check("sh /tmp/drive.sh 0000:00:05.0 2>&1")).splitlines()
        assert ours == ANSWERS
        assert (await guest.check("sh /tmp/drive.sh 0000:00:06.0 2>&1")).splitlines() == ours
        assert (await server.status())["device"] == "edu"
        said = "\n".join(server.process.log.tail)
        assert not any(event in said for event in ("dma_refused", "dma_failed", "device_fault"))

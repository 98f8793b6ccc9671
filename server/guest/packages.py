"""The Debian packages that guests are made of, unpacked into the cache.

Two entries, made on demand: QEMU with what it needs, and the guest's kernel and programs. The name of an
entry contains a digest of its recipe, so a changed recipe is a new entry.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.guest.apt import Archive, PrivateApt
from server.guest.cache import cache_dir, locked, provide
from server.guest.errors import GuestError
from server.guest.progress import Report, mebibytes, to_stderr

LIBRARIES = "usr/lib/x86_64-linux-gnu"
"""Where the libraries of an unpacked entry are, relative to its folder."""

_TRIXIE = Archive(
    suites=("trixie", "trixie-backports"),
    pinned={"trixie-backports": ("qemu", "seabios", "ipxe")},
    provided=(
        "adduser", "base-passwd", "coreutils", "debconf", "fuse3", "initramfs-tools", "kmod", "linux-base",
        "passwd", "systemd", "udev",
    ),
)  # fmt: skip

_MODULES = "./usr/lib/modules/*/kernel"
_LEFT_OUT = (
    "./etc", "./var", "./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/lintian",
    "./usr/bin/qemu-system-i386", "./usr/bin/qemu-system-x86_64-microvm",
    f"{_MODULES}/sound", f"{_MODULES}/net/[!9]*",
    *(f"{_MODULES}/drivers/{drivers}" for drivers in ("net", "media", "scsi", "infiniband", "iio")),
    *(f"{_MODULES}/drivers/gpu/drm/{driver}" for driver in ("amd", "i915", "xe", "nouveau", "radeon")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Packages of an archive, and what of their files is not kept (patterns of tar)."""

    name: str
    packages: tuple[str, ...]
    archive: Archive = _TRIXIE
    left_out: tuple[str, ...] = _LEFT_OUT

    @property
    def entry(self) -> str:
        """The name of the entry in the cache."""
        digest = hashlib.sha256(repr((self.packages, self.archive, self.left_out)).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"


QEMU = Recipe("qemu", ("qemu-system-x86",))
GUEST = Recipe("guest", ("linux-image-amd64", "busybox-static", "libdrm-tests"))


def unpacked(recipe: Recipe, report: Report = to_stderr) -> Path:
    """Return the folder of the unpacked packages of ``recipe``, which are downloaded where missing.

    Raises :class:`GuestError` where they cannot be had.
    """
    root = cache_dir()

    def make(folder: Path) -> None:
        started = time.monotonic()
        with locked(root / ".apt.lock", report):
            files = PrivateApt(root / "apt", recipe.archive, report).download(recipe.packages)
            report(f"unpacking {len(files)} packages for the {recipe.name}")
            unpack(files, folder, recipe.left_out)
            for file in files:
                file.unlink()
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        report(f"{recipe.name} unpacked: {mebibytes(size)}, {time.monotonic() - started:.0f} s, in {root}")

    return provide(root, recipe.entry, make, report)


def unpack(files: Sequence[Path], folder: Path, left_out: Sequence[str] = ()) -> None:
    """Unpack the .deb ``files`` into one ``folder``, without what matches ``left_out``."""
    excluded = [f"--exclude={pattern}" for pattern in left_out]
    for file in files:
        content = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE)
        with content:
            extract = subprocess.run(
                ["tar", "-x", "--no-same-owner", "-C", str(folder), *excluded],
                stdin=content.stdout,
                capture_output=True,
                text=True,
                check=False,
            )
        if content.returncode or extract.returncode:
            raise GuestError(f"cannot unpack {file.name}: {extract.stderr.strip() or 'dpkg-deb failed'}")

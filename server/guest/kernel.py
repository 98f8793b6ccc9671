"""A stock guest kernel: its image, and its modules with what they depend on."""

from __future__ import annotations

import gzip
import lzma
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from server.guest.elf import ElfFile
from server.guest.errors import GuestError
from server.guest.packages import GUEST, unpacked
from server.guest.progress import Report, to_stderr

_MODULE_FILE = re.compile(r"(?P<name>[^/]+)\.ko(?:\.(?:xz|gz|zst))?$")


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module: its name with underscores, its code uncompressed, the modules that it depends on."""

    name: str
    code: bytes
    depends: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder of its modules (``lib/modules/RELEASE``)."""

    image: Path
    modules_folder: Path
    release: str

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        files = {}
        for path in sorted(self.modules_folder.joinpath("kernel").rglob("*.ko*")):
            if match := _MODULE_FILE.search(path.name):
                files[module_name(match["name"])] = path
        return files

    @cached_property
    def _built_in(self) -> frozenset[str]:
        try:
            listing = self.modules_folder.joinpath("modules.builtin").read_text()
        except OSError:
            return frozenset()
        return frozenset(
            module_name(match["name"]) for match in map(_MODULE_FILE.search, listing.split()) if match
        )

    def modules(self, names: Iterable[str]) -> list[Module]:
        """Return the modules ``names`` and all that they depend on, each after what it depends on.

        Names may be written with - or _. Modules that are built into the kernel are left out. Raises
        :class:`GuestError` where the kernel has neither.
        """
        ordered: dict[str, Module] = {}

        def add(name: str) -> None:
            if name in ordered or name in self._built_in:
                return
            if name not in self._files:
                raise GuestError(f"kernel {self.release} has no module {name} in {self.modules_folder}")
            module = read_module(self._files[name])
            for dependency in module.depends:
                add(dependency)
            ordered[name] = module

        for name in names:
            add(module_name(name))
        return list(ordered.values())


def module_name(name: str) -> str:
    """Write the name of a module as the kernel does."""
    return name.replace("-", "_")


def read_module(path: Path) -> Module:
    """Read a module's file, compressed or not. Raises :class:`GuestError` where it cannot be read."""
    match = _MODULE_FILE.search(path.name)
    if match is None:
        raise GuestError(f"{path} is not a kernel module")
    try:
        code = _decompressed(path)
        info = ElfFile(code).section(".modinfo") or b""
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise GuestError(f"cannot read the kernel module {path}: {error}") from error
    depends = [
        entry.removeprefix(b"depends=").decode()
        for entry in info.split(b"\0")
        if entry.startswith(b"depends=")
    ]
    names = [module_name(name) for entry in depends for name in entry.split(",") if name]
    return Module(module_name(match["name"]), code, tuple(names))


def find_kernel(report: Report = to_stderr) -> Kernel:
    """Return the kernel of ``$VGPUD_KERNEL``, else Debian's (downloaded once), else the machine's own.

    The modules of a kernel from VGPUD_KERNEL are looked for in ``$VGPUD_MODULES`` (a
    ``lib/modules/RELEASE``), else in ``lib/modules/RELEASE`` where RELEASE follows the first ``-`` of the
    image's name. Raises :class:`GuestError` where there is none.
    """
    if own := os.environ.get("VGPUD_KERNEL"):
        return _named_kernel(Path(own))
    try:
        return debian_kernel(unpacked(GUEST, report))
    except GuestError as reason:
        if running := running_kernel():
            report(f"using this machine's own kernel for the guest: {reason}")
            return running
        raise


def debian_kernel(root: Path) -> Kernel:
    """Return the kernel among the unpacked packages in ``root``."""
    images = sorted(root.glob("boot/vmlinuz-*"))
    if not images:
        raise GuestError(f"no kernel image in {root}: remove that folder and try again")
    release = images[-1].name.removeprefix("vmlinuz-")
    return Kernel(images[-1], root / "usr/lib/modules" / release, release)


def running_kernel() -> Kernel | None:
    """Return this machine's kernel, where its image can be read and it has the modules of a virtual GPU."""
    release = platform.release()
    folder = Path("/lib/modules") / release
    for image in (Path("/boot") / f"vmlinuz-{release}", folder / "vmlinuz"):
        if os.access(image, os.R_OK) and folder.is_dir():
            kernel = Kernel(image, folder, release)
            try:
                kernel.modules(["virtio_gpu"])
            except GuestError:
                return None
            return kernel
    return None


def _named_kernel(image: Path) -> Kernel:
    release = image.name.partition("-")[2]
    folder = Path(os.environ.get("VGPUD_MODULES", f"/lib/modules/{release}"))
    if not os.access(image, os.R_OK):
        raise GuestError(f"VGPUD_KERNEL: cannot read {image}")
    if not folder.joinpath("kernel").is_dir():
        raise GuestError(f"no modules for {image} in {folder}: name the folder in VGPUD_MODULES")
    return Kernel(image, folder, release or folder.name)


def _decompressed(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return _unzstd(path)
        case _:
            return path.read_bytes()


def _unzstd(path: Path) -> bytes:
    if shutil.which("zstd") is None:
        raise GuestError(f"{path} is compressed with zstd: install the program zstd")
    try:
        return subprocess.run(["zstd", "-dcq", str(path)], capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise GuestError(
            f"cannot decompress {path}: {error.stderr.decode(errors='replace').strip()}"
        ) from error

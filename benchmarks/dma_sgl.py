"""Pins and translations beside libvfio-user's vfu_addr_to_sgl, vfu_sgl_get and vfu_sgl_put, in one run.

Both have one region of 1 GiB of the same memfd, and go through the same pages in the same order. The library's three
functions are called through ctypes, one page at a time, and from a loop in C. They add offsets to a mapping that was
made with the region; ours also count every page once, keep it in the DMA domain, and know who has to let go of it.

usage: python -m benchmarks.dma_sgl
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.dma import (
    GIB,
    READ_WRITE,
    SCATTERED,
    best,
    let_go,
    memfd,
    pin_and_release,
    row,
    scattered_ranges,
    timed,
)
from devices.contract import GuestRange, PinnedPages
from devices.testing import FakeLog
from protocol import HEADER_SIZE, Command, DmaMap, DmaMapFlags, Header, Version
from server.dma.address_space import PAGE_SIZE
from server.dma.domains.soft import SoftDomain
from server.dma.memory import GuestMemoryMap
from server.guest.cache import cache_dir

REPEATS = 1000
MAX_REGIONS = 16
"""What the older generation of the library holds, and the newer one wants to be told."""

_TRANS_SOCK = _DEV_TYPE_PCI = _PCI_TYPE_CONVENTIONAL = 0
_ATTACH_NB = 1
_PROT = READ_WRITE.value

_DmaCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_PROTOTYPES: dict[str, tuple[type | None, list[type]]] = {
    "dma_sg_size": (ctypes.c_size_t, []),
    "vfu_create_ctx": (
        ctypes.c_void_p,
        [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int],
    ),
    "vfu_pci_init": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]),
    "vfu_realize_ctx": (ctypes.c_int, [ctypes.c_void_p]),
    "vfu_attach_ctx": (ctypes.c_int, [ctypes.c_void_p]),
    "vfu_run_ctx": (ctypes.c_int, [ctypes.c_void_p]),
    "vfu_destroy_ctx": (None, [ctypes.c_void_p]),
    "vfu_addr_to_sgl": (
        ctypes.c_int,
        [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
        ],
    ),
    "vfu_sgl_get": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int],
    ),
    "vfu_sgl_put": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
}


class Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Library:
    """A context of libvfio-user in this process, and the client that maps memory into it.

    Neither waits: the client's requests are in the socket before the library is called to take them.
    """

    def __init__(self, folder: Path) -> None:
        """The context listens in ``folder``. ``make libvfio-user`` gets the library."""
        self._root = cache_dir() / "libvfio-user"
        if not (self._root / "complete").exists():
            raise SystemExit("libvfio-user is not there: run 'make libvfio-user' first")
        self._library = ctypes.CDLL(str(self._root / "lib" / "libvfio-user.so"), use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._loop = self._build_loop(folder)
        self._callback = _DmaCallback(_nothing_to_do)
        self._sgl = ctypes.create_string_buffer(self._library.dma_sg_size())
        path = folder / "sgl.sock"
        self._context = self._create(path)
        self._client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._client.connect(str(path))
        self._call(Command.VERSION, Version(0, 0).pack(), (), self._library.vfu_attach_ctx)

    def map(self, fd: int, size: int) -> None:
        """DMA_MAP of ``size`` bytes at address 0, for reading and writing."""
        request = DmaMap(0, size, DmaMapFlags.READ | DmaMapFlags.WRITE)
        self._call(Command.DMA_MAP, request.pack(), (fd,), self._library.vfu_run_ctx)

    def get_and_put(self, addresses: Sequence[int], length: int) -> None:
        """Get and put a list of ``length`` bytes for each of the addresses, through ctypes."""
        addr_to_sgl, sgl_get, sgl_put = (
            self._library.vfu_addr_to_sgl,
            self._library.vfu_sgl_get,
            self._library.vfu_sgl_put,
        )
        context, sgl, iov = self._context, ctypes.byref(self._sgl), Iovec()
        entry = ctypes.byref(iov)
        for address in addresses:
            if addr_to_sgl(context, address, length, sgl, 1, _PROT) != 1:
                raise _error("vfu_addr_to_sgl")
            if sgl_get(context, sgl, entry, 1, 0) < 0:
                raise _error("vfu_sgl_get")
            sgl_put(context, sgl, entry, 1)

    def get_and_put_in_c(self, addresses: ctypes.Array[ctypes.c_uint64], length: int) -> None:
        """The same in C."""
        error = self._loop(self._context, self._sgl, addresses, len(addresses), length)
        if error:
            raise OSError(error, "sgl_loop")

    def close(self) -> None:
        """The context and its client are gone."""
        self._library.vfu_destroy_ctx(self._context)
        self._client.close()

    def _create(self, path: Path) -> int:
        library = self._library
        context = library.vfu_create_ctx(_TRANS_SOCK, os.fsencode(path), _ATTACH_NB, None, _DEV_TYPE_PCI)
        if context is None:
            raise _error("vfu_create_ctx")
        _check(library.vfu_pci_init(context, _PCI_TYPE_CONVENTIONAL, 0, 0), "vfu_pci_init")
        # Both generations have the same soname; only the older one has this function.
        older = hasattr(library, "vfu_get_migr_register_area_size")
        limit = () if older else (ctypes.c_size_t(MAX_REGIONS),)
        context_argument = ctypes.c_void_p(context)
        _check(
            library.vfu_setup_device_dma(context_argument, *limit, self._callback, self._callback),
            "vfu_setup_device_dma",
        )
        _check(library.vfu_realize_ctx(context), "vfu_realize_ctx")
        return int(context)

    def _call(
        self, command: Command, payload: bytes, fds: tuple[int, ...], serve: Callable[[int], int]
    ) -> None:
        """A request of the client, which the library takes with ``serve``."""
        message = Header(0, command, HEADER_SIZE + len(payload)).pack() + payload
        socket.send_fds(self._client, [message], fds)
        _check(serve(self._context), command.name)
        header = Header.unpack(self._client.recv(1 << 16))
        if header.is_error:
            raise OSError(header.error, command.name)

    def _build_loop(self, folder: Path) -> Callable[..., int]:
        program = folder / "sgl_loop.so"
        source = Path(__file__).parent / "c" / "sgl_loop.c"
        build = ["gcc", "-O2", "-shared", "-fPIC", f"-I{self._root / 'include'}", "-o", str(program)]
        link = [f"-L{self._root / 'lib'}", "-lvfio-user", f"-Wl,-rpath,{self._root / 'lib'}"]
        subprocess.run([*build, str(source), *link], check=True)
        loop = ctypes.CDLL(str(program)).sgl_loop
        loop.restype = ctypes.c_int
        loop.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        return loop


@contextmanager
def library_with(fd: int, size: int) -> Iterator[Library]:
    """The library with a region of ``fd``."""
    with tempfile.TemporaryDirectory() as name:
        library = Library(Path(name))
        library.map(fd, size)
        try:
            yield library
        finally:
            library.close()


def library_rows(library: Library, addresses: Sequence[int], length: int, unit: str) -> tuple[float, float]:
    """Print what lists of ``length`` bytes at each address cost through ctypes and in C; returns the seconds."""
    in_c = (ctypes.c_uint64 * len(addresses))(*addresses)
    by_ctypes = best(lambda: timed(lambda: library.get_and_put(addresses, length)))
    by_c = best(lambda: timed(lambda: library.get_and_put_in_c(in_c, length)))
    row("libvfio-user: get and put, through ctypes", by_ctypes, len(addresses), unit)
    row("libvfio-user: get and put, in C", by_c, len(addresses), unit)
    return by_ctypes, by_c


def our_row(
    name: str, action: Callable[[], object], count: int, unit: str, theirs: tuple[float, float]
) -> None:
    """Print what ``action`` costs, which does what took ``theirs``."""
    seconds = best(lambda: timed(action))
    note = "{:.2f} of ctypes, {:.1f} of C".format(*(seconds / other for other in theirs))
    row(f"ours: {name}", seconds, count, unit, note)


def random_pages(memory: GuestMemoryMap, library: Library) -> None:
    """Print what pages in random order cost, which ours gets as one list."""
    print(f"{SCATTERED} random pages of 4 KiB")
    ranges = scattered_ranges(SCATTERED)
    addresses = [address for address, _ in ranges]
    theirs = library_rows(library, addresses, PAGE_SIZE, "page")
    held = memory.pin_pages(ranges, READ_WRITE, let_go)
    for name, action in (
        ("pin and release what is pinned already", lambda: pin_and_release(memory, ranges)),
        ("translate, one by one", lambda: translate(held, addresses)),
        ("translate, in bulk", lambda: held.dma_addrs(addresses)),
    ):
        our_row(name, action, SCATTERED, "page", theirs)
    held.release()


def one_range(memory: GuestMemoryMap, library: Library) -> None:
    """Print what a gigabyte costs, again and again."""
    print("1 GiB in one range")
    addresses = [0] * REPEATS
    theirs = library_rows(library, addresses, GIB, "range")
    whole = [GuestRange(0, GIB)]
    held = memory.pin_pages(whole, READ_WRITE, let_go)

    def pin_again() -> None:
        for _ in addresses:
            memory.pin_pages(whole, READ_WRITE, let_go).release()

    our_row("pin and release what is pinned already", pin_again, REPEATS, "range", theirs)
    our_row("translate, one by one", lambda: translate(held, addresses), REPEATS, "range", theirs)
    held.release()


def translate(pins: PinnedPages, addresses: Sequence[int]) -> None:
    """Ask for the dma_addr of every address."""
    dma_addr = pins.dma_addr
    for address in addresses:
        dma_addr(address)


def _nothing_to_do(_context: int, _info: int) -> None:
    """The device holds nothing while regions come and go."""


def _check(result: int, name: str) -> None:
    if result < 0:
        raise _error(name)


def _error(name: str) -> OSError:
    error = ctypes.get_errno()
    return OSError(error, f"{name}: {os.strerror(error)}")


def main() -> None:
    """Measure, and print two tables."""
    fd = memfd(GIB)
    memory = GuestMemoryMap(FakeLog(), SoftDomain())
    memory.map(0, GIB, READ_WRITE, os.dup(fd), 0)
    with library_with(fd, GIB) as library:
        random_pages(memory, library)
        one_range(memory, library)
    memory.close()
    os.close(fd)


if __name__ == "__main__":
    main()

"""As much of ELF as it takes to put a program with its libraries, or a kernel module, into an initramfs.

Formats: System V ABI, chapters "Object Files" and "Dynamic Linking" (64-bit, little-endian only).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.guest.errors import GuestError

_IDENT = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<QQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


class ElfFile:
    """An ELF file in memory. Raises ValueError for anything that is not a whole 64-bit little-endian one."""

    def __init__(self, data: bytes) -> None:
        """Read the header and the program headers."""
        if not data.startswith(_IDENT) or len(data) < _HEADER.size:
            raise ValueError("not a 64-bit little-endian ELF file")
        self._data = data
        fields = _HEADER.unpack_from(data)
        self._section_offset, self._section_count, self._names_index = fields[6], fields[12], fields[13]
        offset, size, count = fields[5], fields[9], fields[10]
        try:
            self._segments = [self._segment(offset + index * size) for index in range(count)]
        except (struct.error, OverflowError) as error:
            raise ValueError("truncated ELF file") from error

    @property
    def interpreter(self) -> str | None:
        """The dynamic loader that the program asks for, None for a static program or a library."""
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return self._string(segment.offset)
        return None

    @property
    def needed(self) -> tuple[str, ...]:
        """The names of the libraries that it is linked with, in order."""
        entries = list(self._dynamic())
        tables = [value for tag, value in entries if tag == _DT_STRTAB]
        if not tables:
            return ()
        strings = self._file_offset(tables[0])
        return tuple(self._string(strings + value) for tag, value in entries if tag == _DT_NEEDED)

    def section(self, name: str) -> bytes | None:
        """Return the content of the section ``name``, None where there is none."""
        try:
            headers = [
                _SECTION_HEADER.unpack_from(self._data, self._section_offset + index * _SECTION_HEADER.size)
                for index in range(self._section_count)
            ]
            names = headers[self._names_index][4] if headers else 0
        except (struct.error, IndexError, OverflowError) as error:
            raise ValueError("truncated ELF file") from error
        for header in headers:
            if self._string(names + header[0]) == name:
                return self._data[header[4] : header[4] + header[5]]
        return None

    def _segment(self, offset: int) -> _Segment:
        kind, _flags, start, address, _physical, size, _memory, _align = _PROGRAM_HEADER.unpack_from(
            self._data, offset
        )
        return _Segment(kind, start, address, size)

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        for segment in self._segments:
            if segment.kind == _PT_DYNAMIC:
                end = segment.offset + segment.size - segment.size % _DYNAMIC.size
                table = self._data[segment.offset : end]
                if len(table) % _DYNAMIC.size:
                    raise ValueError("truncated ELF file")
                for tag, value in _DYNAMIC.iter_unpack(table):
                    if tag == _DT_NULL:
                        return
                    yield tag, value

    def _file_offset(self, address: int) -> int:
        for segment in self._segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                return segment.offset + address - segment.address
        raise ValueError("an address outside all segments of the ELF file")

    def _string(self, offset: int) -> str:
        if offset >= len(self._data) or (end := self._data.find(b"\0", offset)) < 0:
            raise ValueError("truncated ELF file")
        return self._data[offset:end].decode("utf-8", "surrogateescape")


def libraries_of(program: Path, folders: Iterable[Path]) -> dict[str, Path]:
    """Return the libraries that ``program`` needs, directly or not: their files in ``folders``, by name.

    The dynamic loader counts as one, under the name of its file. Raises :class:`GuestError` for a missing
    library.
    """
    folders = tuple(folders)
    elf = ElfFile(program.read_bytes())
    interpreter = elf.interpreter
    waiting = [*elf.needed, *([Path(interpreter).name] if interpreter else [])]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = next((folder / name for folder in folders if (folder / name).exists()), None)
        if path is None:
            raise GuestError(f"{program} needs {name}, which is in none of {', '.join(map(str, folders))}")
        found[name] = path
        waiting += ElfFile(path.read_bytes()).needed
    return found

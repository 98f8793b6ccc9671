from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.contract import GuestMemoryError
from devices.testing import FakeHost
from devices.virtio.chain import Chain

PARTS = st.lists(st.integers(0, 20), max_size=5)


def chain_of(host: FakeHost, readable: list[int], writable: list[int]) -> Chain:
    """Parts of these lengths, 32 bytes apart."""
    chain = Chain(0, host.memory)
    address = 0
    for length in readable:
        chain.add(address, length, False)
        address += 32
    for length in writable:
        chain.add(address, length, True)
        address += 32
    return chain


def bytes_at(host: FakeHost, first_part: int, lengths: list[int]) -> bytes:
    starts = [(first_part + n) * 32 for n in range(len(lengths))]
    return b"".join(bytes(host.memory.data[at : at + n]) for at, n in zip(starts, lengths, strict=True))


@given(parts=PARTS, offset=st.integers(0, 120), length=st.none() | st.integers(0, 120), shared=st.booleans())
def test_reading_joins_the_parts(parts: list[int], offset: int, length: int | None, shared: bool) -> None:
    host = FakeHost(1024, shared=shared)
    host.memory.data[:] = bytes(n % 251 for n in range(1024))
    chain = chain_of(host, parts, [])
    whole = bytes_at(host, 0, parts)
    expected = whole[offset:] if length is None else whole[offset : offset + length]
    assert host.drive(chain.read(offset, length)) == expected


@given(parts=PARTS, offset=st.integers(0, 120), data=st.binary(max_size=120), shared=st.booleans())
def test_writing_fills_the_parts_and_stops_at_the_end(
    parts: list[int], offset: int, data: bytes, shared: bool
) -> None:
    host = FakeHost(1024, shared=shared)
    chain = chain_of(host, [4], parts)
    space = bytearray(sum(parts))
    fits = data[: max(0, len(space) - offset)]
    space[offset : offset + len(fits)] = fits
    assert host.drive(chain.write(data, offset)) == len(fits)
    assert bytes_at(host, 1, parts) == space
    assert sum(host.memory.data) == sum(space)


def test_memory_that_is_not_there_is_an_error() -> None:
    host = FakeHost(1024)
    chain = Chain(0, host.memory)
    chain.add(1 << 40, 4, False)
    chain.add(1 << 41, 4, True)
    with pytest.raises(GuestMemoryError):
        host.drive(chain.read())
    with pytest.raises(GuestMemoryError):
        host.drive(chain.write(b"data"))

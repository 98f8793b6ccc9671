"""Seeded random requests, most of them valid, for a device with registers of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from protocol import (
    FLAG_NO_REPLY,
    BitmapRequest,
    Command,
    DeviceFeature,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    Feature,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqAction,
    IrqData,
    RegionRead,
    RegionWrite,
    RegionWriteMulti,
    SetIrqs,
    encode,
)
from protocol.codec import PackableRequest
from tests.server.register_device import BAR0, BAR4, CONFIG, PAGE

DOORBELLS = (0x40, 0x44, 0x48)
"""Offsets in BAR0: read guest memory, write it, pin it."""
MESSAGES = 120
PAGES = 24
"""The guest's memory: small, so that requests meet."""


@dataclass(frozen=True)
class Request:
    """A whole message, the kinds of the fds that go with it, and where it is cut in two on its way."""

    command: int
    payload: bytes
    fds: tuple[str, ...] = ()
    no_reply: bool = False
    cut: int = 0

    def encode(self, message_id: int) -> bytes:
        return encode(message_id, self.command, FLAG_NO_REPLY if self.no_reply else 0, self.payload)


class RandomRequests:
    """Makes one sequence; the same seed makes the same one."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - reproducible is what it is to be
        self._maps: list[tuple[int, int]] = []
        """Where maps were asked for, accepted or not."""
        self._makers: list[tuple[int, Callable[[], tuple[PackableRequest, tuple[str, ...]]]]] = [
            (30, self._access),
            (10, self._doorbell),
            (14, self._dma_map),
            (10, self._dma_unmap),
            (8, self._set_irqs),
            (6, self._info),
            (5, self._feature),
            (2, self._several_writes),
        ]

    def sequence(self) -> list[Request]:
        return [self._request() for _ in range(MESSAGES)]

    def _request(self) -> Request:
        choose = self._random
        if choose.random() < 0.03:
            return Request(choose.choice([0, 1, 12, 13, 14, 17, 18, 19, 400]), choose.randbytes(16))
        if choose.random() < 0.03:
            return Request(Command.DEVICE_RESET, b"" if choose.random() < 0.8 else b"1234")
        weights, makers = zip(*self._makers, strict=True)
        value, fds = choose.choices(makers, weights)[0]()
        payload = value.pack()
        if choose.random() < 0.06:
            payload = self._spoilt(payload)
        if choose.random() < 0.03:
            fds = (*fds, choose.choice(["memory", "eventfd", "pipe"]))
        no_reply = choose.random() < 0.1
        cut = choose.randrange(1, 16 + len(payload)) if choose.random() < 0.1 else 0
        return Request(value.command, payload, fds, no_reply, cut)

    def _spoilt(self, payload: bytes) -> bytes:
        choose = self._random
        kind = choose.randrange(3)
        if kind == 0:
            return payload[: choose.randrange(len(payload))]
        if kind == 1:
            return payload + choose.randbytes(choose.choice([1, 4, 32]))
        place = choose.randrange(min(len(payload), 32))
        return payload[:place] + choose.randbytes(1) + payload[place + 1 :]

    def _access(self) -> tuple[PackableRequest, tuple[str, ...]]:
        choose = self._random
        region = choose.choice([BAR0, BAR0, BAR0, BAR4, BAR4, 3, CONFIG, choose.choice([1, 2, 5, 8, 9, 77])])
        size = choose.choice([1, 2, 4, 4, 4, 8, 0, 3, 300, 5000, 33_000, 70_000])
        offset = choose.choice([0, 4, 8, 0x60, 0xF0, 0xF4, 0xFFC, 1 << 40])
        if choose.random() < 0.5:
            return RegionRead(offset, region, size), ()
        return RegionWrite(offset, region, choose.randbytes(size)), ()

    def _doorbell(self) -> tuple[PackableRequest, tuple[str, ...]]:
        page = self._random.randrange(PAGES)
        return RegionWrite(self._random.choice(DOORBELLS), BAR0, page.to_bytes(4, "little")), ()

    def _dma_map(self) -> tuple[PackableRequest, tuple[str, ...]]:
        choose = self._random
        address, size = choose.randrange(PAGES) * PAGE, choose.choice([1, 1, 2, 3]) * PAGE
        if choose.random() < 0.1:
            address, size = choose.choice(
                [(1, PAGE), (0, 0), (0, 1), (2**64 - PAGE, 2 * PAGE), (2**40, 2**43)]
            )
        self._maps.append((address, size))
        flags = DmaMapFlags(choose.choice([3, 3, 3, 1, 2, 0, 7]))
        offset = choose.choice([0, 0, PAGE, 3 * PAGE, 100, 2**50])
        fds = choose.choice([("memory",)] * 5 + [(), (), ("pipe",), ("eventfd",), ("memory", "memory")])
        return DmaMap(address, size, flags, offset), fds

    def _dma_unmap(self) -> tuple[PackableRequest, tuple[str, ...]]:
        choose = self._random
        if choose.random() < 0.15:
            return DmaUnmap(flags=DmaUnmapFlags.ALL), ()
        address, size = choose.choice(self._maps or [(0, PAGE)])
        if choose.random() < 0.3:
            address, size = choose.randrange(PAGES) * PAGE, choose.randrange(1, PAGES) * PAGE
        if choose.random() < 0.2:
            bitmap = BitmapRequest(choose.choice([PAGE, PAGE, 2 * PAGE, 0]), choose.choice([8, 8, 16, 1]))
            return DmaUnmap(address, size, DmaUnmapFlags.GET_DIRTY_BITMAP, bitmap), ()
        return DmaUnmap(address, size), ()

    def _set_irqs(self) -> tuple[PackableRequest, tuple[str, ...]]:
        choose = self._random
        data, count = choose.choice(list(IrqData)), choose.choice([0, 1, 1, 2, 3, 9])
        bools = tuple(choose.random() < 0.5 for _ in range(count)) if data is IrqData.BOOL else ()
        request = SetIrqs(
            choose.choice([0, 1, 2, 2, 2, 3, 4, 5]),
            choose.choice([0, 0, 1, 8]),
            count,
            data,
            choose.choice(list(IrqAction)),
            bools,
        )
        return request, ("eventfd",) * count if data is IrqData.EVENTFD else ()

    def _info(self) -> tuple[PackableRequest, tuple[str, ...]]:
        choose = self._random
        argsz = choose.choice([32, 64, 100, 31, 0, 2**32 - 1])
        index = choose.randrange(11)
        makers: list[PackableRequest] = [
            GetInfo(),
            GetRegionInfo(index, argsz=max(argsz, 1)),
            GetRegionIoFds(index, argsz=max(argsz, 1)),
            GetIrqInfo(index),
        ]
        return choose.choice(makers), ()

    def _feature(self) -> tuple[PackableRequest, tuple[str, ...]]:
        choose = self._random
        feature = choose.choice(list(Feature))
        flags = FeatureFlags(choose.choice([1 << 16, 1 << 17, 1 << 18, 3 << 17]))
        data = choose.choice([b"", choose.randbytes(24), PAGE.to_bytes(8, "little") + bytes(16)])
        return DeviceFeature(feature, flags, data, argsz=choose.choice([64, 4096])), ()

    def _several_writes(self) -> tuple[PackableRequest, tuple[str, ...]]:
        writes = tuple(
            RegionWrite(self._random.choice([0, 8, 5000]), BAR0, self._random.randbytes(8)) for _ in range(2)
        )
        return RegionWriteMulti(writes), ()

"""The commands, and which way they go (vfio-user, Commands)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Command(IntEnum):
    """Command IDs. 14 was VFIO_USER_DIRTY_PAGES, gone from the specification."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


SERVER_COMMANDS: Final = frozenset({Command.DMA_READ, Command.DMA_WRITE})
"""Commands that servers send to clients; all others go from client to server."""

REQUESTS_WITH_FDS: Final = frozenset({Command.DMA_MAP, Command.DEVICE_SET_IRQS})
"""Requests that may carry file descriptors."""

REPLIES_WITH_FDS: Final = frozenset(
    {Command.VERSION, Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_REGION_IO_FDS}
)
"""Replies that may carry file descriptors."""

"""Serves one virtqueue: from the driver's kick to the interrupt, as deferred work of the host."""

from __future__ import annotations

import errno
import traceback
from typing import Protocol

from devices.contract import GuestMemoryError, Host
from devices.virtio.chain import Chain
from devices.virtio.device import MalformedRequest
from devices.virtio.virtqueue import RingLayout, Virtqueue
from devices.work import pause

_BUFFERS_PER_INTERRUPT = 8
"""How many buffers are served at most before the driver is told of them, if more are waiting."""


class QueueOwner(Protocol):
    """What a queue needs of its transport."""

    @property
    def host(self) -> Host:
        """The host, while one is connected."""

    @property
    def may_serve(self) -> bool:
        """Whether the device may reach the guest's memory and consume buffers now."""

    async def handle(self, queue: int, chain: Chain) -> int:
        """Serve one buffer; returns the bytes written into it."""

    def queue_interrupt(self, queue: int) -> None:
        """Tell the driver that buffers were used."""

    def queue_failed(self, queue: int, event: str, reason: str) -> None:
        """The queue cannot go on: the device needs a reset, and the log says why."""


class QueueService:
    """One queue of a transport, stopped until :meth:`start`.

    However often the driver kicks and resets, one run at most waits with the host for its turn, and serves the ring
    that is there when it begins. A run that outlives a reset or a disconnect, because it was waiting for a message,
    finds its epoch gone and touches nothing any more.
    """

    def __init__(self, index: int, owner: QueueOwner) -> None:
        self._index = index
        self._owner = owner
        self._queue: Virtqueue | None = None
        self._epoch = 0
        self._scheduled = False
        self._queued: object | None = None
        """The run that has not begun."""
        self._kicked = False
        self._in_flight = False
        self.served = 0
        self.interrupts = 0

    def start(self, layout: RingLayout, features: int) -> None:
        """Serve the ring at ``layout`` from the next kick on, or from the one that came early."""
        self._queue = Virtqueue(layout, features)
        self.resume()

    def stop(self) -> None:
        """Forget the ring."""
        self._abandon()
        self._queue = None
        self._kicked = False

    def detach(self) -> None:
        """Let go of the guest's memory, keep the place in the ring; what was half served is served again."""
        unfinished = self._scheduled
        if self._in_flight and self._queue is not None:
            self._queue.put_back()
        self._abandon()
        self._queued = None
        self._kicked |= unfinished

    def kick(self) -> None:
        """The driver made buffers available."""
        self._kicked = True
        if self._scheduled or self._queue is None or not self._owner.may_serve:
            return
        self._scheduled = True
        if self._queued is None:
            self._queued = run = object()
            self._owner.host.defer(self._run(run))

    def resume(self) -> None:
        """Serve what a kick announced while the device could not."""
        if self._kicked:
            self.kick()

    def _abandon(self) -> None:
        self._epoch += 1
        self._scheduled = False
        self._in_flight = False
        if self._queue is not None:
            self._queue.release()

    async def _run(self, run: object) -> None:
        if run is not self._queued:
            return  # of a client that has left
        self._queued = None
        queue, epoch = self._queue, self._epoch
        if queue is None or not self._scheduled:
            return
        try:
            queue.open(self._owner.host.memory)
            await self._drain(queue, epoch)
        except (MalformedRequest, GuestMemoryError) as error:
            if epoch == self._epoch:
                self._stumble(queue, error)
        except Exception:  # a device model's bug stops the device, not the server
            if epoch == self._epoch:
                self._owner.queue_failed(self._index, "device_fault", traceback.format_exc())
        finally:
            queue.close()
            if epoch == self._epoch:
                self._scheduled = False
                self._in_flight = False

    def _stumble(self, queue: Virtqueue, error: MalformedRequest | GuestMemoryError) -> None:
        if isinstance(error, GuestMemoryError) and error.errno == errno.ENODEV:
            # The client is going away, or has just switched bus mastering off: the ring is sound.
            self._kicked = True
            if self._in_flight:
                queue.put_back()
            return
        self._owner.queue_failed(self._index, "virtqueue_malformed", str(error))

    async def _drain(self, queue: Virtqueue, epoch: int) -> None:
        await queue.hush()
        unannounced = 0
        while epoch == self._epoch:
            if not self._owner.may_serve:
                self._kicked = True
                return
            self._kicked = False
            chain = await queue.pop()
            if epoch != self._epoch:
                return
            if chain is None:
                if await queue.listen() or self._kicked:
                    continue
                return
            if not await self._serve(queue, chain, epoch):
                return
            unannounced += 1
            if unannounced >= _BUFFERS_PER_INTERRUPT or not await queue.has_more():
                unannounced = 0
                await self._announce(queue, epoch)
            await pause()

    async def _serve(self, queue: Virtqueue, chain: Chain, epoch: int) -> bool:
        self._in_flight = True
        written = await self._owner.handle(self._index, chain)
        if epoch != self._epoch:
            return False
        await queue.push(chain.head, min(written, chain.writable_length))
        if epoch != self._epoch:
            return False
        self._in_flight = False
        self.served += 1
        return True

    async def _announce(self, queue: Virtqueue, epoch: int) -> None:
        if await queue.wants_interrupt() and epoch == self._epoch:
            self.interrupts += 1
            self._owner.queue_interrupt(self._index)

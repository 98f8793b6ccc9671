"""Interrupts of a session: the client's eventfds, as SET_IRQS gave them, and their masks.

Semantics of ``VFIO_DEVICE_SET_IRQS`` (linux/vfio.h) and vfio-user's VFIO_USER_DEVICE_SET_IRQS. One deliberate
difference to hardware: a line that is raised while masked stays pending once, and is delivered when it is unmasked.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path

from devices.contract import Irq
from protocol import IrqAction, IrqData, ProtocolError, SetIrqs
from server.fds import ReceivedFds

EVENTFD_LINK = "anon_inode:[eventfd]"


class EventFd:
    """A client's eventfd, and its client may make it blocking at any time: each signal looks for room first."""

    __slots__ = ("_fd", "_poll")

    def __init__(self, fd: int) -> None:
        """Take ``fd`` over; EINVAL (and closed) if it is not an eventfd."""
        if str(Path(f"/proc/self/fd/{fd}").readlink()) != EVENTFD_LINK:
            os.close(fd)
            raise ProtocolError(errno.EINVAL, "an interrupt needs an eventfd, and this fd is something else")
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def signal(self) -> None:
        """Add 1. A counter that is full already holds an event that nobody has read: nothing is lost."""
        if not self._poll.poll(0):
            return
        try:
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the fd; the object is of no use afterwards."""
        os.close(self._fd)


class _Vector:
    __slots__ = ("mask", "masked", "pending", "trigger", "unmask")

    def __init__(self) -> None:
        self.trigger: EventFd | None = None
        self.mask: EventFd | None = None
        self.unmask: EventFd | None = None
        self.masked = False
        self.pending = False


_SLOT_OF_ACTION = {IrqAction.TRIGGER: "trigger", IrqAction.MASK: "mask", IrqAction.UNMASK: "unmask"}


class Interrupts:
    """All interrupt vectors of one session."""

    def __init__(self, irqs: Sequence[Irq]) -> None:
        self._irqs = irqs
        self._vectors = [[_Vector() for _ in range(irq.count)] for irq in irqs]
        self.raised = 0
        self.observer: Callable[[int, int], None] | None = None
        """Told of each interrupt that the client is told of: IRQ index and vector."""

    def trigger(self, index: int, vector: int) -> None:
        """Raise a vector: signal its eventfd, or remember it while it is masked."""
        line = self._vectors[index][vector]
        if line.trigger is None:
            return
        if line.masked:
            line.pending = True
            return
        self.raised += 1
        if self._irqs[index].automasked:
            line.masked = True
        line.trigger.signal()
        if self.observer is not None:
            self.observer(index, vector)

    def set_irqs(self, request: SetIrqs, fds: ReceivedFds) -> None:
        """Do what SET_IRQS asks. Raises ProtocolError (EINVAL) with nothing changed."""
        request.check_fds(len(fds))
        if request.disables and request.action is not IrqAction.TRIGGER:
            raise ProtocolError(errno.EINVAL, "SET_IRQS masks no vectors")
        lines = self._select(request)
        if request.data is IrqData.EVENTFD:
            self._assign(lines, _SLOT_OF_ACTION[request.action], fds)
        elif request.disables:
            self._disable(request.index)
        else:
            for number in request.vectors:
                self._act(request.index, number, request.action)

    def _select(self, request: SetIrqs) -> list[_Vector]:
        if request.index >= len(self._irqs):
            raise ProtocolError(errno.EINVAL, f"there is no IRQ index {request.index}")
        irq = self._irqs[request.index]
        if request.start + request.count > irq.count:
            raise ProtocolError(
                errno.EINVAL,
                f"{irq.name} has {irq.count} vectors, not {request.start}+{request.count}",
            )
        if request.action is not IrqAction.TRIGGER and not irq.maskable:
            raise ProtocolError(errno.EINVAL, f"{irq.name} cannot be masked by SET_IRQS")
        return self._vectors[request.index][request.start : request.start + request.count]

    @staticmethod
    def _assign(vectors: list[_Vector], slot: str, fds: ReceivedFds) -> None:
        events: list[EventFd | None] = []
        try:
            while (fd := fds.take()) is not None:
                events.append(EventFd(fd))
        except BaseException:
            for event in events:
                if event is not None:
                    event.close()
            raise
        for line, event in zip(vectors, events or [None] * len(vectors), strict=True):
            old: EventFd | None = getattr(line, slot)
            setattr(line, slot, event)
            if old is not None:
                old.close()

    def _act(self, index: int, number: int, action: IrqAction) -> None:
        line = self._vectors[index][number]
        if action is IrqAction.TRIGGER:
            self.trigger(index, number)
        elif action is IrqAction.MASK:
            line.masked = True
            if line.mask is not None:
                line.mask.signal()
        else:
            line.masked = False
            if line.unmask is not None:
                line.unmask.signal()
            if line.pending:
                line.pending = False
                self.trigger(index, number)

    def _disable(self, index: int) -> None:
        for line in self._vectors[index]:
            for slot in _SLOT_OF_ACTION.values():
                event: EventFd | None = getattr(line, slot)
                setattr(line, slot, None)
                if event is not None:
                    event.close()
            line.masked = line.pending = False

    def close(self) -> None:
        """Give every eventfd back."""
        for index in range(len(self._vectors)):
            self._disable(index)

"""A host whose deferred work goes one request at a time, so that tests can do things in between."""

from __future__ import annotations

from devices.contract import Work
from devices.testing import FakeHost
from devices.work import Request


class StepHost(FakeHost):
    """Keeps deferred work in :attr:`waiting` until :meth:`step`."""

    def __init__(self, memory_size: int = 1 << 20, *, shared: bool = True) -> None:
        super().__init__(memory_size, shared=shared)
        self.waiting: list[Work] = []
        self.answer: bytes | None = None

    def defer(self, work: Work) -> None:
        self.waiting.append(work)

    def step(self) -> Request | None:
        """Run the oldest work to its next request, which is answered as the memory is at that time.

        The work sees the answer at the next step. None once it has ended.
        """
        try:
            request = self.waiting[0].send(self.answer)
        except StopIteration:
            del self.waiting[0]
            self.answer = None
            return None
        self.answer = self._answer(request)
        return request

    def run(self) -> int:
        """Step until nothing waits; the number of steps."""
        steps = 0
        while self.waiting:
            self.step()
            steps += 1
        return steps

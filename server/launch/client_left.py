"""Why a server of one client has ended: the client had left, or it was told to while it had one."""

from __future__ import annotations

import signal
from types import FrameType

import trio

from server.engine import Engine
from server.launch.server_process import CLIENT_LEFT, TOLD_TO_END


class ClientLeft:
    """Runs along with a server; afterwards :attr:`status` is its exit status."""

    def __init__(self) -> None:
        self.status = TOLD_TO_END
        self._ends = False

    async def __call__(self, engine: Engine, _: trio.CancelScope) -> None:
        """Wait for the end of the server, and see at that moment whether its client is there: it is let go then too."""

        def see(_: object) -> trio.lowlevel.Abort:
            self._ends = True
            if engine.session is None and engine.clients_served:
                self.status = CLIENT_LEFT
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(see)

    def end_undisturbed(self) -> None:
        """Have a SIGTERM that comes while the server ends already end it no sooner, before it has cleaned up.

        QEMU's own end is two things at once: its client has left, and it is told to end because nobody needs it.
        """
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._told_to_end)

    def _told_to_end(self, number: int, _: FrameType | None) -> None:
        """What SIGTERM does where trio does not look at it: before the server serves, and afterwards."""
        if not self._ends:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

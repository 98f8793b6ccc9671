"""Why a server of one client has ended: the client had left, or it was told to while it had one."""

from __future__ import annotations

import trio

from server.engine import Engine
from server.launch.server_process import CLIENT_LEFT, TOLD_TO_END


class ClientLeft:
    """Runs along with a server; afterwards :attr:`status` is its exit status."""

    def __init__(self) -> None:
        self.status = TOLD_TO_END

    async def __call__(self, engine: Engine, _: trio.CancelScope) -> None:
        """Wait for the end of the server, and see at that moment whether its client is there: it is let go then too."""

        def see(_: object) -> trio.lowlevel.Abort:
            if engine.session is None and engine.clients_served:
                self.status = CLIENT_LEFT
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(see)

"""How the handler of a command says that it cannot be done."""

from __future__ import annotations

from devices.virtio_gpu.protocol import Response


class CommandError(Exception):
    """The request is answered with ``response``, one of the ERR types; nothing has changed."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.name)
        self.response = response

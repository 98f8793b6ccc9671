"""How a command runs its tasks: Ctrl-C reaches it where it waits, and nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def run_async(task: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run ``task`` to its end, and give what it returns; what it raises comes through.

    KeyboardInterrupt is raised at checkpoints alone. Anywhere else it could come between a coroutine and the await
    for it, of which Python warns on standard error, or between a resource and the block that lets go of it.
    """
    result: Result = trio.run(task, *arguments, restrict_keyboard_interrupt_to_checkpoints=True)
    return result

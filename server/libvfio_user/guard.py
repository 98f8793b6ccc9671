"""The one place where Python's exceptions meet C: no callback lets one through."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import Any

FAILED = -1

Failed = Callable[[str, Exception], int]
"""Logs why a command failed, and gives the errno: :meth:`server.session.Session.failed`."""


class Guard:
    """Wraps callbacks: what one raises becomes -1 and errno, which is how the library is told."""

    def __init__(self, failed: Failed) -> None:
        self._failed = failed
        self._escaped: BaseException | None = None
        self.closed = False
        """Once True, callbacks do nothing and succeed: their owner is being taken down."""

    def __call__(
        self, name: str | Callable[..., str], call: Callable[..., int | None]
    ) -> Callable[..., int | None]:
        """``call``, guarded; ``name`` says what failed, or says so of the arguments."""

        def guarded(*arguments: Any) -> int | None:
            if self.closed:
                return 0
            try:
                return call(*arguments)
            except Exception as error:
                what = name if isinstance(name, str) else name(*arguments)
                ctypes.set_errno(self._failed(what, error))
            except BaseException as error:  # KeyboardInterrupt, for whoever called the library
                self._escaped = error
                ctypes.set_errno(errno.EINTR)
            return FAILED

        return guarded

    def raise_escaped(self) -> None:
        """Go on with what no errno can stand for, once the library has returned."""
        if self._escaped is not None:
            escaped, self._escaped = self._escaped, None
            raise escaped

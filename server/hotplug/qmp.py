"""A client of QMP, QEMU's control protocol (docs/interop/qmp-spec): JSON messages, one per line, on a UNIX socket.

::

    async with connected(path) as qmp:
        with qmp.watching(lambda event: event.name == "DEVICE_DELETED") as deleted:
            await qmp.execute("device_del", {"id": "vgpud0"})
            await qmp.until(deleted)

One task uses it. Messages are read while that task waits for one, so nothing runs in the background, and events that
nobody watches are dropped as they come.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from server.hotplug.answers import UnexpectedAnswer, as_object, number_of, text_of
from server.hotplug.errors import HotplugError
from server.one_line import one_line

MAX_LINE = 4 << 20
"""Bytes of the longest message that is taken: query-pci's answer has about 600 for each device."""
GREETING_SECONDS = 15.0
REPLY_SECONDS = 30.0
_CHUNK = 1 << 16
_VERSION_LIMIT = 1 << 16


class QmpError(HotplugError):
    """The connection to QEMU is of no use, or no longer; nothing more can be executed on it."""


class CommandFailed(HotplugError):  # noqa: N818 - QEMU's answer to one command
    """QEMU refused one command. ``error_class`` and ``description`` are what it said."""

    def __init__(self, command: str, error: Mapping[str, Any]) -> None:
        self.error_class = text_of(error, "class")
        self.description = one_line(text_of(error, "desc"))
        super().__init__(f"QEMU refused {command}: {self.description}")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in QEMU, and what it says about it."""

    name: str
    data: Mapping[str, Any]


@dataclass(slots=True)
class Watch:
    """The first event that is ``wanted``, once it has come."""

    wanted: Callable[[Event], bool]
    event: Event | None = None


class Qmp:
    """A connection to QEMU. Made by :func:`connected`."""

    def __init__(self, stream: trio.SocketStream, path: Path) -> None:
        self.path = path
        self.version = (0, 0, 0)
        self._stream = stream
        self._received = bytearray()
        self._searched = 0
        self._sent = 0
        self._watches: list[Watch] = []
        self._broken: str | None = None

    @property
    def release(self) -> str:
        """QEMU's version as people write it."""
        return ".".join(map(str, self.version))

    async def negotiate(self) -> None:
        """Take QEMU's greeting, and start to execute commands. Raises QmpError."""
        try:
            with trio.fail_after(GREETING_SECONDS):
                greeting = await self._message()
        except trio.TooSlowError:
            raise QmpError(
                f"{self.path}: no greeting in {GREETING_SECONDS:.0f} s: QEMU talks to one client at a time there: "
                "end the other one, or give QEMU a second socket with -qmp; or QEMU hangs"
            ) from None
        try:
            version = as_object(as_object(greeting["QMP"], "QMP")["version"], "version")
            qemu = as_object(version["qemu"], "qemu")
            major, minor, micro = (
                number_of(qemu, part, _VERSION_LIMIT) for part in ("major", "minor", "micro")
            )
        except (KeyError, UnexpectedAnswer):
            raise self._not_qmp() from None
        self.version = major, minor, micro
        await self.execute("qmp_capabilities")

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, within: float = REPLY_SECONDS
    ) -> Any:
        """Have QEMU execute ``command`` and return what it returns.

        Raises CommandFailed where it refuses, QmpError where it does not answer.
        """
        self._sent += 1
        request = {"execute": command, "id": self._sent}
        try:
            with trio.fail_after(within):
                await self._send(request if arguments is None else {**request, "arguments": arguments})
                reply = await self._reply(self._sent)
        except trio.TooSlowError:
            raise QmpError(
                f"{self.path}: QEMU did not answer {command} in {within:.0f} s: does it hang?"
            ) from None
        if "return" in reply:
            return reply["return"]
        raise CommandFailed(command, as_object(reply.get("error"), "error"))

    @contextmanager
    def watching(self, wanted: Callable[[Event], bool]) -> Iterator[Watch]:
        """Keep the first event that is ``wanted``, whenever it comes while the block lasts."""
        watch = Watch(wanted)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    async def until(self, watch: Watch) -> Event:
        """Wait for the event of ``watch``, which may have come already. Raises QmpError."""
        while watch.event is None:
            self._take(await self._message())
        return watch.event

    async def _reply(self, number: int) -> Mapping[str, Any]:
        while True:
            message = await self._message()
            if self._take(message) == number:
                return message

    def _take(self, message: Mapping[str, Any]) -> int | None:
        """Pass an event on, or say which command the reply is for; replies to commands given up may still come."""
        if "event" in message:
            event = Event(text_of(message, "event"), as_object(message.get("data", {}), "data"))
            for watch in self._watches:
                if watch.event is None and watch.wanted(event):
                    watch.event = event
            return None
        if "id" not in message and "error" in message:
            error = as_object(message["error"], "error")
            raise self._fail(f"QEMU could not read a command: {one_line(text_of(error, 'desc'))}")
        return number_of(message, "id", self._sent + 1)

    async def _send(self, request: Mapping[str, Any]) -> None:
        if self._broken is not None:
            raise QmpError(self._broken)
        await trio.lowlevel.checkpoint_if_cancelled()  # else send_all could end there, with nothing sent
        broken, self._broken = self._broken, f"{self.path}: a command was sent in part only"
        try:
            await self._stream.send_all(json.dumps(request).encode() + b"\n")
        except trio.BrokenResourceError:
            raise self._fail("QEMU hung up: has it ended?") from None
        self._broken = broken

    async def _message(self) -> Mapping[str, Any]:
        """The next message of any kind. Raises QmpError."""
        line = await self._line()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, a number of too many digits
            raise self._not_qmp() from None
        if not isinstance(message, dict):
            raise self._not_qmp()
        return message

    async def _line(self) -> bytes:
        while (end := self._received.find(b"\n", self._searched)) < 0:
            self._searched = len(self._received)
            if self._searched > MAX_LINE:
                raise self._fail(f"a message of more than {MAX_LINE >> 20} MiB: this is not QEMU")
            await self._receive()
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        self._searched = 0
        return line

    async def _receive(self) -> None:
        if self._broken is not None:
            raise QmpError(self._broken)
        try:
            data = await self._stream.receive_some(_CHUNK)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise self._fail("QEMU hung up: has it ended?")
        self._received += data

    def _not_qmp(self) -> QmpError:
        return self._fail(
            "this is no QMP socket: give the PATH of QEMU's option -qmp unix:PATH,server=on,wait=off"
        )

    def _fail(self, reason: str) -> QmpError:
        self._broken = f"{self.path}: {reason}"
        return QmpError(self._broken)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Qmp]:
    """Talk to the QEMU that listens at ``path`` while the block lasts. Raises QmpError."""
    try:
        stream = await trio.open_unix_socket(os.fspath(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QmpError(
            f"{path}: no QEMU answers there ({reason}); start it with -qmp unix:{path},server=on,wait=off"
        ) from None
    try:
        qmp = Qmp(stream, path)
        await qmp.negotiate()
        yield qmp
    finally:
        with trio.CancelScope(shield=True):  # it waits for nothing, and what was done is done
            await stream.aclose()

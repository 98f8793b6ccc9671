"""Where ``--metrics`` listens: ``[HOST:]PORT``, on the loopback address where no host is said, or ``unix:PATH``.

``unix:PATH,mode=0666`` says who may connect; else the umask does, which is nobody else as a rule.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.socket_path import BACKLOG, listen_at

LOOPBACK = "127.0.0.1"
UNIX = "unix:"
EXAMPLES = "write for example 9400, 192.0.2.1:9400, [::1]:9400 or unix:/run/vgpud/metrics.sock"

_PATH = re.compile(r"(?P<path>.+?)(?:,mode=(?P<mode>0?[0-7]{3}))?", re.DOTALL)
_ADDRESS = re.compile(r"(?:(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]+)):)?(?P<port>[0-9]{1,5})", re.ASCII)


class MetricsUnavailable(Exception):  # noqa: N818 - what the user reads
    """There can be no endpoint; the text is one line that names the fix."""


@contextmanager
def listening(address: str) -> Iterator[list[socket.socket]]:
    """Listen at ``address``, as often as a host's name has addresses; closed with the block.

    Raises MetricsUnavailable, and SocketPathError for a UNIX socket.
    """
    with ExitStack() as stack:
        if address.startswith(UNIX):
            yield [stack.enter_context(_listen_at(address))]
        else:
            yield [stack.enter_context(listener) for listener in _listen(address)]


@contextmanager
def _listen_at(address: str) -> Iterator[socket.socket]:
    match = _PATH.fullmatch(address, len(UNIX))
    if match is None or ",mode=" in match["path"]:
        raise MetricsUnavailable(
            f"--metrics {address}: no path; write for example unix:/run/x.sock,mode=0666"
        )
    path = Path(match["path"])
    with listen_at(path) as listener:
        if match["mode"] is not None:
            path.chmod(int(match["mode"], 8))
        yield listener


def _listen(address: str) -> list[socket.socket]:
    host, port = _parse(address)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, name in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(name)
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        reason = error.strerror or error
        raise MetricsUnavailable(
            f"--metrics {address}: cannot listen there: {reason}; choose another address"
        ) from error
    return listeners


def _parse(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 0xFFFF:
        raise MetricsUnavailable(f"--metrics {address}: no address; {EXAMPLES}")
    if match["host"] == "*":  # getaddrinfo(3) of the C library takes it for no host, which is loopback
        raise MetricsUnavailable(
            f"--metrics {address}: write 0.0.0.0:{match['port']} for all IPv4 addresses, [::]:{match['port']} for all "
            "IPv6 ones"
        )
    return match["v6"] or match["host"] or LOOPBACK, int(match["port"])


def name_of(listener: socket.socket) -> str:
    """Where a scraper finds it, for the log."""
    if listener.family == socket.AF_UNIX:
        return f"{UNIX}{listener.getsockname()}"
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"

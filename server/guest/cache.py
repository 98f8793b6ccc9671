"""The folder where downloaded and unpacked parts are kept: whole entries only, safe for runs side by side."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from server.guest.progress import Report, to_nowhere


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return ``$VGPUD_CACHE``, else ``$XDG_CACHE_HOME/vgpud``, else ``~/.cache/vgpud``; it may not exist.

    A relative XDG_CACHE_HOME is ignored, as the XDG base directory specification asks for.
    """
    environ = os.environ if environ is None else environ
    if own := environ.get("VGPUD_CACHE"):
        return Path(own).absolute()
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "vgpud"


def provide(root: Path, name: str, make: Callable[[Path], None], report: Report = to_nowhere) -> Path:
    """Return the folder ``root/name``; where missing, ``make`` fills a temporary one that is then renamed.

    An interrupted or failing ``make`` leaves no entry, and what a killed run left is removed by the next. A
    second process that wants the same entry waits for the first. Whatever ``make`` raises goes to the caller.
    """
    entry = root / name
    if entry.is_dir():
        return entry
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{name}.lock", report):
        if entry.is_dir():
            return entry
        for stale in root.glob(f".{name}.new-*"):
            shutil.rmtree(stale, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=root))
        try:
            make(fresh)
            fresh.chmod(0o755)
            fresh.rename(entry)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return entry


@contextmanager
def locked(path: Path, report: Report = to_nowhere) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel drops it when its holder dies."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another run that fills {path.parent}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` such that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

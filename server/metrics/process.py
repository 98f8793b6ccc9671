"""Metrics of this process, under the names that all Prometheus clients give them."""

from __future__ import annotations

import functools
import os
import resource
import time
from pathlib import Path

from server.metrics.families import Family, counter, gauge

PROC = Path("/proc/self")


def process_families() -> list[Family]:
    """Processor time, memory, fds, and when the process began."""
    virtual, resident = (int(pages) * resource.getpagesize() for pages in _words(PROC / "statm")[:2])
    most_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        counter(
            "process_cpu_seconds", "Total user and system CPU time spent in seconds.", time.process_time()
        ),
        gauge("process_open_fds", "Number of open file descriptors.", _open_fds()),
        gauge("process_max_fds", "Maximum number of open file descriptors.", most_fds),
        gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual),
        gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident),
        gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            start_time(),
        ),
    ]


@functools.cache
def start_time() -> float:
    """When this process began, in seconds since the epoch (proc(5): starttime of stat, btime of the system)."""
    # The name of the program, which may have spaces, ends at the last parenthesis.
    fields = (PROC / "stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    lines = Path("/proc/stat").read_text().splitlines()
    boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    return boot + since_boot


def _open_fds() -> int:
    """The one that the folder is read by is not counted."""
    return sum(1 for _ in (PROC / "fd").iterdir()) - 1


def _words(path: Path) -> list[str]:
    return path.read_text().split()

"""The most memory that a program in Python has, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

_BEFORE = """
import os, sys
from pathlib import Path
# The kernel counts pages for each CPU, and its sum is off by what has not been added up.
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
"""
# Not getrusage(2), whose maximum begins with the memory of the process that started this one.
_BEHIND = """
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(said, peak.split()[1], file=sys.stderr)
"""


def run(program: str, *arguments: str) -> tuple[int, int]:
    """Run ``program``, which sets ``said`` to a number; returns that, and the most memory that it had, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + program + _BEHIND, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    said, peak = map(int, done.stderr.split())
    return said, peak

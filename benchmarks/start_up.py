"""How long ``vgpud serve`` takes from the start of the interpreter until it listens, and its imports alone.

usage: python -m benchmarks.start_up [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.servers import our_server

IMPORTS = "import server.serve, server.native.serve"


def seconds_to_listening(folder: Path) -> float:
    """Start a server, and stop it as soon as its socket is there."""
    began = time.perf_counter()
    with our_server(folder):
        return time.perf_counter() - began


def seconds_to_import() -> float:
    """Run an interpreter that imports the server and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        listening = [seconds_to_listening(Path(name)) for _ in range(rounds)]
    imports = [seconds_to_import() for _ in range(rounds)]
    for what, seconds in (("start to listening", listening), ("imports", imports)):
        print(f"{what:20} median {statistics.median(seconds):.3f} s, longest {max(seconds):.3f} s")


if __name__ == "__main__":
    main()

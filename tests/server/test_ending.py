"""Servers that are told to end while they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.ending import Ending
from tests.server.test_command_line import SECONDS

TOLD_TWICE = """
import os, signal, sys
from server import serve
from server.cli import main
from server.trace.proxy import command

def run_and_be_told(*arguments, run=serve.run_async):
    run(*arguments)
    os.kill(os.getpid(), int(sys.argv[1]))

serve.run_async = command.run_async = run_and_be_told
sys.exit(main(sys.argv[2:]))
"""
"""A server that is told to end once more when it serves no longer, and has not cleaned up yet."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["serve --socket-path a", "trace record --listen a --connect b t"])
def test_who_is_told_twice_cleans_up_all_the_same(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    words = [sys.executable, "-c", TOLD_TWICE, str(int(number)), *command.split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert "listening" in server.stderr.readline()
            assert (tmp_path / "a").is_socket()
            server.send_signal(number)
            server.stderr.read()
            assert server.wait(SECONDS) == 0
        finally:
            server.kill()
    assert not (tmp_path / "a").exists()


def test_what_ends_before_it_has_served_leaves_signals_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with Ending():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before

"""What is said of a server that does not start in time."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from server.child_server.output import logged_output
from server.child_server.readiness import listen_for_readiness
from server.launch.process import start
from server.launch.server_process import Gpu, GpuServer, ServerFailedError


@pytest.mark.parametrize("logged", [True, False])
async def test_a_server_that_does_not_serve_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: bool
) -> None:
    monkeypatch.setattr("server.launch.server_process.START_SECONDS", 0.01)
    process = start(["sleep", "1000"], lambda: None, stdin=subprocess.DEVNULL)
    try:
        with listen_for_readiness(tmp_path) as readiness, logged_output(tmp_path / "log") as output:
            server = GpuServer(
                Gpu("vgpud0", "edu", "auto"), process, "path", (), readiness, output if logged else None
            )
            says = "the server of vgpud0 did not start: it does not listen after 0 s"
            with pytest.raises(ServerFailedError, match=f"^{re.escape(says)}$"):
                await server.ready()
    finally:
        await process.end()

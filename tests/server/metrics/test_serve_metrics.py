"""``vgpud serve --metrics`` as a process, and what its users get wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.metrics.serving import NEEDS_H11
from tests.server.metrics.scraping import GET, listener, parse_response, port_of
from tests.server.test_command_line import SECONDS, greet, run, serving


def scrape(sock: socket.socket) -> str:
    sock.settimeout(SECONDS)
    sock.sendall(GET)
    received = b""
    while data := sock.recv(1 << 16):
        received += data
    response = parse_response(received)
    assert response.status == 200
    return response.body


def listening_at(server: subprocess.Popen[str]) -> list[str]:
    """What the first line of the log says, which is JSON."""
    assert server.stderr is not None
    metrics: list[str] = json.loads(server.stderr.readline())["metrics"]
    return metrics


def test_a_server_is_scraped_at_the_port_that_its_log_names(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with serving("--socket-path", str(device), "--metrics", "0", "--log-format", "json") as server:
        (address,) = listening_at(server)
        assert address.startswith("http://127.0.0.1:")
        greet(device)
        with socket.create_connection(("127.0.0.1", port_of(address))) as sock:
            assert 'vgpud_sessions_total{device="virtio-gpu",transport="native"} 1\n' in scrape(sock)
        server.terminate()
        server.communicate(timeout=SECONDS)
        assert server.returncode == 0


def test_a_server_is_scraped_at_a_unix_socket_that_goes_with_it(tmp_path: Path) -> None:
    device, metrics = tmp_path / "device", tmp_path / "metrics"
    with serving("--socket-path", str(device), "--metrics", f"unix:{metrics}") as server:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(metrics))
            assert "process_start_time_seconds" in scrape(sock)
        server.terminate()
        server.communicate(timeout=SECONDS)
        assert server.returncode == 0
    assert not metrics.exists()


def test_nothing_listens_unless_it_is_asked_for(tmp_path: Path) -> None:
    with serving("--socket-path", str(tmp_path / "device"), "--log-format", "json") as server:
        assert server.stderr is not None
        assert json.loads(server.stderr.readline())["metrics"] is None
        tables = Path(f"/proc/{server.pid}/net").glob("tcp*")  # tcp6 is not everywhere
        listeners = {line.split()[9] for table in tables for line in table.read_text().splitlines()[1:]}
        links = {str(fd.readlink()) for fd in Path(f"/proc/{server.pid}/fd").iterdir()}
        assert not links & {f"socket:[{inode}]" for inode in listeners}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nine", "--metrics nine: no address; write for example 9400"),
        ("{port}", "choose another address"),
        ("unix:{folder}/no/metrics", "create the folder {folder}/no first"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(tmp_path: Path, address: str, says: str) -> None:
    with listener() as other:
        names = {"folder": tmp_path, "port": other.getsockname()[1]}
        result = run("serve", "--socket-path", str(tmp_path / "x"), "--metrics", address.format(**names))
    assert result.returncode == 1
    assert result.stderr.startswith("vgpud: ")
    assert result.stderr.count("\n") == 1
    assert says.format(**names) in result.stderr


def test_a_missing_library_is_one_line_that_names_the_fix(tmp_path: Path) -> None:
    arguments = ["serve", "--socket-path", str(tmp_path / "x"), "--metrics", "0"]
    program = (
        f"import sys; sys.modules['h11'] = None; from server.cli import main; sys.exit(main({arguments}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert result.returncode == 1
    assert result.stderr == f"vgpud: {NEEDS_H11}\n"
    assert "pip install h11" in NEEDS_H11


def test_a_server_without_metrics_does_without_the_library() -> None:
    program = "import sys, server.serve; print('h11' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

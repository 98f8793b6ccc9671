"""Where ``--metrics`` listens."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from server.metrics.listen import MetricsUnavailable, listening, name_of
from server.socket_path import SocketPathError
from tests.server.metrics.scraping import listener
from tests.server.running import open_fds


@pytest.mark.parametrize("address", ["0", "127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_only_the_machine_itself_reaches_it_unless_told_otherwise(address: str) -> None:
    before = open_fds()
    with listening(address) as listeners:
        assert listeners
        for one in listeners:
            host, port, *_ = one.getsockname()
            assert host in ("127.0.0.1", "::1")
            assert name_of(one) in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
            with socket.create_connection((host, port)):
                pass
    assert open_fds() == before


def test_an_address_may_be_said() -> None:
    with listening("0.0.0.0:0") as (one,):
        assert one.getsockname()[0] == "0.0.0.0"  # noqa: S104 - that is what it checks


def test_a_unix_socket_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with listening(f"unix:{path}") as (one,):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert name_of(one) == f"unix:{path}"
    assert not path.exists()


def test_a_unix_socket_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SocketPathError, match="create the folder"), listening(f"unix:{tmp_path}/no/metrics"):
        pass


@pytest.mark.parametrize(
    "address",
    ["", "port", ":9400", "127.0.0.1", "127.0.0.1:", "::1:9400", "[]:1", "1:2:3", "65536", "-1", "٩"],
)
def test_what_is_no_address_is_one_line_with_examples(address: str) -> None:
    with pytest.raises(MetricsUnavailable, match=r"write for example 9400") as error, listening(address):
        pass
    assert "\n" not in str(error.value)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    before = open_fds()
    with listener() as other:
        port = other.getsockname()[1]
        with pytest.raises(MetricsUnavailable, match="choose another address"), listening(str(port)):
            pass
    assert open_fds() == before


def test_a_host_that_there_is_not_is_one_line() -> None:
    with pytest.raises(MetricsUnavailable, match="cannot listen there"), listening("host.invalid:9400"):
        pass

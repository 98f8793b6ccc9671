"""Where ``--metrics`` listens."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from server.metrics.listen import MetricsUnavailable, listening, name_of
from server.socket_path import SocketPathError
from tests.fds import open_fds
from tests.server.metrics.scraping import listener


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


@pytest.mark.parametrize(("said", "mode"), [(",mode=0666", 0o666), (",mode=660", 0o660)])
def test_a_unix_socket_is_for_whom_its_mode_says(tmp_path: Path, said: str, mode: int) -> None:
    path = tmp_path / "metrics"
    with listening(f"unix:{path}{said}"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", ["", "{}/x,mode=", "{}/x,mode=rw", "{}/x,mode=0888", "{}/x,mode=04755"])
def test_what_is_no_path_or_no_mode_is_one_line_with_an_example(tmp_path: Path, said: str) -> None:
    address = f"unix:{said.format(tmp_path)}"
    with (
        pytest.raises(MetricsUnavailable, match=r"write for example unix:/\S+,mode=0666"),
        listening(address),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_star_is_not_taken_for_all_addresses_and_not_for_loopback_either() -> None:
    with pytest.raises(MetricsUnavailable, match=r"write 0\.0\.0\.0:9400 for all"), listening("*:9400"):
        pass


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

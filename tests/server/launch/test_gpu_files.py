"""What each of several GPUs has of its own."""

from pathlib import Path

import pytest

from server.launch.gpu_files import counted, numbered


def test_a_number_stands_before_the_suffix() -> None:
    assert numbered(Path("a/boot.pcapng"), 1, 2) == Path("a/boot-1.pcapng")
    assert numbered(Path("trace"), 0, 2) == Path("trace-0")


def test_what_is_no_name_of_a_file_gets_no_number() -> None:
    assert numbered(Path(), 1, 2) == Path()
    assert counted("unix:", 1, 2) == "unix:."


@pytest.mark.parametrize(
    ("address", "of_the_third"),
    [
        (None, None),
        ("9400", "9402"),
        ("192.0.2.1:9400", "192.0.2.1:9402"),
        ("[::1]:9400", "[::1]:9402"),
        ("0", "0"),
        ("localhost:0", "localhost:0"),
        ("unix:/run/m.sock", "unix:/run/m-2.sock"),
        ("nowhere", "nowhere"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_ports_are_counted_up_and_sockets_get_a_number(address: str | None, of_the_third: str | None) -> None:
    assert counted(address, 2, 3) == of_the_third


@pytest.mark.parametrize("address", ["9400", "unix:/run/m.sock"])
def test_one_gpu_alone_is_where_it_was_asked_to_be(address: str) -> None:
    assert counted(address, 0, 1) == address

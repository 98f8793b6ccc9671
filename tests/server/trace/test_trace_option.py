"""``serve --trace``: what was recorded before is lost only when the server really serves, and only traces are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.server.test_command_line import run, serving

BOOT = Path(__file__).parents[2] / "traces" / "boot.pcapng"
LISTEN = ("serve", "--socket-path")


def refusal(*arguments: str | Path) -> str:
    result = run(*map(str, arguments))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("vgpud: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    "options",
    [("--control", "{folder}/no/such"), ("--metrics", "300.0.0.1:1"), ("--metrics", "unix:{folder}/no/such")],
)
def test_a_server_that_cannot_start_leaves_what_was_recorded_before(
    tmp_path: Path, options: tuple[str, str]
) -> None:
    trace, before = tmp_path / "trace", tmp_path / "trace.1"
    for file in (trace, before):
        shutil.copy(BOOT, file)
    wrong = [option.format(folder=tmp_path) for option in options]
    refusal(*LISTEN, tmp_path / "device", "--trace", trace, *wrong)
    assert trace.read_bytes() == before.read_bytes() == BOOT.read_bytes()


def test_a_file_that_is_no_trace_is_left_and_named(tmp_path: Path) -> None:
    trace, before = tmp_path / "trace", tmp_path / "trace.2"
    before.write_text("somebody's")
    said = refusal(*LISTEN, tmp_path / "device", "--trace", trace)
    assert said == f"vgpud: --trace {before}: is there and is no trace: give another name, or remove it\n"
    assert before.read_text() == "somebody's"


def test_of_two_servers_that_record_to_a_file_one_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with serving("--socket-path", str(tmp_path / "one"), "--trace", str(trace)):
        said = refusal(*LISTEN, tmp_path / "other", "--trace", trace)
        assert said == f"vgpud: --trace {trace}: somebody is recording to it: give another file\n"


def test_a_limit_without_a_trace_is_a_mistake(tmp_path: Path) -> None:
    assert "give --trace FILE as well" in refusal(*LISTEN, tmp_path / "device", "--trace-limit", "5M")


@pytest.mark.parametrize("limit", ["much", "-1", "1T5"])
def test_what_is_no_limit_is_said_with_the_option(tmp_path: Path, limit: str) -> None:
    said = refusal(*LISTEN, tmp_path / "device", "--trace", tmp_path / "trace", f"--trace-limit={limit}")
    assert f"--trace-limit {limit}: " in said
    assert "or none" in said
    assert not (tmp_path / "trace").exists()


def test_a_path_that_is_too_long_for_the_servers_socket_is_said_at_once(tmp_path: Path) -> None:
    where = ("--listen", tmp_path / "proxy", "--connect", tmp_path / ("a" * 100))
    said = refusal("trace", "record", *where, tmp_path / "trace")
    assert "--connect " in said
    assert "longer than the 107 bytes" in said
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("since", ["nan", "inf", "-inf", "soon"])
def test_a_time_that_is_no_number_of_seconds_is_refused(since: str) -> None:
    result = run("trace", "show", f"--since={since}", str(BOOT))
    assert (result.returncode, result.stdout) == (2, "")
    assert f"argument --since: '{since}' is no number of seconds" in result.stderr

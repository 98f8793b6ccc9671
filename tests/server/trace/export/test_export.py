"""Export: what was on the screen, from a trace alone."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from protocol.trace import SessionInfo
from server.cli import main
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing

MODETEST = Path(__file__).parents[3] / "traces" / "modetest.pcapng"
WHITE_BAR = (192, 192, 192)
"""The first bar of the pattern in libdrm's tests/util/pattern.c."""


def export(*arguments: str | Path) -> int:
    return main(["trace", "export", *map(str, arguments)])


def test_frames_are_png_files_in_order_with_their_times(tmp_path: Path) -> None:
    assert export("--frames", tmp_path / "frames", MODETEST) == 0
    files = sorted((tmp_path / "frames").iterdir())
    assert [file.name[:5] for file in files] == [f"{number:04}-" for number in range(1, len(files) + 1)]
    times = [float(file.name[5:].removesuffix("s.png")) for file in files]
    assert times == sorted(times)
    with Image.open(files[-1]) as last:
        assert (last.format, last.size) == ("PNG", (640, 480))
        assert last.convert("RGB").getpixel((10, 10)) == WHITE_BAR


@pytest.mark.parametrize("suffix", ["png", "gif", "webp"])
def test_an_animation_has_all_pictures_and_ends_with_the_last(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"film.{suffix}"
    assert export("--frames", tmp_path / "frames", MODETEST) == 0
    assert export("--animation", output, MODETEST) == 0
    pictures = len(list((tmp_path / "frames").iterdir()))
    with Image.open(output) as film:
        assert getattr(film, "n_frames", 1) == pictures
        film.seek(pictures - 1)
        red, green, blue = film.convert("RGB").getpixel((10, 10))  # type: ignore[misc]
        assert max(abs(part - 192) for part in (red, green, blue)) < 8


def test_json_lines_hold_every_message(tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    assert export("--json", output, MODETEST) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sum("message_id" in line for line in lines) > 600


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--scanout", "1"), "there is no scanout 1"),
        (("--session", "2"), "it has 1 session, so no session 2"),
    ],
)
def test_what_is_not_in_the_trace_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert export("--frames", tmp_path, *arguments, MODETEST) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (SessionInfo("proxy"), "does not say what the device was"),
        (SessionInfo("server", "of-another-time", memory=True), "a device that is not here"),
    ],
)
def test_pictures_need_the_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], info: SessionInfo, reason: str
) -> None:
    path = tmp_path / "trace.pcapng"
    ring = TraceRing(path)
    Recorder(ring, info).start()
    ring.close()
    assert export("--frames", tmp_path / "frames", path) == 1
    assert reason in capsys.readouterr().err


def test_an_animation_in_no_known_format_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--animation", tmp_path / "film.mov", MODETEST) == 1
    assert "name it .png, .gif or .webp" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["film.jpg", "film.bmp", "film.pdf", "film", "film.png.jpg"])
def test_a_name_that_is_none_of_an_animated_picture_is_said_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert export("--animation", tmp_path / name, tmp_path / MODETEST) == 1
    assert "name it .png, .gif or .webp" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--json", "--animation"])
def test_the_trace_itself_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    trace = tmp_path / "trace.png"
    trace.write_bytes(MODETEST.read_bytes())
    (tmp_path / "link.png").symlink_to(trace)
    for output in (trace, tmp_path / "link.png"):
        assert export(option, output, trace) == 1
        assert "is the trace itself: give another OUTPUT" in capsys.readouterr().err
    assert trace.read_bytes() == MODETEST.read_bytes()


@pytest.fixture
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_no_umask")
def test_what_is_exported_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("what was there")
    (tmp_path / "there.json").chmod(0o666)
    for name in ("new.json", "there.json"):
        assert export("--json", tmp_path / name, MODETEST) == 0
    assert export("--animation", tmp_path / "film.png", MODETEST) == 0
    assert export("--frames", tmp_path / "frames", MODETEST) == 0
    files = [*tmp_path.glob("*.*"), *(tmp_path / "frames").iterdir()]
    assert len(files) > 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "frames").stat().st_mode) == 0o700


def test_pictures_of_two_exports_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.png").write_text("is in nobody's way")
    assert export("--frames", tmp_path, MODETEST) == 0
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert export("--frames", tmp_path, MODETEST) == 1
    assert "has pictures of an earlier export: give another folder, or remove them" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before

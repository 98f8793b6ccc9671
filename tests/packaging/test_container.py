"""The Dockerfile, as it is read; ``test_container_build.py`` builds it."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from server.cli import build_parser
from server.libvfio_user.library import FOLDERS, SONAME, VARIABLE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def exec_form(instruction: str) -> list[str]:
    """The arguments of the last ``instruction`` in exec form."""
    found = re.findall(rf"^\s*{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    arguments: list[str] = json.loads(found[-1])
    return arguments


def health_check() -> list[str]:
    (_, text) = DOCKERFILE.split("HEALTHCHECK", 1)
    arguments: list[str] = json.loads(text[text.index("[") : text.index("]") + 1])
    return arguments


def server_command() -> list[str]:
    (before, _) = DOCKERFILE.split("HEALTHCHECK", 1)
    arguments: list[str] = json.loads(re.findall(r"^CMD (\[.*\])$", before, re.MULTILINE)[-1])
    return arguments


def test_the_container_runs_a_command_that_there_is() -> None:
    assert exec_form("ENTRYPOINT") == ["vgpud"]
    assert build_parser().parse_args(server_command()).socket_path == Path("/run/vgpud/device.sock")


def test_the_health_check_asks_the_socket_that_the_server_listens_on() -> None:
    program, *arguments = health_check()
    assert program == "vgpud"
    serving = build_parser().parse_args(server_command())
    assert build_parser().parse_args(arguments).control == serving.control


def test_the_container_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["vgpud"]
    assert DOCKERFILE.index("USER vgpud") < DOCKERFILE.index("ENTRYPOINT")


def stages() -> dict[str, str]:
    """The instructions of each stage, by its name; the image itself has none."""
    _, *found = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    texts = {}
    for text in found:
        base, _, rest = text.partition("\n")
        texts[base.removeprefix("${BASE_IMAGE}").removeprefix(" AS ")] = rest
    return texts


def test_what_builds_stays_in_stages_of_its_own() -> None:
    assert list(stages()) == ["libvfio-user", "wheel", ""]
    copied = re.findall(r"^COPY (\S+)", stages()[""], re.MULTILINE)
    assert copied == ["--from=libvfio-user", "--from=wheel"]


def test_every_stage_has_the_base_that_the_builder_chooses() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == 3 * ["${BASE_IMAGE}"]
    assert "\nARG BASE_IMAGE=" in DOCKERFILE


def test_the_server_is_told_where_the_library_is() -> None:
    (named,) = re.findall(rf"\b{VARIABLE}=(\S+)", stages()[""])
    (folder,) = re.findall(r"^COPY --from=libvfio-user \S+ (\S+)$", stages()[""], re.MULTILINE)
    assert named == f"{folder}/{SONAME}"
    assert folder in FOLDERS


def test_no_mirror_is_written_into_it() -> None:
    assert "://" not in DOCKERFILE


def documented(program: str) -> list[str]:
    """The command line of ``program`` in the comment at the head."""
    head, _ = DOCKERFILE.split("\nARG ", 1)
    text = "\n".join(line.removeprefix("#") for line in head.splitlines())
    (command,) = re.findall(rf"^ +({program} (?:.*\\\n)*.*)$", text, re.MULTILINE)
    return shlex.split(command.replace("\\\n", " "))


def test_the_line_that_runs_it_goes_with_that_of_qemu() -> None:
    run = documented("docker run")
    folder, inside = run[run.index("-v") + 1].split(":")
    serving = build_parser().parse_args(run[run.index("vgpud") + 1 :])
    assert serving.socket_path.parent == serving.control.parent == Path(inside)
    qemu = documented("qemu-system-x86_64")
    device = json.loads(qemu[qemu.index("-device") + 1])
    assert device["socket"] == {"type": "unix", "path": f"{folder}/{serving.socket_path.name}"}


def kept_in_the_build_context() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "LICENSE", "README.md", "protocol", "devices", "server", "share", "systemd"]
)
def test_what_the_wheel_is_built_from_is_in_the_build_context(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    kept = kept_in_the_build_context()
    assert name in kept
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {Path(name).parts[0] for name in (*wheel["packages"], *wheel["shared-data"])} <= kept
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= kept


def test_what_the_stages_copy_is_in_the_build_context() -> None:
    copied = [
        name
        for arguments in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for name in arguments.split()
        if name != "."
    ]
    assert "scripts/build-libvfio-user.sh" in copied
    kept = [Path(name) for name in kept_in_the_build_context()]
    for name in copied:
        assert (ROOT / name).exists()
        assert any(Path(name).is_relative_to(folder) for folder in kept), name

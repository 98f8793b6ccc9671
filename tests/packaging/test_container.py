"""The Dockerfile: what can be checked of it without a container engine."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from server.cli import build_parser

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


def kept_in_the_build_context() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


@pytest.mark.parametrize("name", ["pyproject.toml", "LICENSE", "README.md", "protocol", "devices", "server"])
def test_what_the_wheel_is_built_from_is_in_the_build_context(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    kept = kept_in_the_build_context()
    assert name in kept
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= kept
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= kept

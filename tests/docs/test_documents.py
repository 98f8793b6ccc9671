"""What the documents say is there is there: files behind links, commands, options, examples."""

import json
import re
from pathlib import Path

import pytest

from devices.contract import Device
from devices.models import MODELS
from devices.registry import create_device
from devices.testing import FakeHost
from examples.doorbell import Doorbell
from server.cli import build_parser
from server.qemu.client import vfio_user_pci
from tests.docs.documents import DOCUMENTS, ROOT, anchors, blocks, links, shell_commands

LINKS = [(document, target) for document in DOCUMENTS for target in links(document)]
RELATIVE = [(document, target) for document, target in LINKS if "://" not in target]
COMMANDS = [(document, words) for document in DOCUMENTS for words in shell_commands(document)]
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SHOWN = [(block.path, block.text) for block in BLOCKS if block.path and not block.part]
PARTS_SHOWN = [(block.path, block.text) for block in BLOCKS if block.path and block.part]
README = ROOT / "README.md"
WRITING_A_DEVICE = ROOT / "docs" / "writing-a-device.md"


def commands_of(program: str) -> list[list[str]]:
    return [words[1:] for _, words in COMMANDS if Path(words[0]).name == program]


@pytest.mark.parametrize(
    ("document", "target"), RELATIVE, ids=lambda value: str(value).replace(str(ROOT), "")
)
def test_a_relative_link_leads_somewhere(document: Path, target: str) -> None:
    path, _, fragment = target.partition("#")
    linked = (document.parent / path).resolve() if path else document
    assert linked.exists()
    assert linked.is_relative_to(ROOT)
    if fragment:
        assert fragment in anchors(linked)


def test_the_documents_have_links_and_commands_to_check() -> None:
    assert len(RELATIVE) > 10
    assert len(commands_of("vgpud")) >= 3
    assert len(SHOWN) == 3
    assert len(PARTS_SHOWN) == 8


@pytest.mark.parametrize("words", commands_of("vgpud"), ids=" ".join)
def test_a_command_of_the_documents_is_one_of_the_program(words: list[str]) -> None:
    assert callable(build_parser().parse_args(words).handler)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`vgpud ([a-z-]+)", README.read_text()))))
def test_a_command_that_the_readme_names_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vgpud {name}")


@pytest.mark.parametrize("words", commands_of("make"), ids=" ".join)
def test_a_make_target_of_the_documents_exists(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


@pytest.mark.parametrize("text", re.findall(r"--device ([\w-]+,[\w=,-]+)", README.read_text()))
def test_a_device_that_the_readme_describes_can_be_made(text: str) -> None:
    assert isinstance(create_device(MODELS, text), Device)


@pytest.mark.parametrize("words", commands_of("qemu-system-x86_64"), ids=lambda words: str(words[-1]))
def test_the_options_for_qemu_fit_together(words: list[str]) -> None:
    options = dict(zip(words[::2], words[1::2], strict=True))
    backend = dict(part.split("=") for part in options["-object"].split(",")[1:])
    assert options["-object"].startswith("memory-backend-memfd,")
    assert backend == {"id": "mem", "size": options["-m"], "share": "on"}
    assert options["-machine"] == f"q35,memory-backend={backend['id']}"
    device = json.loads(options["-device"])
    assert device == vfio_user_pci(Path(device["socket"]["path"]))


def test_qemu_connects_to_where_the_readme_lets_the_server_listen() -> None:
    commands = [words[1:] for document, words in COMMANDS if document == README and words[0] == "vgpud"]
    (serve,) = [words for words in commands if words[0] == "serve"]
    listening = build_parser().parse_args(serve)
    assert str(listening.socket_path) in README.read_text().split("qemu-system-x86_64")[1]
    for words in commands:
        assert build_parser().parse_args(words).control == listening.control


@pytest.mark.parametrize(("path", "text"), SHOWN, ids=[path for path, _ in SHOWN])
def test_a_document_shows_a_file_as_it_is(path: str, text: str) -> None:
    assert text == (ROOT / path).read_text()


@pytest.mark.parametrize(("path", "text"), PARTS_SHOWN)
def test_a_document_shows_a_part_of_a_file_as_it_is(path: str, text: str) -> None:
    assert f"\n{text}" in (ROOT / path).read_text()


def test_the_three_lines_of_a_host_work() -> None:
    (snippet,) = [
        block.text for block in blocks(WRITING_A_DEVICE) if block.language == "python" and block.path is None
    ]
    assert len(snippet.splitlines()) == 3
    names: dict[str, object] = {"FakeHost": FakeHost, "device": (device := Doorbell())}
    exec(snippet, names)  # noqa: S102 - it is what readers are told to run
    assert device.region_read(0, 0x04, 4) == b"\x01\x00\x00\x00"


@pytest.mark.parametrize(
    "image", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda path: str(path.name)
)
def test_pictures_are_small_and_used(image: Path) -> None:
    assert image.stat().st_size < 100_000
    assert any(target.endswith(f"images/{image.name}") for _, target in LINKS)

"""The wheel: what is in it, and that it works where nothing of the source tree is.

The dependencies are those of the environment that runs the tests, so nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from devices.models import MODELS
from tests.docs.documents import blocks

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "devices", "server")
DATA = {"systemd": "lib/systemd/system", "share/vgpud": "share/vgpud"}
"""Folders whose files are installed below the prefix, and where."""
PREFIX = "/opt/vgpud"
"""The virtual environment that the documents install into."""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ("--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel))
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *install, cwd=folder)
    dependencies = Path(sysconfig.get_path("purelib"))
    own = Path(
        run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    (own / "dependencies.pth").write_text(f"{dependencies}\n")
    return python.parent


def test_the_wheel_holds_every_module_of_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {name for name in names if ".dist-info/" not in name and ".data/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert code == expected


def test_units_and_discovery_file_are_installed_below_the_prefix(wheel: Path, bin_folder: Path) -> None:
    sources = {path: Path(target, path.name) for folder, target in DATA.items() for path in files_in(folder)}
    names = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()} - {""}
    assert names == {str(target) for target in sources.values()}
    assert {"vgpud@.service", "vgpud@.socket", "50-vgpud.json"} <= {path.name for path in sources}
    for source, target in sources.items():
        assert (bin_folder.parent / target).read_bytes() == source.read_bytes()


def files_in(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).iterdir() if path.is_file()]


def do_as_documented(document: str, word: str, places: Mapping[str, Path], home: Path) -> None:
    """Run the commands of a document that name ``word``, without sudo, and with other ``places``."""
    shell = [block.text for block in blocks(ROOT / "docs" / document) if block.language == "sh"]
    commands = [line.removeprefix("sudo ") for text in shell for line in text.splitlines() if word in line]
    assert any(PREFIX in command for command in commands)
    script = "\n".join(commands)
    for place, other in places.items():
        script = script.replace(place, str(other))
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_units_are_installed_as_documented(bin_folder: Path, tmp_path: Path) -> None:
    places = {PREFIX: bin_folder.parent, "/etc/systemd/system": tmp_path}
    do_as_documented("instances.md", "install -m", places, tmp_path)
    for source in files_in("systemd"):
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()


def test_the_discovery_file_names_the_program_once_it_was_changed_as_documented(
    bin_folder: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(bin_folder.parent / "share/vgpud/50-vgpud.json", tmp_path))
    places = {f"{PREFIX}/share/vgpud": tmp_path, PREFIX: bin_folder.parent}
    do_as_documented("operating.md", "50-vgpud.json", places, tmp_path)
    program = json.loads(file.read_text())["binary"]
    assert Path(program).parent == bin_folder
    assert json.loads(run(program, "--print-capabilities", cwd=bin_folder))["type"] == "gpu"


def test_the_dissector_is_installed_as_documented(bin_folder: Path, tmp_path: Path) -> None:
    do_as_documented("traces.md", "wireshark/plugins", {PREFIX: bin_folder.parent}, tmp_path)
    (copy,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert copy.parent == tmp_path / ".local/lib/wireshark/plugins"
    assert copy.read_bytes() == (ROOT / "protocol" / "wireshark" / "vfio-user.lua").read_bytes()


def test_the_packages_are_marked_as_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_the_licence_comes_along(wheel: Path) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_what_is_installed_is_the_wheel_and_not_the_source_tree(bin_folder: Path) -> None:
    command = "import server, devices, protocol; print(server.__file__, devices.__file__, protocol.__file__)"
    files = run(str(bin_folder / "python"), "-c", command, cwd=bin_folder).split()
    assert all(Path(file).is_relative_to(bin_folder.parent) for file in files)


def test_the_installed_program_says_its_version(bin_folder: Path, wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert run(str(bin_folder / "vgpud"), "--version", cwd=bin_folder) == f"vgpud {version}\n"


def test_the_installed_program_lists_its_devices(bin_folder: Path) -> None:
    listing = json.loads(run(str(bin_folder / "vgpud"), "devices", "--json", cwd=bin_folder))
    assert [model["name"] for model in listing] == [model.name for model in MODELS]


@pytest.mark.parametrize("command", ["serve", "demo", "screenshot", "status"])
def test_the_installed_program_explains_its_commands(bin_folder: Path, command: str) -> None:
    assert "usage: vgpud" in run(str(bin_folder / "vgpud"), command, "--help", cwd=bin_folder)

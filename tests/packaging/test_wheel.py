"""The wheel: what is in it, and that it works where nothing of the source tree is.

The dependencies are those of the environment that runs the tests, so nothing is downloaded.
"""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from devices.models import MODELS

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "devices", "server")


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
    code = {name for name in names if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert code == expected


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

"""The container, built from the Dockerfile by buildah, and its server run from the resulting root file system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from protocol.vfio import PciRegion
from server.client import open_client
from tests.packaging.container import SECONDS, Container, Image, build_image, running

TRANSPORTS = ("native", "libvfio-user")
VENDOR_AND_DEVICE = bytes.fromhex("f41a 5010")
"""1af4:1050, little endian: virtio 1.2, 4.1.2 and 5.7.1."""


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    # not in pytest's folders, which keep what the last runs made: a root file system is large
    with TemporaryDirectory(prefix="vgpud-container-") as folder:
        yield build_image(Path(folder))


@pytest.fixture
def shared(image: Image, tmp_path: Path) -> Path:
    return image.share(tmp_path / "vgpud")


@pytest.fixture
def container(image: Image, shared: Path) -> Iterator[Container]:
    with running(image, shared) as container:
        yield container


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_on_the_host_finds_the_device(image: Image, shared: Path, transport: str) -> None:
    with running(image, shared, "--transport", transport) as container:
        with trio.fail_after(SECONDS):
            async with open_client(container.device) as client:
                assert await client.region_read(PciRegion.CONFIG, 0, 4) == VENDOR_AND_DEVICE
        status, log = container.stop()
    assert f"transport={transport}" in log
    assert status == 0


def test_the_health_check_passes_while_the_server_runs(container: Container) -> None:
    health = container.image.run(container.shared, *container.image.health_check)
    assert health.returncode == 0, health.stderr


def test_the_health_check_fails_where_no_server_runs(image: Image, shared: Path) -> None:
    assert image.run(shared, *image.health_check).returncode == 1


def test_the_server_has_no_privilege(container: Container) -> None:
    lines = Path(f"/proc/{container.server_pid()}/status").read_text().splitlines()
    status = {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
    ids = {*status["Uid"], *status["Gid"], *status["Groups"]}
    assert "0" not in ids
    capabilities = {name: int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    assert not any(capabilities.values()), capabilities


def test_the_server_stops_when_the_engine_asks_it_to_and_takes_its_sockets_along(
    container: Container,
) -> None:
    status, log = container.stop()
    assert status == 0, log
    assert not container.device.exists()


def test_the_library_loads_in_the_servers_python(image: Image, shared: Path) -> None:
    load = "import ctypes, os; print(ctypes.CDLL(os.environ['VGPUD_LIBVFIO_USER']).vfu_create_ctx)"
    done = image.run(shared, "python", "-c", load)
    assert done.returncode == 0, done.stderr


def test_the_server_is_installed_into_a_virtual_environment_of_its_own(image: Image, shared: Path) -> None:
    look = "import sys, server; print(sys.prefix, sys.prefix != sys.base_prefix, server.__file__)"
    prefix, virtual, file = image.run(shared, "python", "-c", look).stdout.split()
    assert virtual == "True"
    assert Path(file).is_relative_to(prefix)


def test_nothing_but_the_shared_library_is_left_of_what_built_it(image: Image) -> None:
    found = {path.relative_to(image.root) for path in image.root.rglob("*vfio-user*.so*")}
    assert found == {Path("usr/local/lib/libvfio-user.so.0")}
    programs = {
        path.name for folder in ("usr/bin", "opt/vgpud/bin") for path in (image.root / folder).iterdir()
    }
    assert not programs & {"gcc", "cc", "ld", "meson", "ninja", "pkg-config", "pip"}


def test_how_the_building_machine_reaches_packages_is_not_in_the_image(image: Image) -> None:
    assert not (image.root / "etc/pip.conf").exists()
    assert (image.root / "etc/resolv.conf").read_text() == ""
    options = list((image.root / "etc/apt/apt.conf.d").glob("99*"))
    assert [path.read_text() for path in options] == [""]

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from server.guest.errors import GuestError
from server.guest.initramfs import modules_dep
from server.guest.kernel import Kernel, find_kernel, read_module

Build = Callable[[str, str], bytes]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds an object file with the .modinfo of a module that depends on others."""

    def build_module(name: str, depends: str) -> bytes:
        source, built = tmp_path / f"{name}.s", tmp_path / f"{name}.o"
        source.write_text(f'.section .modinfo,"a"\n.asciz "license=GPL"\n.asciz "depends={depends}"\n')
        subprocess.run(["as", "-o", str(built), str(source)], check=True)
        return built.read_bytes()

    return build_module


@pytest.fixture
def kernel(tmp_path: Path, build: Build) -> Kernel:
    modules = tmp_path / "modules"
    drm = modules / "kernel/drivers/gpu/drm"
    drm.mkdir(parents=True)
    (drm / "drm.ko").write_bytes(build("drm", ""))
    (drm / "drm_kms_helper.ko.gz").write_bytes(gzip.compress(build("helper", "drm")))
    (drm / "virtio-gpu.ko.xz").write_bytes(lzma.compress(build("gpu", "drm_kms_helper,drm,virtio-ring")))
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_ring.ko\nkernel/virtio_pci.ko\n")
    return Kernel(tmp_path / "vmlinuz", modules, "6.12")


def test_modules_come_after_what_they_depend_on(kernel: Kernel) -> None:
    modules = kernel.modules(["virtio_pci", "virtio-gpu"])
    assert [module.name for module in modules] == ["drm", "drm_kms_helper", "virtio_gpu"]
    assert all(module.code.startswith(b"\x7fELF") for module in modules)


def test_modules_dep_lists_all_dependencies_in_reverse_order_of_loading(kernel: Kernel) -> None:
    assert modules_dep(kernel.modules(["virtio_gpu"])).splitlines() == [
        "drm.ko:",
        "drm_kms_helper.ko: drm.ko",
        "virtio_gpu.ko: drm_kms_helper.ko drm.ko",
    ]


def test_a_module_that_the_kernel_lacks_is_named(kernel: Kernel) -> None:
    with pytest.raises(GuestError, match="has no module vfio_pci"):
        kernel.modules(["vfio-pci"])


def test_a_damaged_module_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.ko.xz"
    path.write_bytes(b"not xz")
    with pytest.raises(GuestError, match=r"cannot read the kernel module .*broken\.ko\.xz"):
        read_module(path)


def test_the_users_kernel_comes_first(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "vmlinuz-6.99-own"
    image.touch()
    monkeypatch.setenv("VGPUD_KERNEL", str(image))
    monkeypatch.setenv("VGPUD_MODULES", str(kernel.modules_folder))
    assert find_kernel() == Kernel(image, kernel.modules_folder, "6.99-own")


def test_a_kernel_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPUD_KERNEL", str(tmp_path / "vmlinuz-none"))
    with pytest.raises(GuestError, match="VGPUD_KERNEL: cannot read"):
        find_kernel()

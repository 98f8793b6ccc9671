from __future__ import annotations

from pathlib import Path

import pytest

from server.guest import accel
from server.guest.accel import KVM, TCG, choose_accel, kvm_boots
from server.guest.errors import GuestError
from server.guest.kernel import Kernel
from server.guest.qemu import Qemu
from tests.server.guest.programs import script

BOOTS = "echo 'Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)'; exec sleep 60"
CRASHES = "echo 'KVM internal error. Suberror: 1'; exec sleep 60"
ENDS = "echo 'Could not access KVM kernel module'; exit 1"

KERNEL = Kernel(Path("/boot/vmlinuz"), Path("/lib/modules/6.12"), "6.12")


def qemu_that(tmp_path: Path, does: str) -> Qemu:
    return Qemu((str(script(tmp_path / "qemu", does)),), (11, 0, 0))


@pytest.fixture(autouse=True)
def machine_with_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "_KVM_DEVICE", device)
    monkeypatch.setattr(accel, "_PROBE_SECONDS", 120.0)
    monkeypatch.setenv("VGPUD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VGPUD_ACCEL", raising=False)


@pytest.mark.parametrize(("does", "works"), [(BOOTS, True), (CRASHES, False), (ENDS, False)])
def test_kvm_works_where_the_kernel_boots_on_it(tmp_path: Path, does: str, works: bool) -> None:
    assert kvm_boots(qemu_that(tmp_path, does), KERNEL) is works


def test_a_guest_that_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_PROBE_SECONDS", 0.05)
    assert not kvm_boots(qemu_that(tmp_path, "exec sleep 60"), KERNEL)


def test_emulation_takes_over_where_kvm_crashes_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    assert choose_accel(qemu_that(tmp_path, CRASHES), KERNEL, said.append) == TCG
    assert len(said) == 1
    assert "guests crash on it" in said[0]


def test_the_verdict_is_kept_until_something_changes(tmp_path: Path) -> None:
    assert choose_accel(qemu_that(tmp_path, BOOTS), KERNEL) == KVM
    broken = qemu_that(tmp_path, CRASHES)
    assert choose_accel(broken, KERNEL) == KVM
    assert choose_accel(Qemu(broken.argv, (11, 1, 0)), KERNEL) == TCG


def test_a_machine_without_kvm_emulates_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "_KVM_DEVICE", tmp_path / "no-kvm")
    said: list[str] = []
    assert choose_accel(qemu_that(tmp_path, BOOTS), KERNEL, said.append) == TCG
    assert "TCG" in said[0]


def test_the_user_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = qemu_that(tmp_path, BOOTS)
    monkeypatch.setenv("VGPUD_ACCEL", "TCG")
    assert choose_accel(qemu, KERNEL) == TCG
    monkeypatch.setenv("VGPUD_ACCEL", "hvf")
    with pytest.raises(GuestError, match="VGPUD_ACCEL is hvf: kvm and tcg are the choices"):
        choose_accel(qemu, KERNEL)

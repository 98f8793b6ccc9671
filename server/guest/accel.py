"""KVM or emulation: what guests run on here.

A ``/dev/kvm`` that opens proves nothing (under nested or emulated virtualisation guests may crash on it), so
the guest's kernel is booted on it once, without a root file system: the panic about that is the proof.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic

from server.guest.cache import cache_dir, write_atomically
from server.guest.errors import GuestError
from server.guest.kernel import Kernel
from server.guest.progress import Report, to_stderr
from server.guest.qemu import Qemu

_KVM_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOTED = b"VFS: Unable to mount root fs"
_FAILURES = (b"KVM internal error", b"KVM: entry failed", b"error: kvm run failed")
_PROBE_SECONDS = 8.0
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Accel:
    """A way to run guests: QEMU's ``-accel`` and the ``-cpu`` that goes with it."""

    name: str
    accel: str
    cpu: str


KVM = Accel("KVM", "kvm", "host")
TCG = Accel("TCG", "tcg,thread=multi", "Nehalem")
"""Emulation; with a later CPU model the guest's memset uses ``rep stosb``, which is emulated byte by byte."""

_BY_NAME = {"kvm": KVM, "tcg": TCG}


def choose_accel(qemu: Qemu, kernel: Kernel, report: Report = to_stderr) -> Accel:
    """Return ``$VGPUD_ACCEL`` (kvm or tcg), else KVM where it works, else TCG, and say so.

    The verdict on KVM is kept in the cache until the machine is booted again. Raises :class:`GuestError` for
    any other VGPUD_ACCEL.
    """
    if own := os.environ.get("VGPUD_ACCEL"):
        if own.lower() not in _BY_NAME:
            raise GuestError(f"VGPUD_ACCEL is {own}: kvm and tcg are the choices")
        return _BY_NAME[own.lower()]
    if not os.access(_KVM_DEVICE, os.R_OK | os.W_OK):
        report(f"no usable {_KVM_DEVICE}: the guest is emulated (TCG), which is slower")
        return TCG
    if _kvm_verdict(qemu, kernel):
        return KVM
    report(f"{_KVM_DEVICE} opens, but guests crash on it: the guest is emulated (TCG), which is slower")
    return TCG


def _kvm_verdict(qemu: Qemu, kernel: Kernel) -> bool:
    asked = f"{_BOOT_ID.read_text().strip()} {qemu.release} {kernel.release}"
    file = cache_dir() / "kvm-works"
    try:
        key, _, verdict = file.read_text().rpartition(" ")
    except OSError:
        key, verdict = "", ""
    if key != asked:
        verdict = "yes" if kvm_boots(qemu, kernel) else "no"
        write_atomically(file, f"{asked} {verdict}")
    return verdict == "yes"


def kvm_boots(qemu: Qemu, kernel: Kernel) -> bool:
    """Boot ``kernel`` under KVM, as far as it comes without a root file system: 1 or 2 s where KVM works."""
    command = [
        *qemu.argv, "-machine", "q35", "-accel", KVM.accel, "-cpu", KVM.cpu, "-m", "512", "-nodefaults",
        "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel.image),
        "-append", "console=ttyS0 panic=-1",
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        env=qemu.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - Popen gives what was asked for
            return _says_booted(process.stdout.fileno())
        finally:
            process.kill()


def _says_booted(output: int) -> bool:
    deadline = monotonic() + _PROBE_SECONDS
    said = b""
    with DefaultSelector() as selector:
        selector.register(output, EVENT_READ)
        while (left := deadline - monotonic()) > 0 and selector.select(left):
            chunk = os.read(output, _CHUNK)
            said += chunk
            if _BOOTED in said:
                return True
            if not chunk or any(failure in said for failure in _FAILURES):
                return False
    return False

"""``vgpud run`` as its user meets it, up to the point where something is started."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import build_parser
from server.launch.run import gpus
from server.launch.server_process import UNPLUGGABLE
from server.qemu.migration_guard import IMAGE
from tests.server.launch.fake_qemu import SECONDS, Launcher

GUARD = f"""-blockdev {
    shlex.quote(
        '{"driver": "vdi", "node-name": "vgpud-gpu-cannot-migrate", "read-only": true, '
        f'"file": {{"driver": "file", "filename": "{IMAGE}"}}}}'
    )
}"""


def run(launcher: Launcher, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "run", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=launcher.environment(),
    )


@pytest.mark.parametrize("separator", [["--"], []])
def test_a_dry_run_prints_the_command_for_a_shell(launcher: Launcher, separator: list[str]) -> None:
    done = run(
        launcher, "--dry-run", *separator, str(launcher.qemu), "-m", "1G", "-name", "two words", "--", "-M", "q35"
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    words = shlex.split(done.stdout)
    assert done.stdout == shlex.join(words) + "\n"
    assert words[:5] == [str(launcher.qemu), "-m", "1G", "-name", "two words"]
    assert shlex.split(GUARD)[1] in words
    assert "memory-backend=vgpud-memory" in words


def test_a_dry_run_has_its_gpus_where_servers_can_be_started_by_hand(launcher: Launcher) -> None:
    gpu = ["--gpu", "virtio-gpu,width=800"]
    done = run(launcher, "--dry-run", "--root-port", *gpu, *gpu, "--", str(launcher.qemu), "-M", "q35")
    assert done.stdout.count("pcie-root-port") == 2
    assert '"path": "/tmp/vgpud0.sock"' in done.stdout
    assert '"path": "/tmp/vgpud1.sock"' in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "write: vgpud run -- qemu-system-x86_64 ..."),
        (["--"], "write: vgpud run -- qemu-system-x86_64 ..."),
        (["--", "-m", "2G"], "-m: the command begins with the program"),
        (["--", "{qemu}", "-m"], "-m: QEMU wants a value behind it"),
        (["--", "{qemu}", "-m", "much"], "'much' is no size; write for example 2G"),
        (["--", "{qemu}", "-incoming", "defer"], "without -incoming"),
        (["--", "{qemu}", "-device", "{{'a"], "need quotes"),
        (
            ["--gpu", "virtio-gpu,width=wide", "--", "{qemu}"],
            "--gpu virtio-gpu,width=wide: virtio-gpu: width=",
        ),
        (["--", "{qemu}", "--dry-run"], "in front of QEMU's command"),
        (["--root-port", "--", "{qemu}"], "goes with -machine q35"),
        (["--dry-run", "--gpu", "nothing", "--", "{qemu}"], "--gpu nothing: unknown device"),
        (["--", "{qemu}-of-another-name"], "no such program"),
        (["--", "/bin/true"], "give a QEMU 10.1 or later"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(launcher: Launcher, words: list[str], says: str) -> None:
    done = run(launcher, *(word.format(qemu=launcher.qemu) for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vgpud: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_a_qemu_that_cannot_be_guarded_is_started_with_a_warning(launcher: Launcher) -> None:
    program = launcher.qemu.read_text()
    launcher.qemu.write_text(program.replace("raw vdi", "raw"))
    with launcher.running() as guest:
        assert "-blockdev" not in guest.qemu.arguments
        guest.qemu.does("exit", 0)
        status, _, said = guest.ended()
    assert status == 0
    assert said == "vgpud: this QEMU knows no VDI images; do not migrate the guest: nothing will refuse it\n"


def test_one_gpu_has_the_files_that_were_named_and_several_have_numbers() -> None:
    parse = build_parser().parse_args
    (one,) = gpus(parse(["run", "--control", "/c.sock", "--trace", "t", "--log", "/l", "--", "qemu"]))
    assert (one.name, one.device) == ("vgpud0", "virtio-gpu")
    assert (one.control, one.trace, one.log) == (Path("/c.sock"), Path("t"), Path("/l"))
    two = gpus(parse(["run", "--gpu", "edu", "--gpu", "virtio-gpu", "--control", "/c.sock", "--", "qemu"]))
    assert [(gpu.name, gpu.device) for gpu in two] == [("vgpud0", "edu"), ("vgpud1", "virtio-gpu")]
    assert [gpu.control for gpu in two] == [Path("/c-0.sock"), Path("/c-1.sock")]
    assert [gpu.trace for gpu in two] == [None, None]
    assert not any(gpu.unpluggable for gpu in two)


def test_a_gpu_behind_a_port_of_its_own_is_one_that_qemu_survives_the_unplugging_of() -> None:
    (gpu,) = gpus(build_parser().parse_args(["run", "--root-port", "--", "qemu"]))
    assert UNPLUGGABLE in gpu.command(5)
    (other,) = gpus(build_parser().parse_args(["run", "--", "qemu"]))
    assert UNPLUGGABLE not in other.command(5)


@pytest.mark.parametrize("folders", [(), ("-L", "{other}")])
def test_firmware_draws_on_a_bochs_display_where_qemu_has_the_rom_for_it(
    launcher: Launcher, folders: tuple[str, ...]
) -> None:
    other = launcher.folder / "other"
    other.mkdir()
    (other if folders else launcher.folder).joinpath("vgabios-bochs-display.bin").touch()
    words = [word.format(other=other) for word in folders]
    command = ("--dry-run", "--gpu", "bochs-display", "--gpu", "edu", "--", str(launcher.qemu), *words)
    done = run(launcher, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"romfile": "vgabios-bochs-display.bin"') == 1


def test_a_qemu_without_the_rom_is_started_with_a_line_that_says_so(launcher: Launcher) -> None:
    done = run(launcher, "--dry-run", "--gpu", "bochs-display,width=800", "--", str(launcher.qemu))
    assert done.returncode == 0
    assert "romfile" not in done.stdout
    assert done.stderr == (
        "vgpud: this QEMU has no vgabios-bochs-display.bin: the screen of vgpud0 is empty until the guest's driver is "
        "up\n"
    )


def test_a_rom_that_the_user_chose_is_left_alone(launcher: Launcher) -> None:
    chosen = ("-global", "vfio-user-pci.romfile=mine.bin")
    done = run(launcher, "--dry-run", "--gpu", "bochs-display", "--", str(launcher.qemu), *chosen)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("romfile") == 1

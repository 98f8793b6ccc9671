"""What is refused, and with which words."""

import shlex
from pathlib import Path

import pytest

from server.launch.checks import check_command, check_program
from server.launch.errors import LaunchError
from server.launch.qemu_options import parse_command


def check(text: str, *, root_ports: bool = False) -> None:
    check_command(parse_command(["qemu", *shlex.split(text)]), root_ports=root_ports)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("-incoming defer", "without -incoming"),
        ("--incoming tcp:0:4444", "without -incoming"),
        ("-loadvm before", "without -loadvm"),
        ("-only-migratable", "leave -only-migratable out"),
        ("-daemonize -pidfile p", "leave -daemonize out"),
        ("-M none", "take -machine q35"),
        ("-M q35 -machine isapc", "take -machine q35"),
        ("-machine type=x-remote", "take -machine q35"),
        ("-M microvm", "-machine microvm,pcie=on"),
        ("-M microvm,pcie=off", "-machine microvm,pcie=on"),
        ("-M q35,confidential-guest-support=s", "leave it out"),
        ("-M memory-encryption=s", "leave it out"),
        ("-device intel-iommu", "add caching-mode=on"),
        ("-device intel-iommu,caching-mode=off", "add caching-mode=on"),
        ("""-device '{"driver": "amd-iommu"}'""", "add dma-remap=on"),
        ("-readconfig /no/such/file", "No such file"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(text: str, fix: str) -> None:
    with pytest.raises(LaunchError, match=fix) as refused:
        check(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-M pc",
        "-M pc-i440fx-9.2,usb=on",
        "-machine pc-q35-10.1 -M accel=kvm:tcg",
        "-M isapc -M q35",
        "-M microvm,pcie=on",
        "-M microvm -M pcie=yes",
        "-machine help",
        "-M ?",
        "-device intel-iommu,caching-mode=on",
        """-device '{"driver": "intel-iommu", "caching-mode": true}'""",
        "-device amd-iommu,dma-remap=on",
        "-device virtio-iommu-pci",
        "-append -incoming -kernel k",
    ],
)
def test_what_works_is_not_refused(text: str) -> None:
    check(text)


@pytest.mark.parametrize("machine", ["-M q35", "-M pc-q35-9.2"])
def test_root_ports_go_with_pci_express(machine: str) -> None:
    check(machine, root_ports=True)


@pytest.mark.parametrize("machine", ["", "-M pc", "-M microvm,pcie=on"])
def test_root_ports_do_not_go_with_other_machines(machine: str) -> None:
    with pytest.raises(LaunchError, match="--root-port: goes with -machine q35"):
        check(machine, root_ports=True)


@pytest.mark.parametrize(
    ("section", "option"),
    [("[memory]", "-m"), ("[machine]", "-machine"), (' [ object "mem" ]', "-object"), ("[numa]", "-numa")],
)
def test_a_config_file_does_not_say_what_the_memory_is(tmp_path: Path, section: str, option: str) -> None:
    config = tmp_path / "qemu.conf"
    config.write_text(f'[device "x"]\n  driver = "edu"\n{section}\n  size = "1G"\n')
    with pytest.raises(LaunchError, match=f"to the command line, as {option}$"):
        check(f"-readconfig {config}")


def test_a_config_file_may_say_anything_else(tmp_path: Path) -> None:
    config = tmp_path / "qemu.conf"
    config.write_text('[device "memory"]\n  driver = "edu"\n# [memory]\n[smp-opts]\n  cpus = "2"\n')
    check(f"-readconfig {config}")


def test_a_config_file_does_not_say_which_memory_a_device_has(tmp_path: Path) -> None:
    config = tmp_path / "qemu.conf"
    config.write_text('[device "x"]\n  driver = "nvdimm"\n  memdev = "m"\n')
    with pytest.raises(LaunchError, match=r"move the device with memdev to the command line, as -device$"):
        check(f"-readconfig {config}")


def check_words(*words: str) -> None:
    check_program(parse_command(words))


def program(folder: Path, version: str, devices: str, name: str = "qemu-system-x86_64") -> str:
    path = folder / name
    path.write_text(
        f"#!/bin/sh\ncase \"$*\" in --version) echo '{version}' ;; '-device help') echo '{devices}' ;; esac\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("version", "devices", "reason"),
    [
        ("QEMU emulator version 7.2.1", 'name "vfio-user-pci"', "is QEMU 7.2.1"),
        ("QEMU emulator version 10.0.9", 'name "vfio-user-pci"', "is QEMU 10.0.9"),
        ("QEMU emulator version 11.0.0", 'name "vfio-pci"', "was built without vfio-user-pci"),
        ("GNU bash, version 15.2.1", "", "does not say which version of QEMU it is"),
    ],
)
def test_a_qemu_that_will_not_do_is_refused(tmp_path: Path, version: str, devices: str, reason: str) -> None:
    with pytest.raises(LaunchError, match=f"{reason}.*give a QEMU 10.1 or later with vfio-user-pci"):
        check_words(program(tmp_path, version, devices))


def test_a_program_with_the_client_will_do_whatever_its_name_is(tmp_path: Path) -> None:
    check_words(program(tmp_path, "QEMU emulator version 10.1.0", 'name "vfio-user-pci"', "my-wrapper"))


def test_a_qemu_for_another_architecture_is_refused_before_its_machine_is() -> None:
    other = parse_command(["/usr/bin/qemu-system-aarch64", "-M", "virt"])
    with pytest.raises(LaunchError, match=r"^qemu-system-aarch64: .* give qemu-system-x86_64"):
        check_command(other, root_ports=False)


def test_a_program_that_is_not_there_is_refused() -> None:
    with pytest.raises(LaunchError, match="no such program; install QEMU"):
        check_words("/no/such/qemu-system-x86_64")


@pytest.mark.parametrize("words", ["{qemu}", "-c 0 {qemu} -m 256"])
def test_what_qemu_is_to_run_under_goes_in_front_of_vgpud(tmp_path: Path, words: str) -> None:
    wrapper = program(tmp_path, "taskset from util-linux version 2.41", "", "taskset")
    qemu = program(tmp_path, "QEMU emulator version 11.0.0", 'name "vfio-user-pci"')
    with pytest.raises(LaunchError, match=r"in front of vgpud: taskset \.\.\. vgpud run -- qemu"):
        check_words(wrapper, *words.format(qemu=qemu).split())

"""Guest memory becomes shared, however it was spelled. tests/guest/test_run.py asks a real QEMU."""

import json
import shlex
from pathlib import Path

import pytest

from server.launch.errors import LaunchError
from server.launch.qemu_options import parse_command
from server.launch.shared_memory import with_shared_memory

SIZE = 128 << 20
ADDED = (
    "-object memory-backend-memfd,id=vgpud-memory,size={size},share=on -machine memory-backend=vgpud-memory"
)


def shared(text: str) -> str:
    return shlex.join(with_shared_memory(parse_command(["qemu", *shlex.split(text)])).words[1:])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", SIZE),
        ("-M q35", SIZE),
        ("-m 2G", 2 << 30),
        ("--m 2048 -machine q35 -nographic disk.img", 2 << 30),
        ("-m size=2G,slots=2,maxmem=8G -M q35", 2 << 30),
        ("-m slots=2,maxmem=8G", SIZE),
        ("-mem-prealloc -m 1G", 1 << 30),
        ("-numa node,mem=64 -numa node,mem=64", SIZE),
        ("-numa node -m 1G", 1 << 30),
        ("-append memory-backend=m -kernel k", SIZE),
    ],
)
def test_memory_that_nobody_described_is_a_shared_memfd(text: str, size: int) -> None:
    assert shared(text) == f"{text} {ADDED.format(size=size)}".strip()


@pytest.mark.parametrize(
    "machine", ["-machine q35,memory-backend=m", "-M memory-backend=m", "-numa node,memdev=m"]
)
@pytest.mark.parametrize(
    ("backend", "becomes"),
    [
        ("memory-backend-ram,id=m,size=1G", "memory-backend-memfd,id=m,size=1G,share=on"),
        ("memory-backend-ram,id=m,share=off", "memory-backend-memfd,id=m,share=on"),
        ("memory-backend-ram,share=on,id=m", "memory-backend-memfd,share=on,id=m"),
        ("id=m,qom-type=memory-backend-ram", "id=m,qom-type=memory-backend-memfd,share=on"),
        ("memory-backend-ram,id=m,policy=bind,host-nodes=0", None),
        ("memory-backend-memfd,id=m,size=1G", "memory-backend-memfd,id=m,size=1G"),
        ("memory-backend-memfd,id=m,share=off,hugetlb=on", "memory-backend-memfd,id=m,share=on,hugetlb=on"),
        ("memory-backend-file,id=m,mem-path=/a,,b,share=yes", "memory-backend-file,id=m,mem-path=/a,,b,share=yes"),
        ("memory-backend-file,id=m,mem-path=/dev/shm", "memory-backend-file,id=m,mem-path=/dev/shm,share=on"),
        ("memory-backend-file,id=m,mem-path=/dev/shm,share=off", "memory-backend-file,id=m,mem-path=/dev/shm,share=on"),
        ("memory-backend-shm,id=m,size=1G", "memory-backend-shm,id=m,size=1G"),
    ],
)  # fmt: skip
def test_a_backend_becomes_shared_and_stays_the_only_one(
    machine: str, backend: str, becomes: str | None
) -> None:
    becomes = becomes or backend.replace("-ram", "-memfd") + ",share=on"
    assert shared(f"-m 1G {machine} -object {backend}") == f"-m 1G {machine} -object {becomes}"
    assert shared(f"--object {backend} {machine}") == f"--object {becomes} {machine}"


def test_a_backend_in_json_becomes_shared_and_keeps_its_other_settings() -> None:
    backend = {"qom-type": "memory-backend-ram", "id": "m", "size": SIZE, "prealloc": True, "host-nodes": [0]}
    words = with_shared_memory(
        parse_command(["qemu", "-object", json.dumps(backend), "-M", "memory-backend=m"])
    ).words
    assert words[3:] == ["-M", "memory-backend=m"]
    assert json.loads(words[2]) == {**backend, "qom-type": "memory-backend-memfd", "share": True}


def test_a_private_memfd_in_json_becomes_shared() -> None:
    backend = {"qom-type": "memory-backend-memfd", "id": "m", "size": SIZE, "share": False}
    words = with_shared_memory(parse_command(["qemu", "-object", json.dumps(backend)])).words
    assert json.loads(words[2]) == {**backend, "share": True}


def test_every_node_of_a_numa_machine_becomes_shared() -> None:
    nodes = "-numa node,memdev=a,cpus=0 -numa node,cpus=1,memdev=b,nodeid=1 -numa dist,src=0,dst=1,val=20"
    text = "-m 1G -object memory-backend-ram,id=a,size=512M -object memory-backend-memfd,share=off,id=b,size=512M"
    assert shared(f"{text} {nodes}") == (
        "-m 1G -object memory-backend-memfd,id=a,size=512M,share=on "
        f"-object memory-backend-memfd,share=on,id=b,size=512M {nodes}"
    )


def test_memory_that_is_plugged_becomes_shared_too() -> None:
    text = "-m 1G,slots=1,maxmem=4G -object memory-backend-ram,id=d,size=1G -device pc-dimm,memdev=d"
    assert shared(text) == (
        "-m 1G,slots=1,maxmem=4G -object memory-backend-memfd,id=d,size=1G,share=on -device pc-dimm,memdev=d "
        + ADDED.format(size=1 << 30)
    )


@pytest.mark.parametrize(
    "use",
    ["-M memory-backend=m", "-numa node,memdev=m", "-device pc-dimm,memdev=m",
     "-device nvdimm,memdev=m", "-device virtio-pmem-pci,memdev=m", "-device cxl-type3,volatile-memdev=m",
     "-device cxl-type3,persistent-memdev=m", """-device '{"driver": "virtio-mem-pci", "memdev": "m"}'"""],
)  # fmt: skip
@pytest.mark.parametrize("share", ["", ",share=off", ",share=no"])
def test_a_file_that_the_guest_does_not_write_to_is_for_the_user_to_share(
    tmp_path: Path, use: str, share: str
) -> None:
    file = tmp_path / "memory"
    with pytest.raises(LaunchError, match=f"id=m: add share=on: .* goes to {file}"):
        shared(f"-object memory-backend-file,id=m,mem-path={file},size=1G{share} {use}")


def test_a_file_that_is_no_memory_of_the_guest_stays_as_it_is() -> None:
    text = "-object memory-backend-file,id=n,mem-path=/disk,share=off,size=1G -device cxl-type3,lsa=n"
    assert shared(text) == f"{text} {ADDED.format(size=SIZE)}"


def test_the_folder_of_mem_path_becomes_that_of_a_shared_backend() -> None:
    assert shared("-mem-path /dev/shm -m 1G -mem-prealloc") == (
        "-m 1G -mem-prealloc -object "
        f"memory-backend-file,mem-path=/dev/shm,id=vgpud-memory,size={1 << 30},share=on "
        "-machine memory-backend=vgpud-memory"
    )


def test_mem_path_does_not_name_a_file() -> None:
    with pytest.raises(
        LaunchError, match="give in its place -object memory-backend-file,id=mem,size=1073741824"
    ):
        shared("-mem-path /no/such/file -m 1G")


def test_mem_path_does_not_name_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("server.launch.shared_memory.file_system_in_memory", lambda _: False)
    with pytest.raises(LaunchError, match="for example /dev/shm, or leave -mem-path out"):
        shared(f"-mem-path {tmp_path}")


def test_the_added_backend_has_an_id_of_its_own() -> None:
    assert "id=vgpud-memory-1,size" in shared("-object rng-random,id=vgpud-memory,filename=/dev/urandom")

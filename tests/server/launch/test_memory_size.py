"""How much memory a machine gets. What is expected is what QEMU 11.1's query-memdev and -m said."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.launch.errors import LaunchError
from server.launch.memory_size import GRANULE, memory_size, parse_size
from server.launch.qemu_options import parse_command

MIB = 1 << 20


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("", 128 * MIB),
        ("-m 2048", 2048 * MIB),
        ("-m 2G", 2048 * MIB),
        ("-m 2g", 2048 * MIB),
        ("-m 1.5G", 1536 * MIB),
        ("-m 2.5", 5 * MIB // 2),
        ("-m size=64M", 64 * MIB),
        ("-m 256,slots=2,maxmem=1G", 256 * MIB),
        ("-m slots=3,maxmem=1G", 128 * MIB),
        ("-m 64 -m size=96", 96 * MIB),
        ("-m 64 -m slots=1,maxmem=1G", 64 * MIB),
        ("-m 1000000k", 1024000000),
        ("-m 1000001b", 1007616),
        ("-m 0", 128 * MIB),
        ("-M q35,memory.size=256M", 256 * MIB),
        ("-M q35,memory.size=256", 8192),
        ("-M q35,memory.size=0x10000000", 256 * MIB),
        ("-m 64 -M q35,memory.size=256M", 64 * MIB),
        ("-m 0 -M q35,memory.size=256M", 256 * MIB),
    ],
)
def test_the_size_is_the_one_that_qemu_takes(options: str, size: int) -> None:
    assert memory_size(parse_command(["qemu", *options.split()])) == size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("-m much", "-m: 'much'"),
        ("-m 0x80", "-m: '0x80'"),
        ("-m 1e9", "-m: '1e9'"),
        ("-m 1e3M", "-m: '1e3M'"),
        ("-m -5", "-m: '-5'"),
        ("-m \u00b2", "-m: '\u00b2'"),
        ("-M memory.size=2X", "-machine memory.size: '2X'"),
    ],
)
def test_what_is_no_size_is_refused_in_the_words_of_the_user(options: str, words: str) -> None:
    with pytest.raises(LaunchError, match=f"^{words} is no size; write for example 2G$"):
        memory_size(parse_command(["qemu", *options.split()]))


@given(st.integers(0, 1 << 30), st.sampled_from("BKMG"))
def test_a_suffix_is_a_power_of_1024(number: int, suffix: str) -> None:
    assert parse_size(f"{number}{suffix}") == number * 1024 ** "BKMG".index(suffix)
    assert parse_size(f"{number}{suffix.lower()}") == parse_size(f"{number}{suffix}")


@given(st.decimals(0, 4096, places=3))
def test_a_fraction_is_rounded_to_bytes(number: object) -> None:
    assert abs(parse_size(f"{number}M") - Fraction(str(number)) * MIB) <= Fraction(1, 2)


@given(st.integers(1, 1 << 40))
def test_the_size_is_rounded_up_as_the_machine_does_it(size: int) -> None:
    rounded = memory_size(parse_command(["qemu", "-m", f"{size}B"]))
    assert rounded % GRANULE == 0
    assert 0 <= rounded - size < GRANULE

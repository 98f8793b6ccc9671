"""QEMU's command line, option by option."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.launch.errors import LaunchError
from server.launch.qemu_options import FLAGS, Option, parse_command

FLAG_WORDS = st.sampled_from([dashes + name for name in sorted(FLAGS) for dashes in ("-", "--")])
VALUED = st.tuples(st.sampled_from(["-m", "--append", "-device", "-new-in-qemu-12"]), st.text())
IMAGES = st.text().filter(lambda text: not text.startswith("-"))
WORDS = st.lists(st.one_of(FLAG_WORDS.map(lambda word: (word,)), VALUED, IMAGES.map(lambda word: (word,))))


def options(*words: str) -> tuple[Option, ...]:
    return parse_command(["qemu", *words]).options


def test_an_option_takes_the_next_word_even_if_that_looks_like_an_option() -> None:
    assert options("-append", "-m 5", "-nographic", "--m", "-M") == (
        Option("-append", "-m 5"),
        Option("-nographic"),
        Option("--m", "-M"),
    )


def test_one_dash_and_two_name_the_same_option() -> None:
    command = parse_command(["qemu", "-m", "1G", "--m", "slots=2"])
    assert command.values("m") == ["1G", "slots=2"]
    assert not command.has("-m")


def test_a_word_without_a_dash_is_a_disk_image() -> None:
    assert options("disk.img", "-snapshot", "m") == (
        Option("", "disk.img"),
        Option("-snapshot"),
        Option("", "m"),
    )


@given(WORDS)
def test_every_command_line_is_written_as_it_was_read(groups: list[tuple[str, ...]]) -> None:
    words = ["qemu", *(word for group in groups for word in group)]
    command = parse_command(words)
    assert command.words == words
    assert [option.words for option in command.options] == groups


def test_an_option_that_is_given_several_times_is_one() -> None:
    command = parse_command(["qemu", "-M", "pc,usb=on", "-machine", "type=q35", "--M", "memory-backend=m"])
    merged = command.merged("machine", "M", implied="type")
    assert merged == {"type": "q35", "usb": "on", "memory-backend": "m"}


def test_an_identifier_that_is_taken_gets_a_number() -> None:
    taken = ["-object", "rng-random,id=a", "-device", '{"driver": "edu", "id": "a-1"}']
    command = parse_command(["qemu", *taken])
    assert command.unused_identifier("a") == "a-2"
    assert command.unused_identifier("b") == "b"


def test_the_last_option_may_not_lack_its_value() -> None:
    with pytest.raises(LaunchError, match="-m: QEMU wants a value"):
        options("-nographic", "-m")


@pytest.mark.parametrize("word", ["--dry-run", "--gpu", "--metrics"])
def test_an_option_of_vgpud_behind_qemus_program_is_told_where_to_go(word: str) -> None:
    with pytest.raises(LaunchError, match=f"{word} is for vgpud: write it in front of QEMU's command"):
        options("-m", "256", word)


def test_a_value_behind_an_equals_sign_is_told_where_to_go() -> None:
    with pytest.raises(LaunchError, match="-m=128: QEMU has no such option; write -m 128"):
        options("-m=128", "-M", "q35")


def test_a_value_may_look_like_an_option_of_vgpud() -> None:
    assert options("-append", "--gpu") == (Option("-append", "--gpu"),)


@pytest.mark.parametrize("words", [[], ["-m", "2G"]])
def test_a_command_begins_with_its_program(words: list[str]) -> None:
    with pytest.raises(LaunchError, match="vgpud run -- qemu-system-x86_64"):
        parse_command(words)


def test_json_that_cannot_be_read_is_shown_with_its_option() -> None:
    command = parse_command(["qemu", "-device", "{driver: 'edu'}"])
    with pytest.raises(LaunchError, match=r"-device .*need quotes"):
        command.identifiers()

"""A QEMU command line as a list of options, read as QEMU reads it.

An option begins with one dash or two, and takes the next word as its value unless it is one of :data:`FLAGS`. A word
that begins with no dash is a disk image. Source: QEMU's ``qemu-options.hx`` and the first loop of ``system/vl.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from server.launch.errors import LaunchError
from server.launch.settings import Settings, parse_settings

FLAGS = frozenset(
    {
        "S", "daemonize", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "jitdump", "mem-prealloc",
        "no-fd-bootchk", "no-reboot", "no-shutdown", "no-user-config", "nodefaults", "nographic", "old-param",
        "only-migratable", "perfmap", "preconfig", "s", "semihosting", "snapshot", "usb", "version", "win2k-hack",
        "xen-attach", "xen-domid-restrict",
    }
)  # fmt: skip
"""The options of QEMU 10.1 to 11.1 that take no value."""

OURS = frozenset({"--control", "--dry-run", "--gpu", "--log", "--metrics", "--root-port", "--transport"})
"""The options of ``vgpud run`` whose names no option of QEMU has."""

MACHINE = ("machine", "M")
"""The two spellings of the option that chooses the machine."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option as it was spelled, ``--m`` for example, and its value; a disk image has no spelling."""

    spelling: str
    value: str | None = None

    @property
    def name(self) -> str:
        """The option without its dashes, "" for a disk image."""
        return self.spelling.removeprefix("-").removeprefix("-")

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command line that it came from."""
        return tuple(word for word in (self.spelling or None, self.value) if word is not None)

    def settings(self, implied: str) -> Settings:
        """The value, taken apart; ``implied`` is the key of a first value that has none. Raises LaunchError."""
        try:
            return parse_settings(self.value or "", implied)
        except ValueError as error:
            raise LaunchError(f"{' '.join(self.words)}: {error}") from error


@dataclass(frozen=True, slots=True)
class QemuCommand:
    """A program and its options; nothing of it can be changed, and what changes it returns another."""

    program: str
    options: tuple[Option, ...]

    @property
    def words(self) -> list[str]:
        """The command as :func:`parse_command` takes it."""
        return [self.program, *(word for option in self.options for word in option.words)]

    def has(self, name: str) -> bool:
        """Whether the option is there."""
        return any(option.name == name for option in self.options)

    def values(self, *names: str) -> list[str]:
        """The values of the options that have one of these names, in order."""
        return [option.value for option in self.options if option.name in names and option.value is not None]

    def settings(self, *names: str, implied: str) -> Iterator[Settings]:
        """The same, taken apart as :meth:`Option.settings` does it."""
        return (option.settings(implied) for option in self.options if option.name in names)

    def merged(self, *names: str, implied: str) -> dict[str, object]:
        """What an option says that may be given several times and is one all the same: the last value of each key."""
        return {
            key: value
            for settings in self.settings(*names, implied=implied)
            for key, value in settings.items()
        }

    def identifiers(self) -> set[str]:
        """The ids of all objects and devices that the command line makes."""
        made = (*self.settings("object", implied="qom-type"), *self.settings("device", implied="driver"))
        return {str(settings.get("id")) for settings in made}

    def unused_identifier(self, wanted: str) -> str:
        """``wanted``, or it with a number where the command line has that."""
        taken = self.identifiers()
        candidates = (wanted if not number else f"{wanted}-{number}" for number in range(len(taken) + 1))
        return next(candidate for candidate in candidates if candidate not in taken)

    def adding(self, *options: tuple[str, str]) -> QemuCommand:
        """The command with these options, each a spelling and a value, behind the others."""
        return replace(self, options=(*self.options, *(Option(*option) for option in options)))

    def without(self, name: str) -> QemuCommand:
        """The command without all options of this name."""
        return replace(self, options=tuple(option for option in self.options if option.name != name))


def machine_type(command: QemuCommand) -> str:
    """The machine that is chosen: of PCs, QEMU takes pc where nobody chooses."""
    return str(command.merged(*MACHINE, implied="type").get("type", "pc"))


def parse_command(words: Sequence[str]) -> QemuCommand:
    """Read a command line that begins with the program. Raises LaunchError where it is none."""
    if not words:
        raise LaunchError("which QEMU? write: vgpud run -- qemu-system-x86_64 ...")
    program, *rest = words
    if program.startswith("-"):
        raise LaunchError(
            f"{program}: the command begins with the program: vgpud run -- qemu-system-x86_64 ..."
        )
    return QemuCommand(program, tuple(_options(iter(rest))))


def _check_spelling(word: str) -> None:
    """Raise LaunchError for what looks like an option, and is none of QEMU's."""
    if word in OURS:
        raise LaunchError(f"{word} is for vgpud: write it in front of QEMU's command")
    spelling, equals, value = word.partition("=")
    if equals:
        raise LaunchError(f"{word}: QEMU has no such option; write {spelling} {value}")


def _options(words: Iterator[str]) -> Iterable[Option]:
    for word in words:
        option = Option(word)
        if word.startswith("-"):
            _check_spelling(word)
        if not word.startswith("-"):
            yield Option("", word)
        elif option.name in FLAGS:
            yield option
        else:
            value = next(words, None)
            if value is None:
                raise LaunchError(f"{word}: QEMU wants a value behind it")
            yield Option(word, value)

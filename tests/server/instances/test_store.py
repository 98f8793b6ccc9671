"""The folder of definitions, against a dictionary, and against what may be in such a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.instances.definition import Definition, encode
from server.instances.errors import InstanceError
from server.instances.store import Store
from server.instances.types import TYPES
from tests.server.instances.command import ONE, THREE, TWO
from tests.server.instances.definitions import definitions

NAMES = st.sampled_from([ONE, TWO, THREE])
DEFINITION = Definition(ONE, TYPES[0])


class StoreAgainstDictionary(RuleBasedStateMachine):
    """The dictionary has None for a file that is damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "instances.d")
        self.model: dict[UUID, Definition | None] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(uuid=NAMES, drawn=definitions())
    def add(self, uuid: UUID, drawn: Definition) -> None:
        definition = Definition(uuid, drawn.type, drawn.auto, drawn.attrs, drawn.transport)
        if uuid in self.model:
            with pytest.raises(InstanceError, match="is defined already; undefine it first"):
                self.store.add(definition)
        else:
            self.store.add(definition)
            self.model[uuid] = definition

    @rule(uuid=NAMES)
    def remove(self, uuid: UUID) -> None:
        if uuid in self.model:
            self.store.remove(uuid)
            del self.model[uuid]
        else:
            with pytest.raises(InstanceError, match="is not defined; 'vgpud list --defined' lists what is"):
                self.store.remove(uuid)

    @rule(uuid=NAMES, cut=st.integers(0, 10))
    def damage(self, uuid: UUID, cut: int) -> None:
        if self.model.get(uuid) is not None:
            path = self.store.path(uuid)
            path.write_bytes(path.read_bytes()[:cut])
            self.model[uuid] = None

    @rule(uuid=NAMES)
    def crash_while_writing(self, uuid: UUID) -> None:
        if self.store.folder.is_dir():
            (self.store.folder / f".{uuid}.json.0123456789abcdef").write_bytes(b'{"mdev')

    @rule(uuid=NAMES)
    def read(self, uuid: UUID) -> None:
        expected = self.model.get(uuid)
        if expected is not None:
            assert self.store.read(uuid) == expected
        else:
            with pytest.raises(
                InstanceError, match="correct the file" if uuid in self.model else "not defined"
            ):
                self.store.read(uuid)

    @invariant()
    def lists_what_is_there(self) -> None:
        assert self.store.uuids() == sorted(self.model)
        assert self.store.strangers() == []


TestStoreAgainstDictionary = StoreAgainstDictionary.TestCase
TestStoreAgainstDictionary.settings = settings(
    max_examples=30, stateful_step_count=20
)  # each step waits for the disk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add(DEFINITION)
    return store


def complaint(store: Store) -> str:
    with pytest.raises(InstanceError) as raised:
        store.read(ONE)
    text = str(raised.value)
    assert text.startswith(f"{store.path(ONE)}: ")
    assert "\n" not in text
    return text


def test_a_definition_can_be_read_by_the_user_of_its_server(store: Store) -> None:
    path = store.path(TWO)
    previous = os.umask(0o077)
    try:
        store.add(Definition(TWO, TYPES[0]))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_nothing_but_definitions_is_left_in_the_folder(store: Store) -> None:
    with pytest.raises(InstanceError):
        store.add(DEFINITION)
    assert [path.name for path in store.folder.iterdir()] == [f"{ONE}.json"]


def test_a_definition_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store = Store(tmp_path)
    with pytest.raises(InstanceError, match=f"{ONE}.json: No space left on device"):
        store.add(DEFINITION)
    assert list(tmp_path.iterdir()) == []


def test_a_definition_that_others_may_write_is_not_trusted(store: Store) -> None:
    store.path(ONE).chmod(0o664)
    assert "others than its owner may write it (chmod go-w)" in complaint(store)


def test_a_definition_of_another_user_is_not_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, another = os.geteuid(), os.geteuid() + 1
    os.chown(store.path(ONE), owner or 1, -1)  # only root has to give it away to have it be another's
    monkeypatch.setattr(os, "geteuid", lambda: another + 1)
    assert f"belongs to user {owner or 1}" in complaint(store)


def test_a_pipe_is_no_definition_and_nobody_waits_for_it(store: Store) -> None:
    store.path(ONE).unlink()
    os.mkfifo(store.path(ONE))
    assert "not a file" in complaint(store)


def test_a_folder_is_no_definition(store: Store) -> None:
    store.path(ONE).unlink()
    store.path(ONE).mkdir()
    assert "a folder, which defines nothing; remove it" in complaint(store)
    with pytest.raises(InstanceError, match="a folder, which defines nothing; remove it"):
        store.remove(ONE)
    assert store.path(ONE).is_dir()


def test_a_file_without_end_is_not_read_to_its_end(store: Store) -> None:
    with store.path(ONE).open("ab") as file:
        file.truncate(1 << 40)
    assert "longer than 65536 bytes" in complaint(store)


def test_a_link_to_a_definition_is_as_good(store: Store, tmp_path: Path) -> None:
    kept = tmp_path / "kept-elsewhere"
    kept.write_bytes(encode(DEFINITION))
    kept.chmod(0o444)
    store.path(ONE).unlink()
    store.path(ONE).symlink_to(kept)
    assert store.read(ONE) == DEFINITION


def test_names_that_are_no_uuid_define_nothing(store: Store) -> None:
    upper = store.folder / f"{TWO}.json".upper().replace("JSON", "json")
    upper = upper.with_name(upper.name.replace("4", "A"))
    names = [upper, store.folder / "notes.json", store.folder / f"{ONE}0.json"]
    for path in names:
        path.touch()
    (store.folder / "README").touch()
    assert store.uuids() == [ONE]
    assert store.strangers() == sorted(names)


def test_a_folder_that_is_missing_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "no" / "such")
    assert store.uuids() == []
    assert store.strangers() == []


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    with pytest.raises(InstanceError, match="file: Not a directory"):
        store.uuids()
    with pytest.raises(InstanceError, match="file: cannot be made"):
        store.add(DEFINITION)

"""What instances are doing, seen without waking or waiting for anybody."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock

from server.instances.pid_file import held
from server.instances.places import Places
from server.instances.state import ANSWER_SECONDS, InstanceStatus, State, look, look_at, started
from tests.server.instances.command import ONE, THREE, TWO, held_by_another, listening


def test_an_instance_of_which_there_is_nothing_is_stopped(places: Places) -> None:
    assert look_at(places, ONE) == InstanceStatus(ONE, State.STOPPED, attached=False)
    assert started(places) == []


def test_a_socket_that_systemd_holds_is_waiting_and_is_not_woken(places: Places) -> None:
    with listening(places.socket(ONE)) as listener:
        assert look_at(places, ONE) == InstanceStatus(ONE, State.WAITING, attached=False)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_stale_socket_is_not_waiting(places: Places) -> None:
    with listening(places.socket(ONE)):
        places.socket(ONE).rename(places.runtime / "kept")
    (places.runtime / "kept").rename(places.socket(ONE))
    assert places.socket(ONE).is_socket()
    assert look_at(places, ONE).state is State.STOPPED
    assert started(places) == [ONE]


def test_a_control_socket_that_nobody_has_is_that_of_a_server_that_failed(places: Places) -> None:
    with listening(places.control(ONE)):
        assert look_at(places, ONE) == InstanceStatus(ONE, State.FAILED, attached=False)
        with listening(places.socket(ONE)):
            assert look_at(places, ONE).state is State.WAITING
    assert look_at(places, ONE).state is State.STOPPED


async def test_servers_that_do_not_answer_are_asked_together_and_not_for_long(
    places: Places, autojump_clock: MockClock
) -> None:
    uuids = [ONE, TWO, THREE]
    with (
        held_by_another(places.pid_file(ONE)) as first,
        held_by_another(places.pid_file(TWO)) as second,
        listening(places.control(ONE)),
        listening(places.control(TWO)),
    ):
        before = trio.current_time()
        looks = await look(places, uuids)
        assert trio.current_time() - before == pytest.approx(ANSWER_SECONDS)
    assert looks == [
        InstanceStatus(ONE, State.SILENT, first),
        InstanceStatus(TWO, State.SILENT, second),
        InstanceStatus(THREE, State.STOPPED, attached=False),
    ]


async def test_a_server_whose_queue_is_full_is_silent(places: Places, autojump_clock: MockClock) -> None:
    with held_by_another(places.pid_file(ONE)) as pid, listening(places.control(ONE), backlog=0):
        async with await trio.open_unix_socket(str(places.control(ONE))):
            (seen,) = await look(places, [ONE])
    assert seen == InstanceStatus(ONE, State.SILENT, pid)


def test_a_server_without_a_control_socket_is_silent(places: Places) -> None:
    with held_by_another(places.pid_file(ONE)) as pid:
        assert look_at(places, ONE) == InstanceStatus(ONE, State.SILENT, pid)


async def test_a_server_that_answers_nonsense_is_silent(places: Places) -> None:
    with held_by_another(places.pid_file(ONE)) as pid, listening(places.control(ONE)) as listener:
        looks: list[InstanceStatus] = []

        async def ask() -> None:
            looks.extend(await look(places, [ONE]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            accepting = trio.socket.from_stdlib_socket(listener)
            accepted, _ = await accepting.accept()
            with accepted:
                await accepted.send(b'{"ok": true, "status": []}\n')
                await trio.lowlevel.wait_readable(accepted)
    assert looks == [InstanceStatus(ONE, State.SILENT, pid)]


def test_an_instance_that_cannot_be_looked_at_is_hidden(places: Places) -> None:
    places.folder(ONE).mkdir(parents=True)
    places.pid_file(ONE).symlink_to(places.folder(ONE))
    assert look_at(places, ONE) == InstanceStatus(ONE, State.HIDDEN)


def test_a_connection_that_outlives_its_listener_is_not_waiting(places: Places) -> None:
    """The kernel lists the accepted end under the listener's path."""
    with listening(places.socket(ONE)) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(places.socket(ONE)))
        accepted, _ = listener.accept()
        listener.close()
        with accepted:
            assert look_at(places, ONE).state is State.STOPPED


def test_what_is_left_of_instances_is_found_by_name(places: Places) -> None:
    places.folder(TWO).mkdir(parents=True)
    for name in (f"{ONE}.sock", f"{TWO}.sock", "notes", "x.sock", f"{THREE}.sock.old"):
        (places.runtime / name).touch()
    with held(places.pid_file(TWO)):
        pass
    assert started(places) == [ONE, TWO]

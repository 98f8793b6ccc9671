"""What users type: definitions, mistakes, and lists, without any server."""

from __future__ import annotations

import json
import re
from uuid import UUID

import pytest

from server.cli import build_parser, main
from server.instances.manager import MANAGERS
from server.instances.places import Places
from server.instances.types import TYPES
from server.transport_names import CHOICES
from tests.server.instances.command import ONE, THREE, TWO, Vgpud, held_by_another, listening

TYPE = ["--type", "vgpud-virtio-2"]


def test_a_uuid_is_made_up_where_none_is_given(vgpud: Vgpud) -> None:
    first, second = vgpud.well("define", *TYPE), vgpud.well("define", *TYPE)
    assert {UUID(first.strip()), UUID(second.strip())} == {
        UUID(uuid) for uuid in vgpud.instances("--defined")
    }
    assert first != second


def test_what_is_defined_is_stored_as_mdevctl_would(vgpud: Vgpud) -> None:
    assert vgpud.well("define", "--uuid", str(ONE).upper(), *TYPE, "--auto") == f"{ONE}\n"
    stored = json.loads(vgpud.places.definition(ONE).read_text())
    assert stored == {"mdev_type": "vgpud-virtio-2", "start": "auto", "attrs": [], "transport": "auto"}


def test_options_of_the_device_are_attributes(vgpud: Vgpud) -> None:
    vgpud.well(
        "define", "--uuid", str(ONE), *TYPE, "--device", "virtio-gpu,width=800", "--transport", "native"
    )
    stored = json.loads(vgpud.places.definition(ONE).read_text())
    assert (stored["attrs"], stored["transport"]) == ([{"width": "800"}], "native")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["define", "--type", "x"], "there is no type 'x'; choose of vgpud-virtio-1,"),
        (["define", *TYPE, "--uuid", "../x"], "'../x' is no UUID; write it as"),
        (["define", *TYPE, "--device", "edu"], "write --device virtio-gpu,OPTION=VALUE"),
        (["define", *TYPE, "--device", "virtio-gpu,colour=red"], "it has: scanouts,"),
        (["define", *TYPE, "--device", "virtio-gpu,width=1"], "choose 64 to 16384 pixels"),
        (["define", *TYPE, "--manager", "systemd"], "leave out --config-dir and --runtime-dir"),
        (["start", "x"], "'x' is no UUID"),
        (["start", str(ONE)], f"{ONE} is not defined; 'vgpud list --defined' lists what is"),
        (["stop", str(ONE)], f"{ONE} is not running"),
        (["stop", str(ONE), "--force"], f"{ONE} is not running"),
        (["undefine", str(ONE)], f"{ONE} is not defined"),
        (["undefine", "x"], "'x' is no UUID"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix_and_changes_nothing(
    vgpud: Vgpud, arguments: list[str], says: str
) -> None:
    assert says in vgpud.refusal(*arguments)
    assert vgpud.instances("--defined") == vgpud.instances() == {}


def test_an_instance_is_defined_once(vgpud: Vgpud) -> None:
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    assert "is defined already; undefine it first" in vgpud.refusal(
        "define", "--uuid", str(ONE), "--type", TYPES[0].name
    )
    assert vgpud.instances("--defined")[str(ONE)]["definition"]["mdev_type"] == "vgpud-virtio-2"


def test_an_instance_that_is_undefined_is_forgotten(vgpud: Vgpud) -> None:
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    assert vgpud.well("undefine", str(ONE)) == ""
    assert vgpud.instances("--defined") == {}
    vgpud.well("define", "--uuid", str(ONE), *TYPE)


def test_a_damaged_definition_can_be_undefined(vgpud: Vgpud) -> None:
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    vgpud.places.definition(ONE).write_text("{")
    vgpud.well("undefine", str(ONE))
    assert vgpud.instances("--defined") == {}


def test_an_instance_that_systemd_listens_for_is_not_undefined(vgpud: Vgpud) -> None:
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    with listening(vgpud.places.socket(ONE)):
        assert f"{ONE} is waiting; 'vgpud stop {ONE}' first" in vgpud.refusal("undefine", str(ONE))


@pytest.mark.parametrize("command", ["undefine", "start", "stop"])
def test_an_instance_of_another_user_is_left_alone(vgpud: Vgpud, command: str) -> None:
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    vgpud.places.folder(ONE).mkdir(parents=True)
    vgpud.places.pid_file(ONE).symlink_to(vgpud.places.definition(ONE))
    assert f"{ONE} is another user's; do this as that user" in vgpud.refusal(command, str(ONE))
    assert vgpud.instances()[str(ONE)]["state"] == "hidden"


def test_a_list_for_people_has_a_line_for_each_instance(vgpud: Vgpud) -> None:
    assert vgpud.well("list") == ""
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    with listening(vgpud.places.socket(TWO)):
        header, line = vgpud.well("list", "--defined").splitlines()
        assert header.split() == ["UUID", "TYPE", "START", "STATE", "PID", "CLIENT", "SOCKET"]
        assert line.split() == [
            str(ONE),
            "vgpud-virtio-2",
            "manual",
            "stopped",
            "-",
            "-",
            str(vgpud.places.socket(ONE)),
        ]
        header, line = vgpud.well("list").splitlines()
        assert header.split() == ["UUID", "TYPE", "STATE", "PID", "CLIENT", "SOCKET"]
        assert line.split() == [str(TWO), "?", "waiting", "-", "-", str(vgpud.places.socket(TWO))]


def test_a_list_of_definitions_says_which_start_by_themselves(vgpud: Vgpud) -> None:
    """As mdevctl(8) list --defined does, in its words."""
    vgpud.well("define", "--uuid", str(ONE), *TYPE, "--auto")
    vgpud.well("define", "--uuid", str(TWO), *TYPE)
    vgpud.places.definition(THREE).write_text("{")
    listed = vgpud("list", "--defined").out.splitlines()
    assert [line.split()[2] for line in listed] == ["START", "auto", "manual", "?"]


def test_the_list_of_a_silent_server_says_that_nobody_knows(vgpud: Vgpud) -> None:
    with held_by_another(vgpud.places.pid_file(ONE)) as pid:
        _, line = vgpud.well("list").splitlines()
    assert re.split(r" {2,}", line)[1:5] == ["?", "silent", str(pid), "client unknown"]


def test_a_list_goes_on_behind_what_is_damaged_and_says_so(vgpud: Vgpud) -> None:
    for uuid in (ONE, TWO):
        vgpud.well("define", "--uuid", str(uuid), *TYPE)
    vgpud.places.definition(ONE).write_text("{")
    (vgpud.places.definitions / "x.json").touch()
    for command in (["list", "--defined"], ["types"]):
        result = vgpud(*command)
        assert result.status == 1
        first, second = result.err.splitlines()
        assert first.startswith(f"vgpud: {vgpud.places.definition(ONE)}: not JSON")
        assert first.endswith(f"; correct the file, or 'vgpud undefine {ONE}'")
        assert second.endswith(
            "x.json: defines nothing; rename it to a UUID in lower case, .json, or remove it"
        )
    listed = json.loads(vgpud("list", "--defined", "--json").out)
    assert [(entry["uuid"], entry["definition"] is None) for entry in listed] == [
        (str(ONE), True),
        (str(TWO), False),
    ]


def test_the_json_of_an_instance_has_what_programs_need(vgpud: Vgpud) -> None:
    vgpud.well("define", "--uuid", str(ONE), *TYPE)
    assert vgpud.instances("--defined")[str(ONE)] == {
        "uuid": str(ONE),
        "definition": {"mdev_type": "vgpud-virtio-2", "start": "manual", "attrs": [], "transport": "auto"},
        "device": "virtio-gpu,scanouts=1,width=1920,height=1080,max_hostmem=128M",
        "state": "stopped",
        "pid": None,
        "client_attached": False,
        "socket": str(vgpud.places.socket(ONE)),
        "control": str(vgpud.places.control(ONE)),
        "metrics": None,
    }
    vgpud.well("define", "--uuid", str(TWO), *TYPE, "--metrics")
    with_metrics = vgpud.instances("--defined")[str(TWO)]
    assert with_metrics["metrics"] == str(vgpud.places.metrics(TWO))
    assert with_metrics["definition"]["metrics"] == "on"


def test_metrics_without_what_speaks_http_are_refused(vgpud: Vgpud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.metrics.serving.find_spec", lambda _: None)
    assert "pip install h11" in vgpud.refusal("define", *TYPE, "--metrics")
    assert vgpud.instances("--defined") == {}


@pytest.mark.parametrize("command", [["status"], ["display"], ["screenshot", "x.png"]])
def test_an_instance_that_does_not_run_cannot_be_asked(
    places: Places, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    name, *rest = command
    for uuid, says in ((str(ONE), f"{ONE} is not running; 'vgpud start {ONE}'"), ("x", "'x' is no UUID")):
        status = main([name, "--uuid", uuid, "--runtime-dir", str(places.runtime), *rest])
        assert (status, capsys.readouterr().err.startswith(f"vgpud: {says}")) == (1, True)


def test_the_command_line_offers_what_there_is() -> None:
    parse = build_parser().parse_args
    for name in CHOICES:
        assert parse(["define", *TYPE, "--transport", name]).transport == name
    for name in MANAGERS:
        assert parse(["start", str(ONE), "--manager", name]).manager == name


@pytest.mark.parametrize("words", [["start"], ["start", str(ONE), "--auto"], ["define"], ["stop"]])
def test_a_command_that_is_not_complete_is_not_taken(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(words)


def test_the_internal_command_is_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    offered = capsys.readouterr().out
    assert "serve-instance" not in offered
    assert all(
        f"\n    {name} " in offered for name in ("types", "define", "undefine", "start", "stop", "list")
    )

from __future__ import annotations

import pytest

from server.guest.errors import GuestError
from server.guest.mirror import choose_mirror


def uris(*releases: str) -> str:
    return "".join(f"'{release}/InRelease' some_file_name 0 \n" for release in releases)


def test_the_archive_is_told_from_security_updates_and_other_repositories() -> None:
    listing = uris(
        "https://other.example/apt/dists/nodistro",
        "http://mirror.example/debian-security/dists/bookworm-security",
        "http://mirror.example/debian/dists/bookworm-updates",
        "http://mirror.example/debian/dists/bookworm",
    )
    listing += "'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' lists 0 \n"
    assert choose_mirror(listing, "", "bookworm") == "http://mirror.example/debian"


def test_the_archive_of_the_machines_own_release_comes_first() -> None:
    listing = uris("http://old.example/debian/dists/trixie", "http://own.example/debian/dists/bookworm")
    assert choose_mirror(listing, "", "bookworm") == "http://own.example/debian"
    assert choose_mirror(listing, "", "forky") == "http://old.example/debian"


def test_other_projects_use_the_names_of_debians_releases() -> None:
    project, debian = "https://other.example/linux/debian", "http://mirror.example/debian"
    listing = uris(f"{project}/dists/trixie", f"{debian}/dists/trixie")
    updates = uris(f"{debian}/dists/trixie-updates")
    assert choose_mirror(listing + updates, "", "trixie") == debian
    assert choose_mirror(listing, f"Other {project}/\nDebian {debian}/\n", "trixie") == debian


def test_a_list_of_mirrors_is_taken_as_it_is() -> None:
    listing = uris("mirror+file:/etc/apt/mirrors/debian.list/dists/trixie")
    assert choose_mirror(listing, "", "trixie") == "mirror+file:/etc/apt/mirrors/debian.list"


@pytest.mark.parametrize("listing", ["", uris("http://archive.example/ubuntu/dists/noble")])
def test_a_machine_without_debians_archive_is_told_what_to_do(listing: str) -> None:
    with pytest.raises(GuestError, match="VGPUD_MIRROR"):
        choose_mirror(listing, "", "noble")

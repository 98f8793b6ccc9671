from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile, BackingFiles
from server.dma.domains.lingering import FileView, LingeringPages
from tests.server.dma.support import memfd


@pytest.fixture
def backing() -> Iterator[BackingFile]:
    files = BackingFiles(lambda _: None)
    one = files.acquire(memfd(1), 0, PAGE_SIZE, writable=True)
    yield one
    files.release(one)


@pytest.fixture
def view(backing: BackingFile) -> FileView:
    return FileView(backing, writable=True)


def test_pages_that_linger_are_taken_once(view: FileView) -> None:
    lingering = LingeringPages()
    lingering.add(view, 10, 20, 110)
    assert lingering.take(view, 15, 30) == [(15, 20, 115)]
    assert lingering.take(view, 5, 16) == [(10, 15, 110)]
    assert lingering.take(view, 0, 100) == []
    assert not lingering


def test_a_file_with_other_permissions_is_another(view: FileView) -> None:
    lingering = LingeringPages()
    lingering.add(view, 10, 20, 110)
    assert lingering.take(view._replace(writable=False), 10, 20) == []
    assert lingering.take(view, 10, 20) == [(10, 20, 110)]


def test_a_page_that_lingers_twice_is_known_where_it_was_first(view: FileView) -> None:
    lingering = LingeringPages()
    lingering.add(view, 12, 14, 512)
    lingering.add(view, 10, 16, 110)
    assert lingering.take(view, 10, 16) == [(10, 12, 110), (12, 14, 512), (14, 16, 114)]


def test_what_is_forgotten_in_one_place_may_still_linger_in_another(view: FileView) -> None:
    lingering = LingeringPages()
    lingering.add(view, 12, 14, 512)
    lingering.add(view, 10, 16, 110)
    lingering.forget(view, 11, 16, 111)
    assert lingering.take(view, 0, 100) == [(10, 11, 110), (12, 14, 512)]
    lingering.forget(view, 0, 100, 100)
    assert not lingering

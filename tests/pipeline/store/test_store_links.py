"""Links in a store: refused on the way to whatever is written or removed; the store may be one."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faults import KEY, commit, contents, files_of, leave_unnamed, leftovers

from d2nas.errors import D2NasError, DamagedArtifactError
from pipeline.store import Store, layout

FOLDERS = ("versions", "runs", "names", "staging", "locks", "cache", "runs/toy", "runs/toy/search")
MINE = ".tmp-mine"
"""By its name a half-written file, which gc removes from the store."""


@pytest.fixture
def store(quick_path: Path) -> Store:
    """A store with something in each of its folders, and something for gc to remove."""
    store = Store(quick_path / "store")
    commit(store, contents(1), run="toy")
    commit(store, contents(2), run="toy", stage="search-state")
    store.store_cache("sizes", 1, [2])
    leave_unnamed(store.root, 3)
    (store.root / "staging" / "dead").mkdir()
    (store.root / "staging" / "dead" / "weights.bin").touch()
    return store


def works(store: Store) -> dict[str, Callable[[], object]]:
    """Everything that changes a store."""

    def locked() -> None:
        with store.lock_run("toy"):
            pass

    return {
        "commit": lambda: commit(store, contents(4), run="toy"),
        "gc": lambda: store.collect_garbage(everything_unnamed=True),
        "drop": lambda: store.drop_states("toy", "search-state"),
        "retain": lambda: store.retain_states("toy", "search-state", 1),
        "cache": lambda: store.store_cache("sizes", 3, [4]),
        "lock": locked,
    }


def moved_out(store: Store, folder: str) -> Path:
    """Put a link in the place of a folder, and return where the folder is now."""
    outside = store.root.parent / "outside"
    (store.root / folder).rename(outside)
    (store.root / folder).symlink_to(outside)
    (outside / MINE).write_text("mine")
    return outside


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def unguarded(root: Path, *parts: str) -> Path:
    """What takes the place of the check in controls."""
    return root.joinpath(*parts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_written_or_removed_through_a_link(
    folder: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = moved_out(store, folder)
    before = listing(outside)
    refused = []
    for work in works(store).values():
        try:
            work()
        except DamagedArtifactError as error:
            refused.append(error)
    assert refused
    for error in refused:
        assert f"{store.root / folder}: is a symbolic link" in str(error)
        assert error.hint
    assert listing(outside) == before
    # Control: without the check it is written and removed there.
    monkeypatch.setattr(layout, "inside", unguarded)
    for work in works(store).values():
        with suppress(D2NasError, OSError):
            work()
    assert listing(outside) != before


@pytest.mark.parametrize("place", ["versions/dead", "staging/dead", "versions/unnamed"])
def test_gc_removes_a_link_and_not_what_it_leads_to(place: str, store: Store) -> None:
    outside = store.root.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    if place == "versions/unnamed":
        path = leave_unnamed(store.root, 5)
        shutil.rmtree(path)
    else:
        path = store.root / place
        shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(outside)
    store.collect_garbage(everything_unnamed=True)
    assert listing(outside) == {"precious": b"mine"}
    assert os.path.lexists(path) == (place == "versions/dead")  # no version's name: it stays
    if place == "versions/dead":
        assert [str(item.path) for item in store.verify().damaged] == [str(path)]


def test_a_commit_puts_its_version_in_the_place_of_a_link(store: Store) -> None:
    version = store.open("toy/search")
    outside = store.root.parent / "outside"
    version.path.rename(outside)
    version.path.symlink_to(outside)
    before = listing(outside)
    with pytest.raises(DamagedArtifactError, match="is a symbolic link"):
        store.open("toy/search")
    assert files_of(commit(store, contents(1), run="toy")) == contents(1)
    assert not version.path.is_symlink()
    assert listing(outside) == before


def test_the_store_itself_may_be_a_link(store: Store) -> None:
    elsewhere = store.root.parent / "elsewhere"
    store.root.rename(elsewhere)
    store.root.symlink_to(elsewhere)
    for work in works(store).values():
        work()
    assert leftovers(store) == []
    assert store.verify().damaged == []
    assert store.find("toy", "search", KEY) is not None
    assert store.cached("sizes", 3) == [4]

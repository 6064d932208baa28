"""What is not seen is not taken for gone: cleaning while a part of the store is out of sight.

The protection is also taken away, to see the tests notice.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import (
    FaultyFileSystem,
    Vanishing,
    commit,
    contents,
    leave_unnamed,
    lineage_in,
    named_ids,
)
from store_bugs import BUGS

from d2nas.errors import D2NasError, StorageError
from pipeline.cli import run
from pipeline.store import Store, garbage

AWAY = ("runs", "runs/quickstart", "runs/quickstart/derive", "runs/quickstart/derive/v1.json")
RECORDS = ("names", "names/*")
CALLS = ("listdir", "scandir", "lstat", "stat", "open")
"""Of ``os``, by which everything in a store is looked at."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two searches and a derive, another run with the same search, and what a dead writer left."""
    store = lineage_in(tmp_path / "store")
    commit(store, contents(5), run="other")
    leave_unnamed(store.root, 8)
    return store


def listed(store: Store) -> set[str]:
    return {path.name for path in store.root.glob("versions/*")}


@pytest.mark.parametrize("what", AWAY)
def test_versions_whose_names_are_out_of_sight_stay(
    what: str, store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, named = listed(store), named_ids(store.root)
    (store.root / what).rename(tmp_path / "away")
    for words in ([], ["--dry-run"]):
        assert run(["gc", "--store", str(store.root), *words]) == 7
        error, hint = capfd.readouterr().err.splitlines()[-2:]
        assert "no name that is seen, so nothing was removed" in error
        assert "d2nas gc --everything-unnamed" in hint
        assert listed(store) == before
    (tmp_path / "away").rename(store.root / what)
    assert run(["gc", "--store", str(store.root)]) == 0  # what the dead writer left, and no more
    assert listed(store) == named
    assert store.verify().damaged == []
    # Who means it says so.
    shutil.rmtree(store.root / "runs/quickstart")
    assert run(["gc", "--store", str(store.root), "--everything-unnamed"]) == 0
    assert listed(store) == named_ids(store.root)
    assert len(listed(store)) == 1
    assert run(["gc", "--store", str(store.root)]) == 0


@pytest.mark.parametrize("what", AWAY)
def test_control_absence_taken_for_proof_loses_versions(
    what: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken back afterwards.
    monkeypatch.setattr(garbage, "_unnamed_versions", garbage._unnamed_versions)
    BUGS["absence"]()
    named = named_ids(store.root)
    (store.root / what).rename(store.root.parent / "away")
    store.collect_garbage()
    assert named - listed(store)


@pytest.mark.parametrize("what", RECORDS)
def test_without_a_record_nothing_counts_as_unnamed(what: str, store: Store) -> None:
    """As in a store that an older d2nas wrote, or that was copied half."""
    for path in store.root.glob(what):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = listed(store)
    with pytest.raises(StorageError, match="nothing on record says"):
        store.collect_garbage()
    assert listed(store) == before
    store.collect_garbage(everything_unnamed=True)
    assert listed(store) == named_ids(store.root)
    # What is committed from now on is on record; the others still are not.
    commit(store, contents(9))
    (store.root / "runs/quickstart/derive/v1.json").unlink()
    with pytest.raises(StorageError, match="nothing on record says"):
        store.collect_garbage()


def test_a_dropped_checkpoint_stays_while_another_name_of_it_is_out_of_sight(
    store: Store, tmp_path: Path
) -> None:
    states = [commit(store, contents(number), stage="search-state") for number in range(3)]
    for number in range(3):
        commit(store, contents(number), stage="search-state", run="other")
    (store.root / "runs/other").rename(tmp_path / "away")
    assert len(store.retain_states("quickstart", "search-state", keep=1)) == 2
    assert len(store.drop_states("quickstart", "search-state")) == 1
    assert all(version.path.is_dir() for version in states)
    (tmp_path / "away").rename(store.root / "runs/other")
    store.collect_garbage()
    assert all(version.path.is_dir() for version in states)
    store.drop_states("other", "search-state")  # control: with the last name they go
    assert not any(version.path.exists() for version in states)


@contextmanager
def vanishing(root: Path, fail_at: int) -> Iterator[Vanishing]:
    one = Vanishing(root, fail_at)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, one.watched(getattr(os, name)))
        yield one


def lost_by_cleaning(prepared: Path, folder: Path) -> list[str]:
    """Let each call of a cleaning find nothing, in turn; return what was lost, by call."""
    problems, number = [], 0
    while True:
        number += 1
        root = folder / "store"
        shutil.copytree(prepared, root)
        store = Store(root, FaultyFileSystem())
        with store.stage() as live:
            live.write("weights.bin", b"unfinished")
            with vanishing(root, number) as one:
                try:
                    store.collect_garbage()
                except D2NasError as error:
                    if error.exit_code not in (4, 7):
                        problems.append(f"{number}: exit code {error.exit_code}")
            if not (live.folder / "weights.bin").is_file():
                problems.append(f"{number}: live work")
        problems += [f"{number}: {item}" for item in named_ids(prepared) - listed(store)]
        problems += [f"{number}: {item.problem}" for item in store.verify().damaged]
        shutil.rmtree(root)
        if one.count < number:
            assert number > 60
            return problems


def test_no_call_that_finds_nothing_costs_anything(store: Store, quick_path: Path) -> None:
    assert lost_by_cleaning(store.root, quick_path) == []


def test_control_what_is_lost_is_seen(
    store: Store, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken back afterwards.
    monkeypatch.setattr(garbage, "_unnamed_versions", garbage._unnamed_versions)
    BUGS["absence"]()
    monkeypatch.setattr("pipeline.store.references.names_in", careless_names_in)
    assert lost_by_cleaning(store.root, quick_path)


def careless_names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("words", [[], ["--dry-run"]], ids=str)
def test_in_a_folder_that_is_no_store_nothing_is_made(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "picture.png").touch()
    assert run(["gc", "--store", str(tmp_path), *words]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]

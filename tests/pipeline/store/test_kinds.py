"""Kinds of version: a store knows those that it is given, and lists them in their order."""

from pathlib import Path

import pytest
from faults import commit, contents

from d2nas.errors import ConfigError, DamagedArtifactError, StorageError
from pipeline.store import Kind, Store

KINDS = (
    Kind(name="train", checkpoints=True),
    Kind(name="export"),
    Kind(name="compare", rebuild="{stage} of {run} is made by hand"),
)
NAMES = ["train-state", "train", "export", "compare"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", kinds=KINDS)


@pytest.fixture
def filled(store: Store) -> Store:
    for seed, stage in enumerate(reversed(NAMES)):
        commit(store, contents(seed), stage=stage)
    return store


def test_versions_are_listed_in_the_order_of_the_kinds(filled: Store) -> None:
    assert [reference.stage for reference in filled.references()] == NAMES
    # Control: a store that is given no kinds sorts them by name.
    assert [reference.stage for reference in Store(filled.root).references()] == sorted(NAMES)


@pytest.mark.parametrize("stage", ["search", "export-state", "state"])
def test_a_kind_that_was_not_given_is_not_committed(store: Store, stage: str) -> None:
    with pytest.raises(ValueError, match="cannot be the stage"):
        commit(store, contents(1), stage=stage)
    assert commit(Store(store.root), contents(1), stage=stage).stage == stage  # control


def test_a_version_of_a_kind_that_was_not_given_is_damage(store: Store) -> None:
    foreign = commit(Store(store.root), contents(1), stage="search")
    with pytest.raises(DamagedArtifactError, match="kind: search is not supported"):
        store.open_id(foreign.id)
    with pytest.raises(ConfigError, match="no version"):
        store.open("quickstart/search")
    problems = [damage.problem for damage in store.verify().damaged]
    assert [problem.rpartition(": ")[2] for problem in problems] == [
        "search is not supported",
        "is not a stage",
    ]
    with pytest.raises(StorageError, match="nothing was removed"):
        store.collect_garbage()
    assert Store(store.root).verify().damaged == []  # control


@pytest.mark.parametrize(
    ("stage", "hint"),
    [
        ("train", "rebuild it with: d2nas train quickstart --fresh"),
        ("train-state", "rebuild it with: d2nas train quickstart --fresh"),
        ("compare", "compare of quickstart is made by hand"),
    ],
)
def test_the_hint_at_a_damaged_version_is_its_kinds(filled: Store, stage: str, hint: str) -> None:
    version = filled.open(f"quickstart/{stage}")
    name = next(iter(version.manifest.files))
    (version.path / name).write_bytes(b"")
    with pytest.raises(DamagedArtifactError) as refused:
        filled.open(f"quickstart/{stage}")
    assert refused.value.hint == hint

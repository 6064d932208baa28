"""The store against a model of it: any sequence of work, crashes, damage and cleaning."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
from faults import (
    FAULTS,
    Crash,
    FaultyFileSystem,
    commit,
    contents,
    files_of,
    leftovers,
)

from d2nas.errors import DamagedArtifactError, StorageError
from pipeline.store import Reference, Store, garbage

RUNS = ("one", "two")
STAGES = ("search-state", "search-state", "search", "derive")
STEPS = ("commit", "commit", "commit", "crash", "damage", "retain", "collect")


class Model:
    """What the store should hold: the content behind each name, and which ids are damaged."""

    def __init__(self, root: Path, seed: int) -> None:
        self.store = Store(root, FaultyFileSystem())
        self.draw = random.Random(seed)
        self.names: dict[str, tuple[str, int]] = {}
        self.damaged: set[str] = set()

    def commit(self, store: Store) -> None:
        run, stage, seed = self.draw.choice(RUNS), self.draw.choice(STAGES), self.draw.randrange(6)
        states = self.store.references(run, "search-state") if stage == "derive" else []
        parents = {"state": states[-1].id} if states else {}
        facts = {"seed": seed}
        version = commit(store, contents(seed), run=run, stage=stage, parents=parents, facts=facts)
        assert version.reference is not None
        assert self.names.setdefault(version.reference, (version.id, seed)) == (version.id, seed)
        self.damaged.discard(version.id)

    def crash(self) -> None:
        faulty = FaultyFileSystem(self.draw.randrange(1, 36), self.draw.choice(FAULTS))
        with suppress(Crash, StorageError):
            self.commit(Store(self.store.root, faulty))
        for reference in self.store.references():
            if reference.name not in self.names:  # done, though nobody was told
                seed = self.store.open(reference.name).manifest.facts["seed"]
                self.names[reference.name] = (reference.id, seed)
            if reference.id in self.damaged and self.opens(reference):
                self.damaged.discard(reference.id)

    def opens(self, reference: Reference) -> bool:
        with suppress(DamagedArtifactError):
            return bool(self.store.open(reference.name))
        return False

    def damage(self) -> None:
        if self.names:
            version_id, _ = self.names[self.draw.choice(sorted(self.names))]
            path = self.store.root / "versions" / version_id / "weights.bin"
            if path.is_file():
                path.write_bytes(self.draw.randbytes(10))
            self.damaged.add(version_id)

    def retain(self) -> None:
        run, keep = self.draw.choice(RUNS), self.draw.randrange(1, 3)
        states = self.store.references(run, "search-state")
        good = [state.name for state in states if state.id not in self.damaged]
        dropped = self.store.retain_states(run, "search-state", keep)
        assert not set(dropped) & set(good[-keep:])
        assert set(good[:-keep]) <= set(dropped)
        for name in dropped:
            del self.names[name]

    def collect(self) -> None:
        with suppress(DamagedArtifactError):  # a name's version may be missing by now
            self.store.collect_garbage()
            assert leftovers(self.store) == []

    def step(self) -> None:
        kind = self.draw.choice(STEPS)
        if kind == "commit":
            self.commit(self.store)
        else:
            getattr(self, kind)()
        self.check()

    def check(self) -> None:
        assert {item.name for item in self.store.references()} == set(self.names)
        children = set()
        for name, (version_id, seed) in self.names.items():
            if version_id in self.damaged:
                with pytest.raises(DamagedArtifactError):
                    self.store.open(name)
            else:
                version = self.store.open(name)
                assert files_of(version) == contents(seed)
                if self.damaged & set(version.manifest.parents.values()):
                    children.add(version_id)
        found = {item.path.name for item in self.store.verify().damaged}
        named = {version_id for version_id, _ in self.names.values()}
        # A repair that crashed may have taken the damaged one away, and its children miss it.
        assert found & named <= self.damaged | children


def play(root: Path, num_sequences: int, num_steps: int) -> None:
    for seed in range(num_sequences):
        model = Model(root / str(seed), seed)
        for number in range(num_steps):
            try:
                model.step()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, step {number}: {error}") from error
        for version_id in {version_id for version_id, _ in model.names.values()}:
            assert version_id in model.damaged or model.store.open_id(version_id)


def test_any_sequence_keeps_the_promises(quick_path: Path) -> None:
    play(quick_path, 12, 25)


def test_control_a_bug_in_reachability_is_found(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        garbage, "reachable", lambda _, references: {reference.id for reference in references}
    )
    with pytest.raises(AssertionError):
        play(quick_path, 20, 25)

"""Sequences of what happens to a store, against a model of it; a process of its own.

Imports neither torch nor pytest, because it forks children that are killed, which must be cheap:
``python tests/store_machine.py BUG FOLDER FIRST SEQUENCES STEPS``.

A sequence is drawn evenly, by its number, and one that fails is shortened to the steps that matter.
Hypothesis was tried in this place and drew unevenly: in 50 sequences one kind of step could take
600 of 1,500, and the seeded bug of reachability was found from two seeds of five.
"""

import inspect
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from faults import (
    FAULTS,
    Crash,
    FaultyFileSystem,
    KillingFileSystem,
    MeetingFileSystem,
    commit,
    contents,
    files_of,
)
from raw_store import RawStore
from store_bugs import BUGS

from d2nas.errors import BusyError, ConfigError, D2NasError, DamagedArtifactError, StorageError
from d2nas.files.verified_folder import MANIFEST_NAME
from pipeline.store import Staging, Store, Version, locks

RUNS = ("one", "two")
STAGES = ("search-state", "search-state", "search", "derive")
HARMS = ("content", "missing file", "extra file", "manifest")
UNREADABLE = {"manifest", "missing"}
"""With one of these nothing can be told about parents."""

WEIGHTS = {
    "commit": 4, "stage": 1, "crash": 2, "crash_of_gc": 1, "kill": 1, "meet": 2, "open": 2,
    "corrupt": 2, "gc": 2, "lock": 1, "retain": 2, "hide": 2,
}  # fmt: skip
"""How often each kind of step is drawn."""


class Step(NamedTuple):
    """One thing that happens; ``draws`` holds all that may decide how, needed or not."""

    kind: str
    draws: dict[str, Any]


def sequence(number: int, num_steps: int) -> list[Step]:
    """Return the steps of one sequence; none depends on another, so that any can be left out."""
    draw = random.Random(number)
    steps = []
    for _ in range(num_steps):
        (kind,) = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        draws = {
            "run": draw.choice(RUNS),
            "stage": draw.choice(STAGES),
            "number": draw.randrange(5),
            "at": draw.randrange(1, 36),
            "fault": draw.choice(FAULTS),
            "other": draw.choice(("gc", "run")),
            "harm": draw.choice(HARMS),
            "pick": draw.randrange(1000),
            "keep": draw.randrange(1, 3),
        }
        needed = inspect.signature(getattr(StoreMachine, kind)).parameters
        steps.append(Step(kind, {name: draws[name] for name in needed if name in draws}))
    return steps


class StoreMachine:
    """A store, and what it should hold: the id behind each name, and which of them are damaged."""

    counted: ClassVar[Counter[str]] = Counter()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store, self.raw = Store(self.root, FaultyFileSystem()), RawStore(self.root)
        self.names: dict[str, str] = {}
        self.made: dict[str, tuple[int, dict[str, str]]] = {}  # id: seed and parents
        self.harmed: dict[str, str] = {}
        self.staged: dict[str, tuple[Staging, int]] = {}
        self.locked: dict[str, AbstractContextManager[None]] = {}

    # What happens

    def stage(self, number: int) -> None:
        """Begin a version and leave it open, as a stage does that works for hours."""
        if len(self.staged) < 2:
            staging = self.store.stage().__enter__()
            staging.write("weights.bin", contents(number)["weights.bin"])
            self.staged[staging.folder.name] = (staging, number)

    def commit(self, run: str, stage: str, number: int) -> None:
        """Commit what has been open longest, or something new."""
        if self.staged:
            name, (staging, number) = next(iter(self.staged.items()))
            del self.staged[name]
            self._acknowledge(self._commit(self.store, run, stage, number, staging))
        else:
            self._acknowledge(self._commit(self.store, run, stage, number))

    def crash(self, run: str, stage: str, number: int, at: int, fault: str) -> None:
        """A commit that fails at some operation."""
        with suppress(Crash, StorageError):
            self._commit(Store(self.root, FaultyFileSystem(at, fault)), run, stage, number)
        self._look_what_was_done(run, stage, number)

    def crash_of_gc(self, at: int, fault: str) -> None:
        """A cleaning that fails at some operation."""
        with suppress(Crash, StorageError, DamagedArtifactError):
            Store(self.root, FaultyFileSystem(at, fault)).collect_garbage()

    def kill(self, run: str, stage: str, number: int, at: int, fault: str) -> None:
        """A process of its own that commits, holding its run's lock, and is killed meanwhile."""
        child = os.fork()
        if child == 0:
            try:
                store = Store(self.root, KillingFileSystem(at, torn="torn" in fault))
                with suppress(BusyError), store.lock_run(run):
                    self._commit(store, run, stage, number)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        self.counted["killed"] += os.WIFSIGNALED(status)
        self._look_what_was_done(run, stage, number)
        if run not in self.locked:
            with self.store.lock_run(run):  # free at once
                pass

    def meet(self, run: str, stage: str, number: int, at: int, other: str) -> None:
        """A commit during which another process cleans, or commits; locks may keep it out."""

        def come_by() -> None:
            with suppress(BusyError, DamagedArtifactError):
                store = Store(self.root, FaultyFileSystem())
                if other == "gc":
                    store.collect_garbage()
                else:
                    self._acknowledge(self._commit(store, run, stage, number + 1))

        meeting = Store(self.root, MeetingFileSystem(at, come_by))
        self._acknowledge(self._commit(meeting, run, stage, number))

    def open(self, pick: int) -> None:
        """Open any version: by its name, and by its id."""
        assert {item.name: item.id for item in self.store.references()} == self.names
        if self.names:
            self._open(sorted(self.names)[pick % len(self.names)])

    def corrupt(self, pick: int, harm: str) -> None:
        """Damage a version, named or not."""
        known = sorted(self._reachable())
        version_id = known[pick % len(known)] if known else ""
        folder = self.root / "versions" / version_id
        if not known or self.harmed.get(version_id) in UNREADABLE:
            return
        if harm == "content":
            (folder / "metrics.jsonl").write_bytes(b"other")
        elif harm == "missing file":
            (folder / "other.bin").unlink(missing_ok=True)
        elif harm == "extra file":
            (folder / "extra.bin").write_bytes(b"extra")
        else:
            (folder / MANIFEST_NAME).write_bytes(b"{}")
        self.harmed[version_id] = harm

    def gc(self) -> None:
        """Clean: exactly what is reached or alive stays, or nothing is touched."""
        reached, before = self._reachable(), self.raw.listed("versions")
        try:
            self.store.collect_garbage()
        except DamagedArtifactError:
            self._must(
                any(self.harmed.get(version_id) in UNREADABLE for version_id in reached),
                "gc refused without a reason",
            )
            self._must(self.raw.listed("versions") == before, "gc removed what it cannot tell")
            return
        self._must(self.raw.listed("versions") == reached, "gc left or took a version")
        self._must(self.raw.listed("staging") == set(self.staged), "gc left or took staging")
        held = {f"staging-{name}.lock" for name in self.staged}
        found = {name for name in self.raw.listed("locks") if name.startswith("staging-")}
        self._must(found == held, "gc left or took a staging folder's lock")
        self._must(not list(self.root.rglob(".tmp-*")), "gc left half of a file")

    def hide(self, run: str, pick: int, keep: int, other: str) -> None:
        """Clean, or drop old checkpoints, while a part of the names or of the records is away."""
        candidates = [self.root / "runs", *sorted(self.root.glob("runs/**/*"))]
        if other == "gc":
            candidates += [self.root / "names", *sorted(self.root.glob("names/*"))]
        else:  # what is dropped is seen, and so are the records
            own = self.root / "runs" / run
            candidates = [
                p for p in candidates if own not in (p, *p.parents) and p not in own.parents
            ]
        candidates = [path for path in candidates if path.exists()]
        if not candidates or not self.names.keys() <= self.raw.recorded():
            return  # a name whose writer died before it was on record is nobody's loss
        away, hidden = self.root / "away", candidates[pick % len(candidates)]
        hidden.rename(away)
        before = self.raw.listed("versions") | self.raw.listed("staging")
        try:
            if other == "run":
                self.retain(run, keep)
            else:
                self.store.collect_garbage()
                seen = self._reachable(set(self.raw.names()))
                self._must(seen == self._reachable(), "gc did not miss what is out of sight")
        except (StorageError, DamagedArtifactError):
            after = self.raw.listed("versions") | self.raw.listed("staging")
            self._must(other == "run" or before == after, "gc removed what is out of sight")
        away.rename(hidden)

    def lock(self, run: str) -> None:
        """Take a run's lock and keep it; or find it kept, and give it back."""
        if run in self.locked:
            with suppress(BusyError):
                with Store(self.root).lock_run(run):
                    pass
                raise AssertionError("two hold a run")
            self.locked.pop(run).__exit__(None, None, None)
        else:
            self.locked[run] = self.store.lock_run(run)
            self.locked[run].__enter__()

    def retain(self, run: str, keep: int) -> None:
        """Drop old checkpoints: never the newest that are whole."""
        states = self.store.references(run, "search-state")
        good = [state.name for state in states if state.id not in self.harmed]
        dropped = self.store.retain_states(run, "search-state", keep)
        self._must(not set(dropped) & set(good[-keep:]), "a checkpoint that must stay is gone")
        self._must(set(good[:-keep]) <= set(dropped), "a checkpoint that must go is there")
        for name in dropped:
            del self.names[name]

    # What must always be true

    def what_was_acknowledged_is_there(self) -> None:
        """Every name, and all that it reaches, as it was written, unless we damaged it."""
        self._must(self.raw.names() == self.names, "the names differ")
        for version_id in self._reachable() - self.harmed.keys():
            files = dict(self.raw.version(version_id))
            self._must(files.pop(MANIFEST_NAME, None) is not None, "a version is not there")
            self._must(files == contents(self.made[version_id][0]), "a version is not whole")

    def live_work_is_there(self) -> None:
        """What is being written is not touched."""
        for name, (_, number) in self.staged.items():
            path = self.root / "staging" / name / "weights.bin"
            self._must(path.is_file(), "live work is gone")
            self._must(path.read_bytes() == contents(number)["weights.bin"], "live work differs")

    def finish(self) -> None:
        """Look at everything once more, through the store."""
        self.end()
        for name in self.names:
            self._open(name)
        missing = {item for item, harm in self.harmed.items() if harm == "missing"}
        wrong = {
            version_id
            for version_id in self._reachable()
            if version_id in self.harmed or missing & set(self.made[version_id][1].values())
        }
        wrong -= missing - set(self.names.values())  # of these, only the children are told
        found = {item.path.name for item in self.store.verify().damaged} & self._reachable()
        self._must(found == wrong, "verify does not find what is damaged")
        self.gc()

    def end(self) -> None:
        """Let go of everything."""
        for held in self.locked.values():
            held.__exit__(None, None, None)
        for staging, _ in self.staged.values():
            staging.__exit__(None, None, None)
        self.locked.clear()
        self.staged.clear()

    # How it is done

    @staticmethod
    def _must(condition: bool, problem: str) -> None:
        assert condition, problem

    def _parents(self, stage: str, run: str) -> dict[str, str]:
        states = [name for name in self.names if name.startswith(f"{run}/search-state@v")]
        newest = max(states, key=lambda name: int(name.rpartition("v")[2]), default=None)
        return {"state": self.names[newest]} if stage == "derive" and newest else {}

    def _commit(
        self, store: Store, run: str, stage: str, number: int, staging: Staging | None = None
    ) -> tuple[Version, int, dict[str, str]]:
        parents = self._parents(stage, run)
        changes = {"parents": parents, "facts": {"seed": number}}
        files = contents(number)
        version = commit(store, files, run=run, stage=stage, staging=staging, **changes)
        return version, number, parents

    def _acknowledge(self, done: tuple[Version, int, dict[str, str]]) -> None:
        version, number, parents = done
        assert version.reference is not None
        self._must(
            self.names.setdefault(version.reference, version.id) == version.id, "a name given twice"
        )
        self.made[version.id] = (number, parents)
        self.harmed.pop(version.id, None)

    def _look_what_was_done(self, run: str, stage: str, number: int) -> None:
        """After a crash: the commit may be done though nobody was told, or a repair half done."""
        parents = self._parents(stage, run)
        for name, version_id in self.raw.names().items():
            if name not in self.names:
                self._must(name.startswith(f"{run}/{stage}@v"), "a name of something else")
                self.names[name], self.made[version_id] = version_id, (number, parents)
        for version_id in list(self.harmed):
            files = dict(self.raw.version(version_id))
            manifest = files.pop(MANIFEST_NAME, b"{}")
            if not (self.root / "versions" / version_id).is_dir():
                self.harmed[version_id] = "missing"
            elif manifest != b"{}" and files == contents(self.made[version_id][0]):
                del self.harmed[version_id]

    def _reachable(self, names: set[str] | None = None) -> set[str]:
        reached: set[str] = set()
        waiting = [item for name, item in self.names.items() if names is None or name in names]
        while waiting:
            version_id = waiting.pop()
            if version_id not in reached:
                reached.add(version_id)
                waiting += self.made[version_id][1].values()
        return reached

    def _open(self, name: str) -> None:
        for target in (name, self.names[name]):
            try:
                version = self.store.open(target)
            except DamagedArtifactError as error:
                self._must(self.names[name] in self.harmed, f"refused: {error}")
            except ConfigError as error:
                self._must(self.harmed.get(self.names[name]) == "missing", f"not found: {error}")
            else:
                self._must(self.names[name] not in self.harmed, "a damaged version was opened")
                wanted = contents(self.made[version.id][0])
                self._must(files_of(version) == wanted, "opened something else")


def problem_of(base: Path, steps: list[Step]) -> str:
    """Play a sequence; return what went wrong, and in which step, or nothing."""
    root = Path(tempfile.mkdtemp(dir=base))
    machine = StoreMachine(root)
    number = 0
    try:
        for step in steps:
            number += 1
            getattr(machine, step.kind)(**step.draws)
            StoreMachine.counted[step.kind] += 1
            machine.what_was_acknowledged_is_there()
            machine.live_work_is_there()
        machine.finish()
    except (AssertionError, D2NasError) as error:
        return f"{error} (step {number})"
    finally:
        machine.end()
        shutil.rmtree(root)
    return ""


def shortened(base: Path, steps: list[Step]) -> list[Step]:
    """Leave out the steps without which the sequence fails as well."""
    for index in reversed(range(len(steps))):
        fewer = steps[:index] + steps[index + 1 :]
        if problem_of(base, fewer):
            steps = fewer
    return steps


def play(base: Path, first: int, num_sequences: int, num_steps: int) -> str:
    """Play sequences until one fails; return what went wrong and the steps that lead to it."""
    for number in range(first, first + num_sequences):
        steps = sequence(number, num_steps)
        if problem_of(base, steps):
            steps = shortened(base, steps)
            said = [f"{step.kind} {step.draws}" for step in steps]
            return "\n".join([f"sequence {number}: {problem_of(base, steps)}", *said])
        StoreMachine.counted["sequences"] += 1
    return ""


if __name__ == "__main__":
    bug, folder, *numbers = sys.argv[1:]
    locks.STORE_LOCK_SECONDS = 0.0  # who is kept out leaves at once: there is one thread
    BUGS[bug]()
    problem = play(Path(folder), *map(int, numbers))
    sys.stdout.write(f"{json.dumps(StoreMachine.counted)}\n{problem}\n")

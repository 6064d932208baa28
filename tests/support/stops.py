"""Trainings that are stopped by a signal, beside undisturbed ones."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from faults import leftovers, memory_folder
from tiny import LOOPS, STEPS, TinyPlace, Trace, traced

from d2nas.data.batches import Batches
from d2nas.train.retrain import Retraining
from d2nas.train.search import Search
from pipeline.running import runner
from pipeline.running.runner import Runner
from pipeline.stages import open_store
from pipeline.store import Store


@dataclass
class Sender:
    """Sends this process one signal, at a point that is told by where and in which step."""

    where: str
    step: int
    number: int
    sent: int = 0
    current: int = 0

    def reached(self, where: str, step: int | None = None) -> None:
        self.current = self.current if step is None else step
        if not self.sent and (where, self.current) == (self.where, self.step):
            self.sent += 1
            os.kill(os.getpid(), self.number)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look out for the point from now on."""
        self.before(monkeypatch, Runner, "_read_data", "while the images are read")
        for owner in (Search, Retraining):
            self.before(monkeypatch, owner, "take_step", "at the step", lambda _, step: step)
            self.before(monkeypatch, owner, "describe_epoch", "in the evaluation of the epoch")
        self.before(monkeypatch, Batches, "batch", "in the middle of the step")
        self.before(monkeypatch, runner._StageHooks, "checkpoint", "right before the checkpoint")
        self.before(monkeypatch, runner, "write_state", "in the middle of the checkpoint")
        self.before(monkeypatch, Store, "retain_states", "right after the checkpoint")

    def before(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        where: str,
        step: Callable[..., int | None] = lambda *_: None,
    ) -> None:
        """Look out for the calls of one function."""
        real = getattr(owner, name)

        def noticed(*arguments: Any, **options: Any) -> Any:
            self.reached(where, step(*arguments))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, noticed)


@cache
def undisturbed(derived: Path) -> dict[str, tuple[str, Trace]]:
    """The id and the trace of both loops' versions where nothing stops them."""
    found = {}
    with memory_folder(derived) as folder, pytest.MonkeyPatch.context() as monkeypatch:
        for loop in LOOPS:
            (folder / loop).mkdir()
            place = (
                TinyPlace(folder / loop)
                if loop == "search"
                else TinyPlace(derived).copy(folder / loop)
            )
            trace = traced(monkeypatch)
            assert place.run(*place.words(loop)) == 0
            monkeypatch.undo()
            version = place.latest(loop)
            assert version is not None
            assert sorted(trace.states) == list(range(1, STEPS + 1))
            assert len(trace.batches) >= STEPS
            found[loop] = (version.id, trace)
    return found


def empty_or_derived(loop: str, derived: Path, folder: Path) -> TinyPlace:
    """Where the loop has not run yet."""
    return TinyPlace(folder) if loop == "search" else TinyPlace(derived).copy(folder)


def assert_as_undisturbed(place: TinyPlace, loop: str, trace: Trace, derived: Path) -> None:
    """Every step, batch and the version are those of a run that nothing stopped."""
    version_id, whole = undisturbed(derived)[loop]
    assert trace.of_the_same_run(whole)
    version = place.latest(loop)
    assert version is not None
    assert version.id == version_id
    assert open_store(place.store).verify().damaged == []
    assert leftovers(open_store(place.store)) == []


STOP = 5


def stop_at(place: TinyPlace, loop: str, *arguments: str, step: int = STOP) -> None:
    with pytest.MonkeyPatch.context() as once:
        Sender("in the middle of the step", step - 1, 15).install(once)
        assert place.run(*place.words(loop), *arguments) == 143
    assert place.checkpoints(loop)[-1] == step

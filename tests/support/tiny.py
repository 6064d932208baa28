"""The real commands in well under a second: few images, cells and candidates; and what they did.

Twelve steps in four epochs, in the search and in the retraining, so that a stop at a given step is
the same place in both.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import write
from toy import Place

from d2nas.data.batches import Batches
from d2nas.files.strict_json import canonical_json
from d2nas.train.loop import Loop, StepReport
from d2nas.train.state import TrainState
from pipeline.stages import open_store
from pipeline.store import Version

STEPS, STEPS_PER_EPOCH = 12, 3
LOOPS = ("search", "retrain")

SPACE = """
normal = ["skip_connect", "dil_conv_3x3"]
reduce = ["max_pool_3x3", "skip_connect"]
"""
TINY = """
[data]
name = "digits"
train_images = 64
crop_padding = 1
flip = true

[search]
space = {space}
num_cells = 3
init_channels = 4
epochs = 4
warmup_epochs = 1
batch_size = 8
draws = 1
arch_lr = 0.05
cutout = 2

[retrain]
num_cells = 2
init_channels = 4
auxiliary = false
epochs = 4
batch_size = 20
drop_path = 0.3
cutout = 2

[validate]
latency_batches = [1]
latency_samples = 10
latency_seconds = 0.1
"""


class TinyPlace(Place):
    """A place for runs of the tiny preset, whose run is called ``tiny``."""

    def __init__(self, folder: Path) -> None:
        space = folder / "few.toml"
        space.write_text(f'name = "few"\n{SPACE}')
        super().__init__(folder, "tiny", TINY.format(space=json.dumps(str(space))))

    def words(self, stage: str) -> list[str]:
        """The command that runs one stage on what is here, without the folders."""
        return [stage, str(self.preset) if stage == "search" else "tiny"]

    def command(self, stage: str, *arguments: str) -> list[str]:
        """The same with the folders."""
        return self.arguments(*self.words(stage), *arguments)

    def latest(self, stage: str) -> Version | None:
        """The newest version of a stage, checkpoints included."""
        return open_store(self.store).latest("tiny", stage)

    def checkpoints(self, stage: str) -> list[int]:
        """The steps at which the stage's checkpoints continue, oldest first; all verified."""
        store = open_store(self.store)
        found = store.references("tiny", f"{stage}-state")
        return [int(store.open(reference.name).manifest.facts["step"]) for reference in found]

    def copy(self, folder: Path) -> "TinyPlace":
        """A place of its own with all that is in this one."""
        shutil.copytree(self.store, folder / "store")
        return TinyPlace(folder)

    def content(self) -> dict[str, bytes]:
        """Every file of the store's versions and references, by its path in the store."""
        return {
            str(path.relative_to(self.store)): path.read_bytes()
            for folder in ("versions", "runs")
            for path in (self.store / folder).rglob("*")
            if path.is_file()
        }


@dataclass
class Trace:
    """What a loop held after each step, and which images it saw; also over several processes' runs.

    A step that is taken twice must be the same both times.
    """

    states: dict[int, str] = field(default_factory=dict)
    batches: dict[tuple[str, int], str] = field(default_factory=dict)
    last: Loop | None = None

    def add_state(self, state: TrainState) -> None:
        digest = hashlib.sha256(canonical_json(dict(state.scalars())))
        for name in sorted(state.tensors):
            values = state.tensors[name].contiguous().numpy()
            digest.update(f"{name} {values.dtype} {values.shape} ".encode())
            digest.update(values)
        found = digest.hexdigest()
        assert self.states.setdefault(state.step, found) == found, f"another step {state.step}"

    def add_batch(self, purpose: str, step: int, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        parts = b"".join(part.contiguous().numpy().tobytes() for part in batch)
        found = hashlib.sha256(parts).hexdigest()
        key = (purpose, step)
        assert self.batches.setdefault(key, found) == found, f"another batch {key}"

    def of_the_same_run(self, other: "Trace") -> bool:
        """Whether both hold the same steps with the same states and batches."""
        return self.states == other.states and self.batches == other.batches


def traced(monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Trace all loops from now on, until ``monkeypatch`` is undone."""
    trace = Trace()
    run, batch = Loop.run, Batches.batch

    def traced_run(loop: Loop, state: TrainState | None = None) -> Iterator[StepReport]:
        trace.last = loop
        for report in run(loop, state):
            trace.add_state(loop.capture(report.step + 1))
            yield report

    def traced_batch(batches: Batches, step: int) -> Any:
        found = batch(batches, step)
        trace.add_batch(batches.order.purpose, step, found)
        return found

    monkeypatch.setattr(Loop, "run", traced_run)
    monkeypatch.setattr(Batches, "batch", traced_batch)
    return trace


STUDY = """
methods = ["random"]
spaces = ["S2"]
seeds = [0]
[settings]
"retrain.epochs" = 1
"""


def words_of(place: TinyPlace, command: str) -> list[str]:
    """The command, with all that it takes to have something to do."""
    if command == "study":
        return [command, str(write(place, STUDY))]
    extra = ("--set", "derive.candidates=2") if command == "derive" else ()
    return [*place.words(command), "--fresh", *extra]

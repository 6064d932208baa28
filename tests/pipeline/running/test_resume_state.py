"""Every entry of a checkpoint is needed: left out, the resume is refused; forgotten, it differs.

The entries are taken from the states themselves, so that a new one is covered by itself.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from recipes import retraining_of
from searches import CHEAP, search_by

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.tensors import decode_state, encode_state
from d2nas.train.loop import Loop
from d2nas.train.search import Search
from d2nas.train.state import TrainState

STOP = 3
"""In the middle of an epoch, after the logits began to move."""


def searching(method: str, *settings: str) -> Loop:
    shape = ["search.epochs=3", "search.batch_size=8", "search.draws=1", *settings]
    return search_by(method, *shape, space=CHEAP)


def retraining(*settings: str) -> Loop:
    return retraining_of(
        "retrain.num_cells=2", "retrain.drop_path=0.3", "retrain.cutout=3", *settings
    )


LOOPS: dict[str, Callable[[], Loop]] = {
    "search": lambda: searching("d2nas", "search.warmup_epochs=1"),
    "gdas": lambda: searching("gdas"),
    "darts-second-order": lambda: searching("darts-second-order", "search.epochs=2"),
    "pc-darts-4": lambda: searching("pc-darts-4", "search.epochs=2"),
    "retrain": lambda: retraining(),
    "retrain in fp16": lambda: retraining("retrain.precision=fp16"),
    # The first epoch is the best; the second has begun at the stop, and is the last.
    "retrain that stops": lambda: retraining(
        "retrain.patience=1",
        "retrain.lr=3.0",
        "retrain.epochs=3",
        "retrain.batch_size=10",
        "retrain.accumulate=3",
    ),
}


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted: its states before each step and at the end."""

    states: list[TrainState]

    def equals(self, loop: Loop) -> bool:
        """Whether ``loop`` ended where the run did."""
        wanted, got = self.states[-1], loop.capture(loop.num_steps)
        return (
            wanted.tensors.keys() == got.tensors.keys()
            and all(torch.equal(wanted.tensors[name], got.tensors[name]) for name in got.tensors)
            and wanted.metrics == got.metrics
        )


@functools.cache
def whole_run(name: str) -> Whole:
    loop = LOOPS[name]()
    states = [loop.capture(0)]
    states += [loop.capture(report.step + 1) for report in loop.run()]
    return Whole(states)


def continued(name: str, state: TrainState) -> Loop:
    loop = LOOPS[name]()
    for _ in loop.run(state):
        pass
    return loop


@pytest.mark.parametrize("name", LOOPS)
def test_no_two_images_are_alike(name: str) -> None:
    """Else a wrong order of the data could not be told from the right one."""
    loop = LOOPS[name]()
    batches = (
        [loop.weight_batches, loop.arch_batches] if isinstance(loop, Search) else [loop.batches]
    )
    pixels = torch.cat([one.images.images_NCHW.flatten(1) for one in batches])
    assert len(torch.unique(pixels, dim=0)) == len(pixels)


@pytest.mark.parametrize("name", LOOPS)
def test_the_whole_state_continues_to_the_same_end(name: str) -> None:
    whole = whole_run(name)
    for state in whole.states[:-1]:
        assert whole.equals(continued(name, state)), state.step


@pytest.mark.parametrize("name", LOOPS)
def test_a_state_without_one_of_its_tensors_is_refused_by_its_name(name: str) -> None:
    state = whole_run(name).states[STOP]
    loop = LOOPS[name]()
    assert len(state.tensors) > 50
    for left_out in state.tensors:
        kept = {key: value for key, value in state.tensors.items() if key != left_out}
        with pytest.raises(DamagedArtifactError) as caught:
            loop.trained.restore(kept)
        assert f"tensor {left_out} is missing" in str(caught.value)


def kind_of(name: str) -> str:
    """What a tensor is, whichever layer it belongs to: ``sgd momentum_buffer``, ``logits``."""
    owner, _, rest = name.partition(".")
    return owner if owner == "logits" else f"{owner} {rest.rpartition('.')[2]}"


def with_forgotten(state: TrainState, first: TrainState, kind: str) -> TrainState:
    """The state as it were if ``kind`` had not been saved: as it began."""
    tensors = {
        name: first.tensors[name] if kind_of(name) == kind else value
        for name, value in state.tensors.items()
    }
    return replace(state, tensors=tensors)


@pytest.mark.parametrize("name", LOOPS)
def test_control_each_kind_of_tensor_forgotten_ends_elsewhere(name: str) -> None:
    whole = whole_run(name)
    first, state = whole.states[0], whole.states[STOP]
    kinds = sorted({kind_of(tensor) for tensor in state.tensors})
    assert len(kinds) >= (7 if name.startswith("retrain") else 11), kinds
    unnoticed = [
        kind for kind in kinds if whole.equals(continued(name, with_forgotten(state, first, kind)))
    ]
    assert unnoticed == []


@pytest.mark.parametrize("name", LOOPS)
def test_control_step_and_rows_forgotten_end_elsewhere(name: str) -> None:
    whole = whole_run(name)
    first, state = whole.states[0], whole.states[STOP]
    for forgotten in (replace(state, step=first.step), replace(state, metrics=first.metrics)):
        assert not whole.equals(continued(name, forgotten))


@pytest.mark.parametrize("name", LOOPS)
def test_a_stored_state_is_the_state_and_refused_without_one_of_its_entries(name: str) -> None:
    state = whole_run(name).states[STOP]
    files = encode_state(state.tensors, state.scalars())
    tensors, scalars = decode_state(files.__getitem__)
    assert TrainState.from_parts(tensors, scalars, what="x").scalars() == state.scalars()
    assert set(scalars) | {"tensors"} == set(TrainState.__dataclass_fields__)
    for left_out in scalars:
        kept = {key: value for key, value in scalars.items() if key != left_out}
        with pytest.raises(DamagedArtifactError, match=f"state.json: {left_out} is missing"):
            TrainState.from_parts(tensors, kept, what="state.json")
        with pytest.raises(DamagedArtifactError, match=f"state.json: {left_out} is a"):
            TrainState.from_parts(tensors, scalars | {left_out: 0.5}, what="state.json")
    with pytest.raises(DamagedArtifactError, match="unexpected entry stranger"):
        TrainState.from_parts(tensors, scalars | {"stranger": 1}, what="state.json")


@pytest.mark.parametrize("name", LOOPS)
def test_a_state_of_another_kind_of_device_or_precision_is_refused(name: str) -> None:
    state = whole_run(name).states[STOP]
    for other in ({"device": "cuda"}, {"precision": "bf16"}):
        ((_, given),) = other.items()
        with pytest.raises(ConfigError, match=f"was trained (on|in) {given}, this device"):
            continued(name, replace(state, **other))

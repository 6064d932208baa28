"""Hooks of a method between steps: stop, roll-back, another supernet; each resumes bit-equal."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from searches import CHEAP, continued, run_with_states, same_end, search_by
from torch import nn
from toy import Place

from d2nas import register_method
from d2nas.config.registry import search_methods
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.methods.base import Batch, EpochEnd, Measured, Sizes, StepContext
from d2nas.methods.darts import Darts
from d2nas.nn.mixed_supernet import MixedSupernet
from d2nas.nn.operations import initialize
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, SearchSpace
from d2nas.train.search import Search
from d2nas.train.state import TrainState

DECAY = 3e-4


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test registers is there for the next one."""
    search_methods.names()
    monkeypatch.setattr(search_methods, "_known", dict(search_methods._known))
    for kind in (Stopping, RollingBack, Staged, WeightsOnly, Seldom, Signed):
        register_method(kind.__name__.lower().replace("_", "-"))(kind)
    return


class Stopping(Darts):
    """Stops after the second epoch, with logits of its own."""

    def close_epoch(self, end: EpochEnd) -> int:
        if end.epoch != 1:
            return end.epoch + 1
        with torch.no_grad():
            self.logits.ops("normal").copy_(torch.eye(*self.logits.ops("normal").shape))
        return end.epochs

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        return 10 + epoch


class Counts(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class RollingBack(Darts):
    """Twice goes from the end of the second epoch back to that of the first, with more decay."""

    kept_states = 2

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.memory: Counts = Counts()

    def close_epoch(self, end: EpochEnd) -> int:
        if end.epoch == 0:
            end.keep(1)
        if end.epoch == 1 and self.memory.count < 2:
            self.memory.count += 1
            end.bring_back(1)
            return 1
        return end.epoch + 1

    def weight_decay(self, given: float) -> float:
        return float(given * 10 ** int(self.memory.count))

    def describe(self) -> dict[str, Any]:
        return {"count": int(self.memory.count)}


class Stages(Counts):
    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        for cell in CELL_TYPES:
            shape = (len(space.normal), space.num_columns(cell))
            self.register_buffer(f"{cell}_kept", torch.ones(shape, dtype=torch.bool))


class Staged(Darts):
    """After the first of two epochs: the better half of the candidates, a deeper supernet."""

    fails = False

    def __init__(
        self, space: SearchSpace, sizes: Sizes, generator: torch.Generator, **options: Any
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.whole, self.sizes = space, sizes
        self.memory: Stages = Stages(space)

    def schedule(self, epoch: int, epochs: int) -> tuple[int, int]:
        return epoch % 1, 1

    def close_epoch(self, end: EpochEnd) -> int:
        if end.epoch == 0:
            for cell in CELL_TYPES:
                exists = self.logits.choosable(cell)
                values = self.logits.ops(cell).detach().masked_fill(~exists, -torch.inf)
                getattr(self.memory, f"{cell}_kept").copy_(values == values.amax(1, keepdim=True))
            self.memory.count += 1
            if self.fails:
                raise KeyboardInterrupt
            self.rebuild()
            initialize(self.supernet, end.draws(0))
        return end.epoch + 1

    def rebuild(self) -> None:
        if self.memory.count == 0:
            return
        edges = {
            cell: tuple(
                tuple(name for name, on in zip(names, row, strict=False) if on)
                for names, row in zip(
                    self.whole.candidates(cell),
                    getattr(self.memory, f"{cell}_kept").tolist(),
                    strict=True,
                )
            )
            for cell in CELL_TYPES
        }
        space = SearchSpace(self.whole.name, edges["normal"], edges["reduce"])
        supernet = MixedSupernet(
            space,
            num_cells=self.sizes.num_cells + 1,
            init_channels=self.sizes.init_channels,
            num_classes=self.sizes.num_classes,
            in_channels=self.sizes.in_channels,
            stem=self.sizes.stem,
        )
        self.replace(supernet, ArchLogits(space, generator=torch.Generator()))
        self._noises = [one for one in supernet.modules() if type(one).__name__ == "Noise"]


class WeightsOnly(Darts):
    """Trains weights alone."""

    passes = (0, 1)

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        raise AssertionError("there is no architecture half")


class Seldom(Darts):
    """Has an architecture half in every third step; keeps its losses, and the weights' batch of
    two steps later.
    """

    architecture_interval = 3

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        measured = super().architecture_gradients(batch, context)
        found = (context.epoch, float(measured.loss), context.weight_batch(2).images)
        self.__dict__.setdefault("seen", []).append(found)
        return measured


class Signed(Darts):
    """Moves the logits by the signs of their gradients; notes the epochs of its steps."""

    def update_logits(self, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for cell in CELL_TYPES:
                logits = self.logits.ops(cell)
                assert logits.grad is not None
                logits -= 0.25 * logits.grad.sign()

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        self.__dict__.setdefault("seen", []).append((context.epoch, context.epochs))
        return super().architecture_gradients(batch, context)


def searching(method: str, epochs: int = 3) -> Search:
    return search_by(method, f"search.epochs={epochs}", space=CHEAP)


def whole_and_states(method: str) -> tuple[Search, dict[int, TrainState]]:
    """A finished search, and its states before each step."""
    search = searching(method)
    return search, run_with_states(search)


@pytest.mark.parametrize("method", ["stopping", "rollingback", "staged", "weightsonly"])
def test_it_resumes_bit_equal_from_any_step(method: str) -> None:
    whole, states = whole_and_states(method)
    assert len(states) == whole.num_steps
    for step, state in states.items():
        torch.rand(step)
        assert same_end(whole, continued(searching(method), state)), step


# --- stop ---------------------------------------------------------------------------------------


def test_a_stop_leaves_the_later_steps_out() -> None:
    search, _ = whole_and_states("stopping")
    assert search.num_steps == 4
    assert [row.get("next_epoch") for row in search.metrics] == [None, 3]
    assert search.num_passes == 4 * 2 + 10 + 11
    assert searching("stopping").num_passes == 6 * 2 + 10 + 11 + 12  # the plan
    assert search.metrics[-1]["genotype"] == search.method.derive().to_dict()
    assert search.method.derive() != search_by("darts", space=CHEAP).method.derive()


def test_facts_and_the_derived_genotype_are_those_of_the_stop(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    sets = ["--set", "search.epochs=4", "--set", "data.train_images=400"]
    version = place.json(
        capfd, "search", str(place.preset), "--method", "stopping", *sets, "--set",
        "search.batch_size=90", "--set", "search.init_channels=2",
    )  # fmt: skip
    assert version["facts"]["steps"] == 2 * 2
    assert version["facts"]["passes"] == 4 * 2 + 10 + 11
    derived = place.json(capfd, "derive", "toy")
    assert derived["facts"]["genotype"] == version["facts"]["genotype"]


@pytest.mark.parametrize("following", [-1, 5, None, 1.0, True])
def test_an_epoch_that_is_none_of_the_search_is_refused(following: Any) -> None:
    search = searching("stopping")
    search.method.close_epoch = lambda end: following  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="search method stopping: invalid next epoch"):
        list(search.run())


# --- roll-back ----------------------------------------------------------------------------------


def test_a_roll_back_repeats_epochs_from_the_kept_state() -> None:
    search = searching("rollingback")
    at_end, decays = {}, []
    for report in search.run():
        decays.append(search.weight_optimizer.param_groups[0]["weight_decay"])
        if report.metrics:
            at_end[report.metrics["epoch"]] = search.trained.copies()
    learned = [name for name in at_end[0] if name.startswith(("supernet", "logits", "sgd", "adam"))]
    for later in (1, 2):  # the ends of the second epoch that were undone
        assert all(torch.equal(at_end[0][name], at_end[later][name]) for name in learned)
    assert not all(torch.equal(at_end[0][name], at_end[3][name]) for name in learned)  # control
    assert search.num_steps == 2 * 5
    assert search.num_passes == 2 * 5 * 2
    rows = search.metrics
    assert [row.get("next_epoch") for row in rows] == [None, 1, 1, None, None]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["count"] for row in rows] == [0, 1, 2, 2, 2]
    assert rows[1]["weight_lr"] == rows[2]["weight_lr"] == rows[3]["weight_lr"]
    assert decays == pytest.approx([DECAY] * 4 + [10 * DECAY] * 2 + [100 * DECAY] * 4)
    # Other batches and draws than the first time: it does not end where it ended before.
    assert rows[1]["weight_loss"] != rows[2]["weight_loss"]


@pytest.mark.parametrize("forgotten", ["kept.1.", "method."])
def test_control_a_checkpoint_without_its_own_state_ends_elsewhere(forgotten: str) -> None:
    whole, states = whole_and_states("rollingback")
    state = states[3 if forgotten == "kept.1." else 5]
    tensors = {
        name: torch.zeros_like(value) if name.startswith(forgotten) else value
        for name, value in state.tensors.items()
    }
    assert not same_end(whole, continued(searching("rollingback"), replace(state, tensors=tensors)))


def test_a_checkpoint_with_a_part_of_its_own_state_missing_is_refused() -> None:
    state = searching("rollingback").capture(0)
    for name in ("method.count", "kept.0.logits.normal_ops", "kept.1.sgd.supernet.classifier.bias"):
        found = [key for key in state.tensors if key.startswith(name)]
        assert found
        tensors = {key: value for key, value in state.tensors.items() if key != found[0]}
        with pytest.raises(DamagedArtifactError, match=f"tensor {found[0]} is missing"):
            searching("rollingback").restore(replace(state, tensors=tensors))


def test_methods_without_own_state_have_checkpoints_as_before() -> None:
    names = search_by("darts", space=CHEAP).capture(0).tensors
    assert {name.partition(".")[0] for name in names} == {
        "sums", "supernet", "logits", "sgd", "adam",
    }  # fmt: skip


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_kept_state_that_is_not_there_is_refused(slot: int) -> None:
    search = searching("rollingback")
    end = search._epoch_end(1)
    for call in (end.keep, end.bring_back):
        with pytest.raises(ValueError, match=f"kept state {slot}: there are 2"):
            call(slot)


# --- another supernet ---------------------------------------------------------------------------


def test_candidates_and_depth_change_and_the_last_ones_are_reported() -> None:
    search = searching("staged", epochs=2)
    first = search.space
    assert len(search.supernet.cells) == 3
    list(search.run())
    assert len(search.supernet.cells) == 4
    assert search.space.num_columns("normal") == 1 < first.num_columns("normal")
    assert search.method.logits is search.logits
    assert {group["params"][0] for group in search.weight_optimizer.param_groups} <= set(
        search.supernet.parameters()
    )
    rates = [row["weight_lr"] for row in search.metrics]
    assert rates[0] == rates[1] == search.config.weight_lr  # a schedule of each stage


def test_an_end_in_the_middle_of_the_change_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, states = whole_and_states("staged")
    with monkeypatch.context() as patch:
        patch.setattr(Staged, "fails", True)
        with pytest.raises(KeyboardInterrupt):
            continued(searching("staged"), states[1])
    assert same_end(whole, continued(searching("staged"), states[1]))


def test_control_a_checkpoint_does_not_fit_the_supernet_of_another_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, states = whole_and_states("staged")
    monkeypatch.setattr(Staged, "rebuild", lambda self: None)
    with pytest.raises(DamagedArtifactError):
        searching("staged").restore(states[3])


def test_a_derived_cell_of_a_later_stage_is_read_from_the_store(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    sets = [f"search.{one}" for one in ("space=S2", "batch_size=90", "init_channels=2")]
    words = [word for one in (*sets, "data.train_images=400") for word in ("--set", one)]
    version = place.json(capfd, "search", str(place.preset), "--method", "staged", *words)
    assert all(len(edge) == 1 for edge in version["facts"]["searched_space"]["normal"])
    derived = place.json(capfd, "derive", "toy")
    assert derived["facts"]["genotype"] == version["facts"]["genotype"]


# --- steps --------------------------------------------------------------------------------------


def test_weights_alone_are_trained_where_there_is_no_architecture_half() -> None:
    search, _ = whole_and_states("weightsonly")
    assert search.num_passes == search.num_steps == 6
    for row in search.metrics:
        assert row["arch_loss"] is row["arch_accuracy"] is None
        assert row["weight_loss"] > 0


def test_the_architecture_half_takes_place_at_the_methods_interval() -> None:
    """Counted and averaged by the steps that have one: the first and fourth of an epoch's four."""
    sets = ("search.epochs=3", "search.batch_size=4", "search.warmup_epochs=1")
    search = search_by("seldom", *sets, space=CHEAP)
    list(search.run())
    seen = search.method.seen  # type: ignore[attr-defined]
    assert [epoch for epoch, _, _ in seen] == [1, 1, 2, 2]
    assert search.num_passes == 3 * 4 + 2 * 2
    assert search.metrics[0]["arch_loss"] is None
    for row, first in zip(search.metrics[1:], (0, 2), strict=True):
        losses = [loss for _, loss, _ in seen[first : first + 2]]
        assert row["arch_loss"] == pytest.approx(sum(losses) / 2)
    for (_, _, images), step in zip(seen, (4, 7, 8, 11), strict=True):
        later, _ = search.weight_batches.batch(step + 2)
        assert torch.equal(images, later)


def test_an_invalid_interval_is_refused() -> None:
    facts = {"__module__": "somewhere", "architecture_interval": 0}
    with pytest.raises(ConfigError, match="search method toy: invalid architecture_interval: 0"):
        register_method("toy")(type("Toy", (Darts,), facts))


def test_a_method_moves_its_logits_itself_and_knows_the_epoch() -> None:
    search, _ = whole_and_states("signed")
    start = searching("signed").logits.ops("normal")
    moved = (search.logits.ops("normal") - start).detach() / 0.25
    assert torch.allclose(moved, moved.round(), atol=1e-5)
    assert moved.abs().max() > 0
    assert search.method.seen == [(0, 3)] * 2 + [(1, 3)] * 2 + [(2, 3)] * 2  # type: ignore[attr-defined]


def test_batches_and_draws_of_an_epochs_end() -> None:
    search = searching("darts")
    end = search._epoch_end(3)  # the last step of the second epoch
    assert (end.epoch, end.epochs, end.steps, end.is_last) == (1, 3, 2, False)
    assert search._epoch_end(5).is_last
    for index, step in ((0, 2), (1, 3), (2, 4)):
        for found, batches in (
            (end.arch_batch(index), search.arch_batches),
            (end.weight_batch(index), search.weight_batches),
        ):
            images, labels = batches.batch(step)
            assert torch.equal(found.images, images)
            assert torch.equal(found.labels, labels)
    seeds = {
        place.draws(index).initial_seed()
        for place in (end, search._epoch_end(1))
        for index in (0, 1)
    }
    assert len(seeds) == 4


def test_invalid_kept_states_are_refused() -> None:
    kind = type("Toy", (Darts,), {"__module__": "somewhere", "kept_states": -1})
    with pytest.raises(ConfigError, match="search method toy: invalid kept_states: -1"):
        register_method("toy")(kind)

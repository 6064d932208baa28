"""A budget's trainings of cells: real ones, few and short, stopped anywhere and continued."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2nas import SPACES, ArchLogits
from d2nas.config import build_config
from d2nas.data.images import ImageData, load_data
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype, neighbour
from d2nas.methods.derivation import derive_genotype, draw_of, genotype_of
from d2nas.nn.probability import log_probability
from d2nas.train import comparison as compare
from d2nas.train.candidates import Candidate, rank_by_training
from d2nas.train.comparison import Comparison, halving_of, seed_of_round
from d2nas.train.retrain import Retraining
from d2nas.train.state import TrainState

CONFIG = build_config(
    {
        "data": {"name": "digits", "train_images": 64, "crop_padding": 1},
        "retrain": {
            "num_cells": 2,
            "init_channels": 4,
            "auxiliary": False,
            "epochs": 9,
            "warmup_epochs": 4,
            "batch_size": 15,
            "lr": 0.1,
            "drop_path": 0.3,
            "cutout": 2,
        },
    }
)
EPOCHS, STEPS = 2, 4


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(CONFIG.data, seed=0, default_root=Path("unused"))


def logits_of(space: str = "S2") -> ArchLogits:
    logits, numbers = ArchLogits(SPACES[space]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in logits.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return logits


def comparison_of(data: ImageData, budget: int = 6, *, seed: int = 0) -> Comparison:
    halving, _ = halving_of(logits_of(), budget, seed=seed, temperature=None)
    return Comparison(
        halving,
        CONFIG.retrain,
        EPOCHS,
        data,
        num_trainings=budget,
        seed=seed,
        device=torch.device("cpu"),
        augmentation=CONFIG.data,
    )


def finished(comparison: Comparison, state: TrainState | None = None) -> Comparison:
    for _ in comparison.run(state):
        pass
    return comparison


@pytest.fixture(scope="module")
def whole(data: ImageData) -> Comparison:
    return finished(comparison_of(data))


def test_each_row_is_a_training_like_that_of_candidates(data: ImageData, whole: Comparison) -> None:
    assert whole.steps_per_epoch == STEPS
    assert whole.num_steps == 6 * STEPS
    assert [row["training"] for row in whole.metrics] == list(range(6))
    assert [row["round"] for row in whole.metrics] == [0, 0, 0, 0, 1, 1]
    for row in (whole.metrics[2], whole.metrics[5]):
        arm = whole.halving.arms[row["candidate"]]
        assert row["genotype_digest"] == arm.cell.digest
        assert row["seed"] == seed_of_round(0, row["round"])
        (alone,) = rank_by_training(
            CONFIG.retrain,
            EPOCHS,
            [arm.cell],
            data,
            seed=row["seed"],
            device=torch.device("cpu"),
            augmentation=CONFIG.data,
        )
        assert row["accuracy"] == alone.accuracy
        assert row["calibrated_loss"] == alone.calibrated_loss == arm.losses[row["round"]]


def test_seeds_are_a_runs_own_and_retrain_takes_them() -> None:
    seeds = [seed_of_round(seed, number) for seed in range(3) for number in range(6)]
    assert len({*seeds}) == len(seeds)
    for seed in seeds:
        build_config({"retrain": {"seed": seed}})


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 2, 4 * STEPS, 5 * STEPS + 3])
def test_a_comparison_that_is_stopped_at_any_step_ends_as_if_it_had_not_been(
    data: ImageData, whole: Comparison, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = stopped(comparison_of(data), step)
    assert state.step == step
    assert len(state.metrics) == step // STEPS
    assert bool(state.tensors) == (step % STEPS > 0)
    steps = count_steps(monkeypatch)
    other = finished(comparison_of(data), state)
    assert steps == [*range(step % STEPS, STEPS), *[*range(STEPS)] * (5 - step // STEPS)]
    assert other.metrics == whole.metrics
    assert other.halving.rounds == whole.halving.rounds
    assert other.halving.best() == whole.halving.best()


def test_control_a_state_that_forgets_the_training_in_progress_is_noticed(
    data: ImageData, whole: Comparison
) -> None:
    state = stopped(comparison_of(data), STEPS + 2)
    for value in state.tensors.values():
        value.zero_()
    assert finished(comparison_of(data), state).metrics != whole.metrics


def stopped(comparison: Comparison, step: int) -> TrainState:
    for report in comparison.run():
        if report.step + 1 == step:
            return comparison.capture(step)
    raise AssertionError(step)


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    real = Retraining.take_step

    def counted(training: Retraining, step: int) -> None:
        made.append(step)
        real(training, step)

    monkeypatch.setattr(Retraining, "take_step", counted)
    return made


def test_a_state_of_other_cells_is_refused(data: ImageData) -> None:
    state = stopped(comparison_of(data), 2 * STEPS)
    with pytest.raises(ConfigError, match="another cell or seed"):
        finished(comparison_of(data, seed=1), state)
    state.metrics[1]["genotype_digest"] = "0" * 64
    with pytest.raises(ConfigError, match="training 1 is of another cell"):
        finished(comparison_of(data), state)


def test_a_state_of_another_device_is_refused(data: ImageData) -> None:
    state = stopped(comparison_of(data), STEPS)
    other = TrainState(state.step, {}, state.metrics, "cuda", state.precision)
    with pytest.raises(ConfigError, match="trained on cuda"):
        finished(comparison_of(data), other)


def test_whoever_waits_for_images_is_told_in_every_training(data: ImageData) -> None:
    comparison, told = comparison_of(data), list[float]()
    for batches in comparison.streams():
        batches.stalled = told.append
    for report in comparison.run():
        if report.step % STEPS == 0:
            for batches in comparison.streams():
                batches.stalled(float(report.step))
    assert told == [float(STEPS * number) for number in range(6)]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Genotype], float]:
    """Cells are worth how many convolutions they have, and nothing is trained."""

    def worth(genotype: Genotype) -> float:
        return sum("conv" in name for name, _ in (*genotype.normal, *genotype.reduce)) / 16

    def judged(training: Retraining, genotype: Genotype, data: ImageData) -> Candidate:
        return Candidate(genotype, worth(genotype), 1.0 - worth(genotype))

    monkeypatch.setattr(compare, "judge", judged)
    monkeypatch.setattr(Retraining, "take_step", lambda *_: None)
    monkeypatch.setattr(Retraining, "describe_epoch", lambda *_: {})
    return worth


def test_the_cell_of_the_lowest_loss_is_found(
    data: ImageData, planted: Callable[[Genotype], float]
) -> None:
    halving = finished(comparison_of(data, 24)).halving
    values = [planted(arm.cell) for arm in halving.arms]
    assert values[halving.best()] == max(values) > values[0]
    assert any(arm.parent is not None for arm in halving.arms)


@pytest.mark.parametrize("space", ["S0", "S1", "S4"])
def test_candidates_are_the_most_probable_cell_and_cells_of_the_space(space: str) -> None:
    logits = logits_of(space)
    halving, temperature = halving_of(logits, 24, seed=3, temperature=None)
    cells = [arm.cell for arm in halving.arms]
    assert cells[0] == derive_genotype(logits, SPACES[space])
    assert len({*cells}) == len(cells) == 12
    for arm in halving.arms:
        draw = draw_of(arm.cell, SPACES[space])
        assert arm.log_probability == log_probability(logits, draw)
        assert arm.log_probability <= halving.arms[0].log_probability
    assert halving_of(logits, 24, seed=3, temperature=temperature)[0].arms == halving.arms
    other, kept = halving_of(logits, 24, seed=3, temperature=1.0)
    assert kept == 1.0
    assert temperature != 1.0
    assert other.arms != halving.arms


def test_a_narrow_distribution_gives_different_cells_all_the_same() -> None:
    logits = logits_of("S0")
    with torch.no_grad():
        for parameter in logits.parameters():
            parameter.mul_(50.0)
    narrow, _ = halving_of(logits, 24, seed=0, temperature=1.0)
    found, temperature = halving_of(logits, 24, seed=0, temperature=None)
    assert len(narrow.arms) < 12
    assert len(found.arms) == 12
    assert temperature > 10


def test_a_neighbour_has_its_predecessors_in_order() -> None:
    halving, _ = halving_of(logits_of("S0"), 24, seed=0, temperature=None)
    unordered = 0
    numbers = random.Random(0)
    for _ in range(40):
        cell = halving._neighbour(halving.arms[0].cell)
        assert cell == genotype_of(draw_of(cell, SPACES["S0"]), SPACES["S0"])
        plain = neighbour(halving.arms[0].cell, SPACES["S0"], numbers)
        unordered += plain != genotype_of(draw_of(plain, SPACES["S0"]), SPACES["S0"])
    assert unordered > 0  # control: without it some are equal networks of other names

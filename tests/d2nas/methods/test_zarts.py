"""ZARTS: draws, weights and steps as in the published code; copies tuned as in the paper."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rivals import (
    TOLERANCE,
    batch_of,
    built,
    context_of,
    distance,
    logit_distances,
    rivals,
    space_of,
)
from searches import CHEAP, search_by
from torch import Tensor, nn
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.methods import zarts
from d2nas.methods.base import Batch, StepContext
from d2nas.methods.darts import Darts
from d2nas.methods.zarts import Zarts, deviation, step_weights
from d2nas.spaces import CELL_TYPES, SearchSpace
from d2nas.train.loop import sgd
from d2nas.train.search import architecture_step

CASES: dict[str, Any] = rivals()["zarts"]
EPOCH = {"0.025": 10, "0.0125": 31}
"""The epoch of 50, ten of them a warm-up, in which steps are drawn with a deviation."""
FLOAT32 = 1e-7
"""The published weights of steps are float32."""
RAGGED = SearchSpace(
    "ragged",
    (("skip_connect", "max_pool_3x3", "avg_pool_3x3"), ("skip_connect",)) * 7,
    (("max_pool_3x3", "skip_connect"), ("skip_connect",)) * 7,
)


def zarts_in(space: SearchSpace) -> Zarts:
    method = built(Zarts, space)
    method.warmup = 10
    return method


# --- the published numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(CASES["steps"]))
def test_a_step_of_the_logits_is_the_published_one(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the tuning, which there moves no weight; it is looked at below."""
    expected, (name, size) = CASES["steps"][case], case.split()
    found: dict[str, Any] = {}

    def kept(losses: Tensor, *rest: Any) -> Tensor:
        found.update(losses=losses.tolist(), weights=step_weights(losses, *rest).tolist())
        return step_weights(losses, *rest)

    monkeypatch.setattr(zarts, "TUNING_STEPS", 0)
    monkeypatch.setattr(zarts, "step_weights", kept)
    method = zarts_in(space_of("s5" if name == "s6" else name, with_none=False))
    columns = method.logits.space.num_columns("normal")
    first, last = expected["noise_seeds"]
    numbers = [
        np.random.RandomState(seed).normal(size=(2, 14, columns)) for seed in range(first, last + 1)
    ]
    asked = iter(
        np.stack([around_gradient[place], around_zero[place]])
        for around_gradient, around_zero in zip(numbers[::2], numbers[1::2], strict=True)
        for place in range(len(CELL_TYPES))
    )
    monkeypatch.setattr(method, "noises", lambda cell, generator: torch.tensor(next(asked)))
    batch, context = batch_of("architecture"), context_of(EPOCH[size], 50)
    gradients = built(Darts, method.logits.space)
    gradients.architecture_gradients(batch, context)
    assert max(logit_distances(gradients, expected["arch_grad"])) < TOLERANCE
    before = {cell: method.logits.ops(cell).detach().clone() for cell in CELL_TYPES}
    measured = method.architecture_gradients(batch, context)
    assert float(measured.loss) == pytest.approx(expected["base_loss"], rel=TOLERANCE)
    assert found["losses"] == pytest.approx(expected["sample_losses"], rel=TOLERANCE)
    assert found["weights"] == pytest.approx(expected["coefficients"], rel=FLOAT32)
    method.update_logits(torch.optim.SGD(method.logits.parameters()))
    for cell, wanted in zip(CELL_TYPES, expected.get("step", []), strict=False):
        step = method.logits.ops(cell).detach() - before[cell]
        assert distance(step, wanted) < FLOAT32


def test_the_deviation_is_the_published_one() -> None:
    found = [deviation(epoch, 50, 10) for epoch in range(50)]
    assert found == pytest.approx(CASES["deviation_by_epoch_of_50"], rel=TOLERANCE)


def test_the_published_recipe_is_the_default() -> None:
    config = build_config({}, ["search.method=zarts"]).search
    assert (config.epochs, config.warmup_epochs, config.batch_size) == (50, 10, 64)
    assert (config.weight_lr, config.weight_lr_min, config.weight_decay) == (0.025, 1e-3, 3e-4)
    assert (zarts.SAMPLES, zarts.TUNING_STEPS, Zarts.architecture_interval) == (4, 10, 10)
    shorter = build_config({}, ["search.method=zarts", "search.epochs=20"]).search
    assert shorter.warmup_epochs == 4
    given = build_config({}, ["search.method=zarts", "search.warmup_epochs=7"]).search
    assert given.warmup_epochs == 7


# --- the weights of steps -----------------------------------------------------------------------


def test_a_loss_far_below_the_others_overflows_nothing() -> None:
    losses = torch.tensor([0.0, 80.0, 1.0], dtype=torch.float64)
    far = torch.full((3,), 1e4, dtype=torch.float64)
    weights = step_weights(losses, far, torch.zeros(3), 0.025)
    assert weights.tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert torch.exp(-(losses - 80.0) / zarts.TEMPERATURE).float().isinf().any()  # control


def test_a_likely_step_counts_less_than_an_unlikely_one() -> None:
    """In one dimension, where the density is not 0, computed term by term."""
    size, steps, gradient = 0.5, torch.tensor([-1.0, 0.5]), 1.0
    found = step_weights(torch.zeros(2), (steps + gradient).square(), steps.square(), size)
    wanted = []
    for step in steps.tolist():
        near = np.exp(-((step + gradient) ** 2) / (2 * size**2))
        density = 0.999 * near + 0.001 * np.exp(-(step**2) / 2 * size**2)
        wanted.append(1 / (density + 1e-4))
    assert found.tolist() == pytest.approx([one / sum(wanted) for one in wanted], rel=1e-5)
    assert found[0] < found[1]


# --- the tuning ---------------------------------------------------------------------------------


def context_with(method: Zarts, batches: list[Batch]) -> StepContext:
    optimizer = sgd(method.supernet, lr=0.5, momentum=0.9, weight_decay=3e-4)
    return replace(
        context_of(10, 50),
        weight_batch=lambda later=0: batches[later],
        weight_optimizer=optimizer,
    )


def test_each_copy_is_tuned_by_an_optimizer_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarts, "TUNING_STEPS", 3)
    monkeypatch.setattr(zarts, "TUNING_IMAGES", 3)
    method = zarts_in(space_of("s2", with_none=False))
    first = batch_of("weights")
    batches = [Batch(first.images.roll(one, 2), first.labels.roll(one)) for one in range(3)]
    context, judge = context_with(method, batches), batch_of("architecture")
    steps = [{cell: torch.full((14, 2), 0.1 * number) for cell in CELL_TYPES} for number in (1, 2)]
    for step in steps:
        step["normal"][:, 0] *= -1
    before = copy.deepcopy(method.supernet.state_dict())
    method.weight_gradients(first, context)  # which are left when the architecture half begins
    for name, value in method.supernet.state_dict().items():
        value.copy_(before[name])
    losses = method._losses_after(steps, judge, context).tolist()
    for name, value in method.supernet.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(weight.grad is None for weight in method.weights)
    for step, loss in zip(steps, losses, strict=True):
        network, logits = copy.deepcopy(method.supernet), copy.deepcopy(method.logits)
        with torch.no_grad():
            for cell in CELL_TYPES:
                logits.ops(cell).add_(step[cell])
        untuned = float(F.cross_entropy(network(judge.images, logits), judge.labels).detach())
        optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        for batch in batches:
            optimizer.zero_grad()
            prediction = network(batch.images[:3], logits)
            F.cross_entropy(prediction, batch.labels[:3]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
        tuned = float(F.cross_entropy(network(judge.images, logits), judge.labels).detach())
        assert loss == pytest.approx(tuned, rel=TOLERANCE)
        assert abs(tuned - untuned) > 1e-3  # control: weights that stay give another loss


def test_columns_without_a_candidate_do_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarts, "TUNING_STEPS", 1)
    method = zarts_in(RAGGED)
    context = context_with(method, [batch_of("weights")])
    method.architecture_gradients(batch_of("architecture"), context)
    for cell in CELL_TYPES:
        exists = method.logits.choosable(cell, none_too=True)
        gradient = method.logits.ops(cell).grad
        assert gradient is not None
        assert not gradient[~exists].any()
        assert gradient[exists].all()


def test_cells_that_are_not_there_do_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarts, "TUNING_STEPS", 1)
    search = search_by("zarts", "search.num_cells=1", space=CHEAP)
    normal, reduce = (search.logits.ops(cell).detach().clone() for cell in CELL_TYPES)
    architecture_step(search, 0)
    assert torch.equal(search.logits.ops("normal"), normal)
    assert not torch.equal(search.logits.ops("reduce"), reduce)

"""SmoothDARTS: perturbed mixtures and their gradients are those of the published code."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rivals import (
    TOLERANCE,
    batch_of,
    built,
    context_of,
    distance,
    random_values,
    rivals,
    space_of,
    weight_norm,
)
from torch import Tensor
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.errors import ConfigError
from d2nas.methods import sdarts
from d2nas.methods.base import StepContext
from d2nas.methods.passes import frozen
from d2nas.methods.sdarts import (
    SdartsAdversarial,
    SdartsRandom,
    adversarial,
    onto_simplex,
    perturbed,
    radius,
)
from d2nas.nn.mixed_supernet import mixture_weights
from d2nas.spaces import CELL_TYPES, SearchSpace

CASES: dict[str, Any] = rivals()["sdarts"]
RAGGED = SearchSpace(
    "ragged",
    (("skip_connect", "max_pool_3x3", "avg_pool_3x3"), ("skip_connect",)) * 7,
    (("max_pool_3x3", "skip_connect"), ("skip_connect",)) * 7,
)
EPOCH = {0.03: 0, 0.165: 25, 0.3: 50}
"""The epoch of 50 at which the box has a radius."""


def given_noises(clean: Sequence[Tensor], size: float) -> list[Tensor]:
    return [random_values(800 + index, size, own.shape) for index, own in enumerate(clean)]


def loss_of(method: SdartsRandom, weights: Sequence[Tensor], context: StepContext) -> Tensor:
    batch = batch_of("weights")
    return F.cross_entropy(method.predict(batch, context, method._pairs(weights)), batch.labels)


def test_the_radius_is_the_published_one() -> None:
    expected = CASES["epsilon_by_epoch_of_50"]
    assert [radius(epoch, 50) for epoch in range(50)] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("number", range(len(CASES["projection"])))
def test_the_projection_is_the_published_one(number: int) -> None:
    case = CASES["projection"][number]
    rows = torch.tensor(case["rows"], dtype=torch.float64)
    wanted = torch.tensor(case["projected"], dtype=torch.float64)
    found = onto_simplex(rows, torch.ones(rows.shape, dtype=torch.bool))
    assert (found - wanted).abs().max() < TOLERANCE


def test_a_row_of_which_nothing_is_left_becomes_its_largest() -> None:
    rows = torch.tensor([[-0.3, -0.1, 5.0], [2.0, 0.5, 5.0]])
    exists = torch.tensor([[True, True, False]] * 2)
    assert torch.allclose(
        onto_simplex(rows, exists), torch.tensor([[0.0, 1.0, 0.0], [2 / 3, 1 / 3, 0.0]])
    )


@pytest.mark.parametrize("case", sorted(CASES["random"]))
def test_random_perturbations_train_the_published_weights(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, (space, _, size) = CASES["random"][case], case.split()
    method, epoch = built(SdartsRandom, space_of(space, with_none=False)), EPOCH[float(size)]
    clean = method._clean()
    found = perturbed(clean, given_noises(clean, float(size)), method._exists())
    for own, wanted in zip(found, expected["perturbed_weights"], strict=True):
        assert distance(own, wanted) < TOLERANCE
    monkeypatch.setattr(method, "_random_start", lambda context: found)
    measured = method.weight_gradients(batch_of("weights"), context_of(epoch, 50))
    assert float(measured.loss) == pytest.approx(expected["training_loss"], rel=TOLERANCE)
    assert weight_norm(method) == pytest.approx(expected["weight_grad_l2"], rel=TOLERANCE)
    assert all(logits.grad is None for logits in method.logits.parameters())


@pytest.mark.parametrize("case", sorted(CASES["adversarial"]))
def test_the_adversary_is_the_published_one(case: str) -> None:
    expected = CASES["adversarial"][case]
    space, _, size, _, steps, _, start = case.split()
    method = built(SdartsAdversarial, space_of(space, with_none=False))
    clean, exists, context = method._clean(), method._exists(), context_of(0, 50)
    first = perturbed(clean, given_noises(clean, float(size)), exists)
    method.supernet.eval()
    with frozen(method.weights):
        found = adversarial(
            clean,
            first if start == "given" else [own.clone() for own in clean],
            exists,
            lambda weights: loss_of(method, weights, context),
            radius=float(size),
            steps=int(steps),
        )
    for own, wanted in zip(found, expected["perturbed_weights"], strict=True):
        assert distance(own, wanted) < TOLERANCE
    loss = float(loss_of(method, found, context).detach())
    assert loss == pytest.approx(expected["loss_eval_mode"], rel=TOLERANCE)
    method.supernet.train()
    loss_of(method, found, context).backward()
    assert weight_norm(method) == pytest.approx(expected["weight_grad_l2"], rel=TOLERANCE)


def test_an_adversary_that_lowers_the_loss_gives_the_clean_weights() -> None:
    clean = [torch.tensor([[0.5, 0.5]], dtype=torch.float64)]
    start = [torch.tensor([[0.6, 0.4]], dtype=torch.float64)]
    exists = [torch.ones(1, 2, dtype=torch.bool)]

    def peaked(weights: Sequence[Tensor]) -> Tensor:
        return -(weights[0][0, 0] - 0.5).abs()

    def rising(weights: Sequence[Tensor]) -> Tensor:
        return weights[0][0, 0]

    peak = adversarial(clean, start, exists, peaked, radius=0.1, steps=1)
    assert torch.equal(peak[0], clean[0])
    found = adversarial(clean, start, exists, rising, radius=0.1, steps=1)  # control
    assert found[0][0, 0] > 0.5


@pytest.mark.parametrize("kind", [SdartsRandom, SdartsAdversarial])
def test_a_step_perturbs_inside_the_simplex_and_leaves_the_logits_alone(
    kind: type[SdartsRandom],
) -> None:
    method = built(kind, RAGGED)
    before = {name: p.detach().clone() for name, p in method.logits.named_parameters()}
    context = context_of(25, 50)
    weights = method.perturbed_weights(batch_of("weights"), context)
    for cell in CELL_TYPES:
        ops, edges = weights[cell]
        exists = method.logits.choosable(cell, none_too=True)
        assert edges is None
        assert torch.allclose(ops.sum(1), torch.ones(14, dtype=torch.float64))
        assert not ops[~exists].any()
        clean, _ = mixture_weights(method.logits, cell)
        assert not torch.equal(ops, clean)
    again = method.perturbed_weights(batch_of("weights"), context)
    assert all(torch.equal(weights[cell][0], again[cell][0]) for cell in CELL_TYPES)
    assert method.supernet.training
    assert all(weight.requires_grad for weight in method.weights)
    assert all(torch.equal(before[name], p) for name, p in method.logits.named_parameters())


def test_the_adversary_raises_the_loss_and_no_perturbation_is_darts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = space_of("s2", with_none=False)
    batch, context = batch_of("weights"), context_of(49, 50)

    def loss(method: SdartsRandom) -> float:
        weights = method.perturbed_weights(batch, context)
        method.supernet.eval()
        return float(loss_of(method, [weights[cell][0] for cell in CELL_TYPES], context).detach())

    random, worst = loss(built(SdartsRandom, space)), loss(built(SdartsAdversarial, space))
    monkeypatch.setattr(sdarts, "SMALLEST_RADIUS", 0.0)
    monkeypatch.setattr(sdarts, "LARGEST_RADIUS", 0.0)
    plain = loss(built(SdartsRandom, space))
    method = built(SdartsRandom, space)
    method.supernet.eval()
    clean = F.cross_entropy(method.supernet(batch.images, method.logits), batch.labels)
    assert plain == pytest.approx(float(clean.detach()), rel=TOLERANCE)
    assert worst > max(random, plain)


def test_the_adversary_needs_the_weights_precision() -> None:
    """It looks at the supernet in evaluation, which bf16 features do not pass through."""
    with pytest.raises(ConfigError, match="precision must be fp32 or tf32 for sdarts-adv"):
        build_config({}, ["search.method=sdarts-adv", "search.precision=bf16"])
    assert build_config({}, ["search.method=sdarts-rs", "search.precision=bf16"])


def test_the_published_recipe_is_the_default() -> None:
    for name in ("sdarts-rs", "sdarts-adv"):
        config = build_config({}, [f"search.method={name}"]).search
        assert (config.epochs, config.weight_lr, config.warmup_epochs) == (50, 0.025, 0)

"""Every setting of a recipe does what its name says, told by one step against arithmetic."""

import math

import pytest
import torch
from recipes import flat, retraining_of
from searches import search_by
from torch.nn import functional as F

from d2nas.methods.base import StepContext
from d2nas.train.retrain import Retraining, train_step
from d2nas.train.search import Search, architecture_step, search_step, weight_step

TINY = 1e-7
"""A limit on gradients so low that next to nothing but the decay moves a weight."""


def moved_by(loop: Search | Retraining, step: int = 0) -> torch.Tensor:
    """How far one weight step moves all weights."""
    before = flat(loop.network)
    weight_step(loop, step) if isinstance(loop, Search) else train_step(loop, step)
    return flat(loop.network) - before


BUILDS = [
    pytest.param(lambda *settings: search_by("d2nas", *settings), "search.weight_lr", id="search"),
    pytest.param(retraining_of, "retrain.lr", id="retrain"),
]


@pytest.mark.parametrize(("build", "lr"), BUILDS)
def test_the_gradient_is_clipped_and_steps_are_as_long_as_the_learning_rate(build, lr):
    section, _, _ = lr.partition(".")
    settings = [f"{section}.weight_decay=0.0", f"{lr}=0.2", f"{section}.clip_norm=0.01"]
    assert float(moved_by(build(*settings)).norm()) == pytest.approx(0.2 * 0.01, rel=1e-3)
    unclipped = moved_by(build(*settings[:-1], f"{section}.clip_norm=1e9"))
    assert float(unclipped.norm()) > 10 * 0.2 * 0.01


@pytest.mark.parametrize(("build", "lr"), BUILDS)
def test_weights_decay(build, lr):
    section, _, _ = lr.partition(".")
    settings = [f"{lr}=0.5", f"{section}.clip_norm={TINY}"]
    for decay in (0.01, 0.1):
        loop = build(*settings, f"{section}.weight_decay={decay}")
        before = flat(loop.network)
        change = moved_by(loop)
        # A search's step leaves weights alone that were not sampled.
        touched = change != 0
        assert int(touched.sum()) > 0.05 * len(touched)
        expected = -0.5 * decay * before[touched]
        torch.testing.assert_close(change[touched], expected, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("nesterov", "factor"), [pytest.param(True, 1.9, id="on"), pytest.param(False, 1.0, id="off")]
)
def test_nesterov_looks_ahead_by_the_momentum(nesterov: bool, factor: float) -> None:
    settings = ["retrain.weight_decay=0.0", "retrain.lr=0.2", "retrain.clip_norm=0.01"]
    loop = retraining_of(
        *settings, "retrain.momentum=0.9", f"retrain.nesterov={str(nesterov).lower()}"
    )
    assert float(moved_by(loop).norm()) == pytest.approx(factor * 0.2 * 0.01, rel=1e-3)


def test_the_rate_of_each_step_is_the_schedules() -> None:
    search = search_by("d2nas", "search.epochs=4", "search.weight_lr_min=0.0")
    rates = [search.weight_optimizer.param_groups[0]["lr"] for _ in search.run()]
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates == pytest.approx([rate for rate in cosine for _ in range(2)])
    retraining = retraining_of("retrain.epochs=4", "retrain.warmup_epochs=1", "retrain.lr=0.4")
    rates = [retraining.optimizer.param_groups[0]["lr"] for _ in retraining.run()]
    cosine = [0.4 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, *cosine])


def test_the_temperature_of_each_draw_is_the_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_by("d2nas", "search.epochs=3")
    seen = []

    def spy(name: str) -> None:
        original = getattr(search.method, name)

        def called(batch: object, context: StepContext) -> object:
            seen.append(context.temperature)
            return original(batch, context)

        monkeypatch.setattr(search.method, name, called)

    spy("architecture_gradients")
    spy("weight_gradients")
    for step in range(search.num_steps):
        search_step(search, step)
    assert seen == pytest.approx([10.0] * 4 + [5.05] * 4 + [0.1] * 4)


def test_the_architecture_rate_is_adams_first_step() -> None:
    for rate in (0.01, 0.03):
        search = search_by("d2nas", f"search.arch_lr={rate}", "search.arch_weight_decay=0.0")
        before = flat(search.logits)
        architecture_step(search, 0)
        change = (flat(search.logits) - before).abs()
        # Adam divides the first gradient by its own size; only a tiny one is held back by epsilon.
        assert float(change.max()) == pytest.approx(rate, rel=1e-3)


def test_logits_decay() -> None:
    with_decay = search_by("d2nas", "search.arch_weight_decay=0.3")
    assert [group["weight_decay"] for group in with_decay.arch_optimizer.param_groups] == [0.3]


def test_edge_gates_are_scaled_in_the_backward_pass_alone() -> None:
    gradients = {}
    for scale in (1, 2):
        search = search_by("d2nas", f"search.edge_gate_scale={scale}", "search.arch_lr=1e-9")
        architecture_step(search, 0)
        gradients[scale] = {
            name: parameter.grad.clone() for name, parameter in search.logits.named_parameters()
        }
    for name, gradient in gradients[1].items():
        factor = 2 if name.endswith("edges") else 1
        torch.testing.assert_close(gradients[2][name], factor * gradient)


def test_the_auxiliary_loss_and_label_smoothing_count_as_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retraining = retraining_of("retrain.label_smoothing=0.2", "retrain.auxiliary_weight=0.4")
    logits, auxiliary = torch.randn(2, 16, 4).requires_grad_().unbind()
    labels = retraining.batches.batch(0)[1]
    monkeypatch.setattr(
        retraining.network, "forward", lambda *_arguments, **_options: (logits, auxiliary)
    )
    totals = []
    monkeypatch.setattr(torch.autograd, "backward", totals.append)
    train_step(retraining, 0)
    own, other = (F.cross_entropy(x, labels, label_smoothing=0.2) for x in (logits, auxiliary))
    torch.testing.assert_close(totals[0], own + 0.4 * other)


def test_drop_path_rises_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    retraining = retraining_of("retrain.drop_path=0.3", "retrain.epochs=3")
    seen = []
    forward = retraining.network.forward

    def spy(images: torch.Tensor, *, drop_path: torch.Tensor | None) -> object:
        seen.append(0.0 if drop_path is None else 1.0 - 1.0 / float(drop_path.max()))
        return forward(images, drop_path=drop_path)

    monkeypatch.setattr(retraining.network, "forward", spy)
    for step in range(retraining.num_steps):
        train_step(retraining, step)
    assert seen == pytest.approx([0.0] * 2 + [0.1] * 2 + [0.2] * 2)


def test_no_image_is_in_both_halves_of_a_search() -> None:
    search = search_by("d2nas")
    weight, architecture = (
        {image.numpy().tobytes() for image in batches.images.images_NCHW}
        for batches in (search.weight_batches, search.arch_batches)
    )
    assert len(weight) == len(architecture) == 16
    assert not weight & architecture


@pytest.mark.parametrize(
    ("method", "clip", "summed"),
    [
        ("d2nas", "sum", 1),
        ("d2nas", "branch", 6),
        ("entangled", "branch", 2),
        ("gdas", "branch", 1),
    ],
)
def test_the_clip_is_of_the_sum_or_of_one_branch(
    method: str, clip: str, summed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2 draws with 3 branches, or with one; GDAS has one draw."""
    limits: list[float] = []
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        "torch.nn.utils.clip_grad_norm_", lambda w, limit: limits.append(limit) or real(w, limit)
    )
    search = search_by(method, f"search.clip={clip}", "search.clip_norm=0.5")
    search_step(search, 0)
    assert limits == pytest.approx([0.5 * summed**0.5])


def test_a_supernet_that_is_no_better_than_chance_when_the_architecture_begins_is_told() -> None:
    search = search_by("d2nas", "search.epochs=4", "search.warmup_epochs=2")
    told = {}
    for epochs in range(1, 5):
        search.metrics = [{}] * epochs
        for loss in (1.38, 1.39):  # four classes: 1.386
            told[epochs, loss] = [*search.cautions({"weight_loss": loss})]
    assert [key for key, lines in told.items() if lines] == [(2, 1.39)]
    (line,) = told[2, 1.39]
    assert "1.39 as the architecture begins to learn, that of chance is 1.39" in line
    at_once = search_by("d2nas", "search.warmup_epochs=0")
    at_once.metrics = [{}]
    (line,) = at_once.cautions({"weight_loss": 2.0})
    assert "in the first epoch, in which the architecture learns" in line
    assert "search.clip=branch" in line
    branch = search_by("d2nas", "search.warmup_epochs=0", "search.clip=branch")
    for other in (branch, search_by("gdas")):
        other.metrics = [{}]
        (line,) = other.cautions({"weight_loss": 2.0})
        assert "search.clip" not in line
    assert not [*search_by("random").cautions({})]

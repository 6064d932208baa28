"""Weights of classes in the losses of searches and trainings."""

from dataclasses import replace

import pytest
import torch
from recipes import retraining_of
from searches import made_images, search_by
from torch import Tensor
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.measure.calibration import calibrated_loss
from d2nas.methods.base import Batch
from d2nas.methods.passes import measure
from d2nas.train.class_weights import class_weights
from d2nas.train.retrain import train_step
from d2nas.train.search import _context
from pipeline.stages import BY_NAME

COUNTS = [100, 25, 0, 4]


def test_balanced_classes_add_as_much_to_the_loss() -> None:
    weights = class_weights("balanced", COUNTS)
    assert weights is not None
    of_class = weights * torch.tensor(COUNTS)
    torch.testing.assert_close(of_class[[0, 1, 3]], of_class[0].expand(3))
    assert float(weights[2]) == 0.0
    assert float(of_class.sum()) / sum(COUNTS) == pytest.approx(1.0)


def test_the_root_lies_between() -> None:
    weights = class_weights("sqrt", COUNTS)
    assert weights is not None
    assert float(weights[3] / weights[0]) == pytest.approx(5.0)
    assert float((weights * torch.tensor(COUNTS)).sum()) / sum(COUNTS) == pytest.approx(1.0)
    even = class_weights("sqrt", [7, 7, 7])
    assert even is not None
    assert even.tolist() == [1.0, 1.0, 1.0]
    assert class_weights("none", COUNTS) is None


def test_an_images_loss_counts_as_often_as_it_weighs() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    weights = torch.tensor([1.0, 2.0, 0.0])
    loss, accuracy = measure(logits, labels, weights)
    twice = torch.tensor([0, 1, 1])
    torch.testing.assert_close(loss, F.cross_entropy(logits[twice], labels[twice]))
    assert float(accuracy) == float((logits.argmax(dim=1) == labels).double().mean())


def test_a_calibrated_loss_is_that_of_as_many_copies() -> None:
    numbers = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 4, generator=numbers)
    labels = torch.randint(0, 4, (8,), generator=numbers)
    copies = torch.tensor([0, 0, 1, 2, 3, 3, 3, 5])
    weights = torch.bincount(copies, minlength=8).double()
    loss, temperature = calibrated_loss(logits, labels, weights)
    assert (loss, temperature) == pytest.approx(calibrated_loss(logits[copies], labels[copies]))
    assert loss != pytest.approx(calibrated_loss(logits, labels)[0])


METHODS = [
    ("d2nas",),
    ("d2nas", "search.estimator=score"),
    ("d2nas", "search.estimator=mixed", "search.reward=loss"),
    ("gdas",),
    ("darts",),
    ("darts-second-order",),
    ("pc-darts-4",),
    ("sdarts-rs",),
    ("sdarts-adv",),
    ("snas",),
    ("rsws",),
    ("spos",),
]


@pytest.mark.parametrize("names", METHODS, ids=" ".join)
def test_both_halves_of_a_search_weigh_images(names: tuple[str, ...]) -> None:
    """Of twice the weight are losses, and so gradients, twice as large; but for steps ahead."""

    def gradients(weight: float | None) -> dict[str, Tensor]:
        search = search_by(*names, "search.weight_lr=1e-8", "search.weight_lr_min=0")
        found = {}
        for half, batches in (("weight", search.weight_batches), ("arch", search.arch_batches)):
            batch = search.batch(batches, 0)
            if weight is not None:
                batch = replace(batch, weights=torch.full((len(batch.labels),), weight))
            search.network.zero_grad()
            search.logits.zero_grad()
            is_weights = half == "weight"
            if is_weights:
                search.method.weight_gradients(batch, _context(search, 0, "weight-draw"))
            elif search.method.passes[0]:
                search.method.architecture_gradients(
                    batch, _context(search, 0, "architecture-draw")
                )
            module = search.network if is_weights else search.logits
            found |= {
                f"{half} {name}": parameter.grad.clone()
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            }
        return found

    plain, single, double = (gradients(weight) for weight in (None, 1.0, 2.0))
    assert plain
    for name, gradient in plain.items():
        torch.testing.assert_close(single[name], gradient, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(double[name], 2 * gradient, rtol=1e-3, atol=1e-6)


def test_a_search_weighs_the_images_of_rare_classes() -> None:
    data = made_images()
    data.train.labels_N[:5] = 0
    search = search_by("d2nas", "search.class_weights=balanced", data=data)
    weights = class_weights("balanced", [*data.class_counts().values()])
    assert weights is not None
    assert weights.unique().numel() > 1
    batch: Batch = search.batch(search.arch_batches, 0)
    assert batch.weights is not None
    torch.testing.assert_close(batch.weights, weights[batch.labels])
    assert search_by("d2nas").batch(search.arch_batches, 0).weights is None
    short = batch.first(3)
    assert short.weights is not None
    assert [len(short.images), len(short.labels), len(short.weights)] == [3, 3, 3]


def test_a_training_weighs_both_heads_and_smoothed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    retraining = retraining_of(
        "retrain.label_smoothing=0.2",
        "retrain.auxiliary_weight=0.4",
        "retrain.class_weights=balanced",
    )
    retraining.class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    logits, auxiliary = torch.randn(2, 16, 4).requires_grad_().unbind()
    labels = retraining.batches.batch(0)[1]
    monkeypatch.setattr(retraining.network, "forward", lambda *_, **__: (logits, auxiliary))
    totals: list[Tensor] = []
    monkeypatch.setattr(torch.autograd, "backward", totals.append)
    train_step(retraining, 0)
    own, other = (
        sum(
            (float(label) + 1) * F.cross_entropy(row[None], label[None], label_smoothing=0.2)
            for row, label in zip(x, labels, strict=True)
        )
        / len(labels)
        for x in (logits, auxiliary)
    )
    torch.testing.assert_close(totals[0], own + 0.4 * other)


def test_keys_of_before_hold_where_nothing_is_weighed() -> None:
    config = build_config({}, ["derive.candidates=3", "derive.rank_by=training"])
    weighed = build_config({}, ["retrain.class_weights=sqrt", "search.class_weights=sqrt"])
    for stage in ("search", "derive", "retrain"):
        assert "class_weights" not in str(BY_NAME[stage].own_config(config))
    for stage in ("search", "retrain"):
        assert "'class_weights': 'sqrt'" in str(BY_NAME[stage].own_config(weighed))

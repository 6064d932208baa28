"""A teacher's part of the loss: by its formula, on the images that the network sees, resumed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recipes import flat, retraining_of
from torch import Tensor
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.config.effects import without_effect
from d2nas.data.mixing import mix
from d2nas.errors import ConfigError
from d2nas.parallel import Ranks
from d2nas.randomness import generator
from d2nas.train import distillation
from d2nas.train.candidates import short_recipe
from d2nas.train.distillation import soft_losses
from d2nas.train.retrain import Retraining, train_step

PLAIN = ("data.crop_padding=0", "data.flip=false")
"""Without augmentation: batches are the data set's images as they are."""


class Teacher:
    """Answers by the mean of each channel; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []
        numbers = torch.Generator().manual_seed(3)
        self._weights = torch.randn(3, 4, generator=numbers)

    def __call__(self, images: Tensor) -> Tensor:
        self.asked.append(images.clone())
        return images.mean((2, 3)) @ self._weights


def total_of(retraining: Retraining, monkeypatch: pytest.MonkeyPatch, output: Any) -> Tensor:
    """What the first step's backward is of, where the network's output is given."""
    monkeypatch.setattr(retraining.network, "forward", lambda *_, **__: output)
    totals: list[Tensor] = []
    monkeypatch.setattr(torch.autograd, "backward", totals.append)
    train_step(retraining, 0)
    return totals[0].detach()


def soft_by_hand(logits: Tensor, answers: Tensor, temperature: float) -> list[float]:
    """T^2 sum_c p_c (log p_c - log q_c) of each image, in Python's own arithmetic."""
    found = []
    for own, wanted in zip(logits.tolist(), answers.tolist(), strict=True):
        p, q = ([math.exp(value / temperature) for value in row] for row in (wanted, own))
        p, q = ([value / sum(row) for value in row] for row in (p, q))
        terms = [a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)]
        found.append(temperature**2 * sum(terms))
    return found


def test_the_loss_is_its_formula() -> None:
    logits, answers = torch.randn(2, 6, 5, dtype=torch.float64).unbind()
    for temperature in (1.0, 4.0):
        found = soft_losses(logits, answers, temperature)
        wanted = torch.tensor(soft_by_hand(logits, answers, temperature), dtype=torch.float64)
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(soft_losses(answers + 7.0, answers, 4.0), torch.zeros(6).double())
    shares = answers.softmax(1).log()  # of the same probabilities
    torch.testing.assert_close(soft_losses(logits, shares, 4.0), soft_losses(logits, answers, 4.0))


def test_its_gradient_at_a_high_temperature_is_that_of_matched_logits() -> None:
    logits, answers = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    logits, answers = (one - one.mean(1, keepdim=True) for one in (logits, answers))
    logits.requires_grad_()
    (found,) = torch.autograd.grad(soft_losses(logits, answers, 1e3).sum(), logits)
    torch.testing.assert_close(found, (logits - answers).detach() / 4, rtol=1e-2, atol=1e-3)


def test_a_training_learns_from_labels_and_teacher_by_their_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = Teacher()
    retraining = retraining_of(
        "retrain.teacher_weight=0.7",
        "retrain.teacher_temperature=3.0",
        "retrain.label_smoothing=0.2",
        "retrain.auxiliary_weight=0.4",
        "retrain.class_weights=balanced",
        teacher=teacher,
    )
    retraining.class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    images, labels = retraining.batches.batch(0)
    logits, auxiliary = torch.randn(2, 16, 4).requires_grad_().unbind()
    found = total_of(retraining, monkeypatch, (logits, auxiliary))
    torch.testing.assert_close(teacher.asked[0], images)

    def part(own: Tensor) -> Tensor:
        soft = torch.tensor(soft_by_hand(own, teacher(images), 3.0))
        hard = F.cross_entropy(own, labels, label_smoothing=0.2, reduction="none")
        return ((0.3 * hard + 0.7 * soft) * (labels + 1)).mean()

    torch.testing.assert_close(found, (part(logits) + 0.4 * part(auxiliary)).detach())


def test_a_teacher_sees_images_as_they_were_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher()
    retraining = retraining_of(
        "retrain.mixup=0.5", "retrain.class_weights=balanced", teacher=teacher
    )
    retraining.class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    images, labels = retraining.batches.batch(0)
    mixed = mix(images, mixup=0.5, cutmix=0.0, generator=generator(0, "mix", 0))
    logits = torch.randn(16, 4, requires_grad=True)
    found = total_of(retraining, monkeypatch, logits)
    torch.testing.assert_close(teacher.asked[0], mixed.images)
    soft = torch.tensor(soft_by_hand(logits, teacher(mixed.images), 4.0))
    both = [(mixed.share, labels), (1 - mixed.share, labels[mixed.partners])]
    weights = sum(share * (own + 1) for share, own in both)
    hard = sum(
        share * (F.cross_entropy(logits, own, reduction="none") * (own + 1)).mean()
        for share, own in both
    )
    torch.testing.assert_close(found, (0.1 * hard + 0.9 * (soft * weights).mean()).detach())


def weights_after(teacher: Callable[[Tensor], Tensor] | None, *settings: str) -> Tensor:
    retraining = retraining_of(*settings, teacher=teacher)
    for _ in retraining.run():
        pass
    return flat(retraining.network)


def test_without_augmentation_each_image_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "EVALUATION_BATCH", 5)
    teacher = Teacher()
    kept = weights_after(teacher, *PLAIN, "retrain.epochs=4")
    assert [len(images) for images in teacher.asked] == [5] * 6 + [2]
    monkeypatch.setattr(distillation, "MAX_KEPT_BYTES", 4 * 4 * 32 - 1)
    teacher = Teacher()
    anew = weights_after(teacher, *PLAIN, "retrain.epochs=4")
    assert [len(images) for images in teacher.asked] == [16] * 8  # every batch
    torch.testing.assert_close(kept, anew)


@pytest.mark.parametrize(
    "setting",
    [
        "data.crop_padding=1",
        "data.flip=true",
        "retrain.cutout=2",
        "retrain.augment=trivial",
        "retrain.erasing=0.1",
        "retrain.cutmix=1.0",
    ],
)
def test_control_what_changes_images_has_each_batch_answered(setting: str) -> None:
    teacher = Teacher()
    weights_after(teacher, *PLAIN, setting)
    assert [len(images) for images in teacher.asked] == [16] * 4


def test_several_processes_have_their_own_images_answered() -> None:
    teacher = Teacher()
    retraining = retraining_of(*PLAIN)
    batches = retraining.batches
    batches.order = type(batches.order)(32, 16, 0, "retrain", Ranks(rank=1, size=2))
    answers = distillation.Answers(teacher, batches, 4, mixes=False)
    images, _ = batches.batch(0)
    assert torch.equal(answers.of(0, images), teacher(images))
    assert len(teacher.asked[0]) == 8


@pytest.mark.parametrize("augmentation", [(), PLAIN], ids=["augmented", "as they are"])
def test_each_step_can_be_resumed_bit_equal(augmentation: tuple[str, ...]) -> None:
    settings = (*augmentation, "retrain.epochs=3", "retrain.ema=0.9")
    whole = retraining_of(*settings, teacher=Teacher())
    states = {0: whole.capture(0)}
    for report in whole.run():
        states[report.step + 1] = whole.capture(report.step + 1)
    end = states.pop(whole.num_steps)
    for state in states.values():
        resumed = retraining_of(*settings, teacher=Teacher())
        for _ in resumed.run(state):
            pass
        found = resumed.capture(resumed.num_steps)
        assert all(torch.equal(found.tensors[name], end.tensors[name]) for name in end.tensors)
        assert resumed.metrics == whole.metrics


def test_control_teacher_weight_and_temperature_change_the_training() -> None:
    found = [
        weights_after(None),
        weights_after(Teacher()),
        weights_after(Teacher(), "retrain.teacher_weight=0.5"),
        weights_after(Teacher(), "retrain.teacher_temperature=2.0"),
    ]
    assert all(not torch.equal(a, b) for at, a in enumerate(found) for b in found[:at])
    assert torch.equal(found[0], weights_after(Teacher(), "retrain.teacher_weight=0.0"))


def test_a_signal_is_let_through_while_all_images_are_answered() -> None:
    retraining = retraining_of(*PLAIN, teacher=Teacher())

    def stalled(seconds: float) -> None:
        raise TimeoutError

    retraining.batches.stalled = stalled
    with pytest.raises(TimeoutError):
        train_step(retraining, 0)


def test_a_name_alone_is_no_teacher_of_the_library() -> None:
    with pytest.raises(ConfigError, match=r"retrain\.teacher is opened by"):
        retraining_of("retrain.teacher=big.onnx")
    retraining_of("retrain.teacher=big.onnx", teacher=Teacher())


def test_cells_are_compared_without_a_teacher() -> None:
    config = build_config({}, ["retrain.teacher=big.onnx"]).retrain
    assert short_recipe(config, 2).teacher is None


def test_keys_of_a_teacher_are_told_where_there_is_none() -> None:
    keys = ["retrain.teacher_weight", "retrain.teacher_mean"]
    assert without_effect(build_config({}), keys) == {"retrain.teacher=none": keys}
    assert without_effect(build_config({}, ["retrain.teacher=big.onnx"]), keys) == {}

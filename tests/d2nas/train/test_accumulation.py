"""Steps of several micro-batches: their gradient is the whole batch's, in less memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recipes import flat, retraining_of
from torch import Tensor, nn

from d2nas.config import build_config
from d2nas.errors import ConfigError
from d2nas.measure.cost import LiveBytes
from d2nas.train import retrain
from d2nas.train.retrain import Retraining, has_auxiliary, train_step

RECIPES = {
    "plain": (),
    "weighed": ("class_weights=balanced", "label_smoothing=0.1", "drop_path=0.4"),
    "mixed": ("mixup=0.4", "cutmix=1.0", "augment=trivial", "erasing=0.5"),
    "taught": ("mixup=0.4", "class_weights=sqrt", "teacher_weight=0.7"),
    "averaged": ("ema=0.9", "optimizer=adamw", "lr=0.01"),
}
SEVEN = 7
"""Micro-batches of 16 images: of two and of three."""


def brightness(images: Tensor) -> Tensor:
    """A teacher of four classes, who answers by what an image is like."""
    return images.mean((1, 2, 3))[:, None] * torch.arange(4.0)


def training(*settings: str, statistics: bool = True) -> Retraining:
    """Without ``statistics`` of its images, batch norm is a fixed scale."""
    teacher = None
    if any(setting.startswith("teacher") for setting in settings):
        teacher = brightness
    made = retraining_of(*(f"retrain.{setting}" for setting in settings), teacher=teacher)
    if not statistics:
        for module in made.network.modules():
            if isinstance(module, nn.BatchNorm2d) or type(module).__name__ == "BatchNorm":
                module.eval()
    return made


def gradient_of(made: Retraining, step: int = 0) -> Tensor:
    found: list[Tensor] = []
    made.optimizer.register_step_pre_hook(
        lambda *_: found.append(
            torch.cat([weight.grad.flatten() for weight in made.weights if weight.grad is not None])
        )
    )
    train_step(made, step)
    return found[0].clone()


@pytest.mark.parametrize("name", RECIPES)
def test_the_gradient_is_that_of_the_whole_batch(name: str) -> None:
    settings = (*RECIPES[name], "clip_norm=1e6")
    whole = training(*settings, statistics=False)
    parts = training(*settings, f"accumulate={SEVEN}", statistics=False)
    assert sorted({part.stop - part.start for part in parts.micro_batches}) == [2, 3]
    for step in range(3):
        wanted, found = gradient_of(whole, step), gradient_of(parts, step)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.norm()))
    for ours, theirs in ((parts.network, whole.network), (parts.average, whole.average)):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parts.trained.sums.values, whole.trained.sums.values)


def test_control_micro_batches_of_other_sizes_do_not_count_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = retrain._forward

    def as_if_alike(made: Retraining, batch: Any, part: slice) -> Any:
        factor = len(batch.images) / (part.stop - part.start) / len(made.micro_batches)
        return [factor * one for one in forward(made, batch, part)]

    wanted = gradient_of(training("clip_norm=1e6", statistics=False))
    monkeypatch.setattr(retrain, "_forward", as_if_alike)
    found = gradient_of(training("clip_norm=1e6", f"accumulate={SEVEN}", statistics=False))
    assert float((found - wanted).norm()) > 0.01 * float(wanted.norm())


def test_the_images_of_a_step_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[Tensor]] = {}

    def watched(made: Retraining) -> Callable[..., None]:
        found = seen.setdefault(made.config.accumulate, [])

        def hook(_module: nn.Module, arguments: Any, options: Any) -> None:
            factors = options["drop_path"][:, :, 0, 0, 0].T
            found.append(torch.cat([arguments[0].flatten(1), factors], dim=1))

        return hook

    for count in (1, 5):
        made = training(*RECIPES["mixed"], "drop_path=0.5", f"accumulate={count}")
        made.network.register_forward_pre_hook(watched(made), with_kwargs=True)
        for step in (2, 3):
            train_step(made, step)
    assert len(seen[5]) == 5 * len(seen[1])
    assert torch.equal(torch.cat(seen[5]), torch.cat(seen[1]))


def test_batch_norm_sees_one_micro_batch_at_a_time() -> None:
    whole, parts = training(), training("accumulate=4")
    for made in (whole, parts):
        train_step(made, 0)
    counted = {
        made.config.accumulate: {
            int(value) for name, value in made.network.named_buffers() if "num_batches" in name
        }
        for made in (whole, parts)
    }
    assert counted == {1: {1}, 4: {4}}


def test_memory_falls() -> None:
    def peak(*settings: str) -> int:
        made = training(*settings)
        made.batches.batch(0)
        with LiveBytes(list(made.network.state_dict().values())) as live:
            train_step(made, 0)
        return live.peak

    assert peak("accumulate=8") < 0.4 * peak()


def test_a_scaled_loss_is_scaled_back_once() -> None:
    whole = gradient_of(training("precision=fp16", "clip_norm=1e6", statistics=False))
    parts = gradient_of(
        training("precision=fp16", "clip_norm=1e6", "accumulate=4", statistics=False)
    )
    torch.testing.assert_close(parts, whole, rtol=0.1, atol=0.02 * float(whole.norm()))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("accumulate=17",), r"accumulate \(17\) must not exceed retrain.batch_size \(16\)"),
        (("accumulate=9", "auxiliary=true"), "accumulate must be at most 8"),
        (("batch_size=64", "accumulate=40"), "accumulate=40 is too much for the 32 images"),
    ],
)
def test_more_micro_batches_than_images_are_refused(
    settings: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        training(*settings)


def test_an_auxiliary_head_that_is_left_to_fit_fits_the_micro_batches() -> None:
    def fits(count: int) -> bool:
        settings = (
            f"retrain.accumulate={count}",
            "retrain.batch_size=16",
            "retrain.auxiliary=auto",
        )
        return has_auxiliary(build_config({}, settings).retrain, 32)

    assert [fits(count) for count in (1, 8, 9)] == [True, True, False]

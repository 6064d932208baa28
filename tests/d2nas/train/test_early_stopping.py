"""Stopping by training images that are held out: which, when, and what is deployed."""

import dataclasses
from typing import Any

import pytest
import torch
from recipes import flat, retraining_of
from searches import config_of, made_images
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.config.effects import without_effect
from d2nas.data.images import ImageSet, Normalizer
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from d2nas.train.candidates import short_recipe
from d2nas.train.loop import predict
from d2nas.train.retrain import Retraining, hold_out, retrain
from d2nas.train.schedules import warmup_cosine

FIVE = ("retrain.epochs=5", "retrain.batch_size=8")


def scripted(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Let the losses after the epochs be these, whatever the images say."""
    monkeypatch.setattr(
        Retraining, "_validate", lambda made, _: (losses[len(made.metrics) - 1], 0.5)
    )


def finished(*settings: str) -> Retraining:
    made = retraining_of(*settings)
    for _ in made.run():
        pass
    return made


def rows_of(images: Any) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images_NCHW}


def test_a_part_of_each_class_is_held_out_and_never_trained_on() -> None:
    data = made_images(half=40)
    counts = data.class_counts()
    rest, held = hold_out(data, 0.25, seed=3)
    assert isinstance(held, ImageSet)
    assert rows_of(rest.train) | rows_of(held) == rows_of(data.train)
    assert not rows_of(rest.train) & rows_of(held)
    kept = rest.class_counts()
    assert all(kept[name] == count - round(count / 4) for name, count in counts.items())
    assert rest.test is data.test
    assert (rest.mean, rest.std) == (data.mean, data.std)
    again, other = (hold_out(data, 0.25, seed=seed)[1] for seed in (3, 4))
    assert rows_of(again) == rows_of(held) != rows_of(other)
    made = retraining_of("retrain.patience=2")
    assert isinstance(made.batches.images, ImageSet)
    assert made.validation is not None
    assert not rows_of(made.batches.images) & rows_of(made.validation)
    everything = retraining_of()  # control
    assert len(everything.batches.images) == len(made.batches.images) + len(made.validation)


def test_a_class_of_one_image_keeps_it() -> None:
    data = made_images()
    images = data.train
    assert isinstance(images, ImageSet)
    first = ImageSet(images.images_NCHW[:5], images.labels_N[:5])  # of one class two
    rest, held = hold_out(dataclasses.replace(data, train=first), 0.9, seed=0)
    assert (len(rest.train), len(held)) == (4, 1)
    with pytest.raises(ConfigError, match="no class has a training image to be held out"):
        hold_out(rest, 0.9, seed=0)


def test_test_images_have_no_say() -> None:
    config = config_of("d2nas", *FIVE, "retrain.patience=1", "retrain.num_cells=2").retrain
    config = config.model_copy(update={"init_channels": 4, "auxiliary": False, "cutout": 0})
    data = made_images()
    other = dataclasses.replace(data, test=data.arch_half)
    first, second = (
        retrain(Genotype.published("DARTS_V2"), one, config, seed=1) for one in (data, other)
    )
    assert torch.equal(flat(first), flat(second))


@pytest.mark.parametrize("ema", [(), ("retrain.ema=0.5",)])
@pytest.mark.parametrize("best", [0, 2])
def test_the_weights_of_the_best_epoch_are_deployed(
    ema: tuple[str, ...], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, *(2.0 + abs(epoch - best) for epoch in range(5)))
    made = retraining_of("retrain.patience=4", *ema, *FIVE)
    ends = []
    for report in made.run():
        if report.metrics is not None:
            ends.append({k: v.clone() for k, v in made._newest_network().state_dict().items()})
    assert made.best_epoch == best
    assert len(ends) == 5
    deployed = made.deployed_weights()
    assert all(torch.equal(value, ends[best][name]) for name, value in deployed.items())
    assert any(not torch.equal(value, ends[-1][name]) for name, value in deployed.items())


@pytest.mark.parametrize("ema", [(), ("retrain.ema=0.5",)])
def test_a_row_has_what_the_weights_to_be_deployed_reach(ema: tuple[str, ...]) -> None:
    made = finished("retrain.patience=1", "retrain.epochs=1", *ema)
    assert made.validation is not None
    data = made_images()
    logits = predict(
        made.deployed_network().eval(), made.validation, Normalizer(data.mean, data.std)
    )
    wanted = F.cross_entropy(logits.double(), made.validation.labels_N)
    assert made.metrics[0]["validation_loss"] == pytest.approx(float(wanted))
    assert made.network.training


@pytest.mark.parametrize(
    ("patience", "losses", "epochs", "best"),
    [
        (1, (3.0, 2.0, 2.0, 1.0, 1.0), 3, 1),  # an equal loss is no improvement
        (2, (3.0, 4.0, 4.0, 1.0, 1.0), 3, 0),
        (3, (3.0, 4.0, 4.0, 1.0, 1.0), 5, 3),
        (5, (3.0, 4.0, 5.0, 6.0, 7.0), 5, 0),
        (100_000, (5.0, 4.0, 3.0, 2.0, 1.0), 5, 4),
    ],
)
def test_a_training_stops_when_its_patience_ends(
    patience: int,
    losses: tuple[float, ...],
    epochs: int,
    best: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, *losses)
    made = finished(f"retrain.patience={patience}", *FIVE)
    assert made.best_epoch == best
    assert len(made.metrics) == epochs
    assert made.num_steps == epochs * made.steps_per_epoch


def test_without_patience_nothing_is_held_out_and_all_epochs_run() -> None:
    made = finished(*FIVE)
    assert len(made.metrics) == 5
    assert "validation_loss" not in finished(*FIVE).metrics[-1]


def test_the_schedule_is_that_of_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 1.0, 2.0)
    made = finished("retrain.patience=1", "retrain.warmup_epochs=1", *FIVE)
    steps = made.steps_per_epoch
    assert len(made.metrics) == 2
    for step in (0, 2 * steps - 1):
        assert made.lr_at(step) == warmup_cosine(step, 5 * steps, steps, 0.025, 0.0)
    assert made.metrics[-1]["lr"] == made.lr_at(2 * steps - 1) > 0.02


def test_a_class_counts_in_the_loss_as_in_training() -> None:
    plain, weighed = (
        finished("retrain.patience=1", "retrain.epochs=1", f"retrain.class_weights={kind}")
        for kind in ("none", "balanced")
    )
    assert weighed.validation is not None
    assert weighed.class_weights is not None
    data = made_images()
    logits = predict(weighed.network.eval(), weighed.validation, Normalizer(data.mean, data.std))
    labels = weighed.validation.labels_N
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    wanted = (losses * weighed.class_weights[labels]).mean()
    assert weighed.metrics[0]["validation_loss"] == pytest.approx(float(wanted))
    assert plain.metrics[0]["validation_loss"] > 0


def test_what_has_stopped_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 1.0, 2.0)
    made = finished("retrain.patience=1", *FIVE)
    state = made.capture(made.num_steps)
    again = retraining_of("retrain.patience=1", *FIVE)
    assert list(again.run(state)) == []
    assert len(again.metrics) == 2
    assert again.num_steps == state.step
    assert again.best_epoch == made.best_epoch
    found, wanted = again.deployed_weights(), made.deployed_weights()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_short_trainings_do_not_stop() -> None:
    config = build_config({}, ["retrain.patience=3"]).retrain
    assert short_recipe(config, 5).patience is None


def test_without_patience_the_fraction_is_not_read() -> None:
    key = ["retrain.validation_fraction"]
    assert without_effect(build_config({}), key) == {"retrain.patience=none": key}
    assert without_effect(build_config({}, ["retrain.patience=3"]), key) == {}

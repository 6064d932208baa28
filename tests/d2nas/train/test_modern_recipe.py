"""Moving averages, AdamW and mixed images in a training: by arithmetic, and resumed bit-equal."""

import copy
from typing import Any

import pytest
import torch
from recipes import flat, retraining_of
from searches import made_images
from torch import Tensor, nn
from torch.nn import functional as F

from d2nas.config import RetrainConfig, build_config
from d2nas.config.effects import preset_line, without_effect
from d2nas.data.images import Normalizer
from d2nas.data.mixing import mix
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from d2nas.measure.calibration import calibrated_loss
from d2nas.parallel import Ranks
from d2nas.randomness import generator
from d2nas.train.candidates import judge
from d2nas.train.loop import adamw, predict
from d2nas.train.retrain import train_step
from d2nas.train.weight_average import WeightAverage
from pipeline.commands.configuration import configure
from pipeline.presets import values_of_presets
from pipeline.stages.stage import LATER_SETTINGS, training_settings

ALL = (
    "retrain.optimizer=adamw",
    "retrain.ema=0.9",
    "retrain.augment=trivial",
    "retrain.erasing=0.4",
    "retrain.mixup=0.3",
    "retrain.cutmix=1.0",
    "retrain.label_smoothing=0.1",
    "retrain.class_weights=sqrt",
    "retrain.epochs=3",
)


def test_an_average_follows_fast_at_first_and_then_forgets_slowly() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average = WeightAverage(network, decay=0.5)
    wanted, seen = flat(network), 0
    for step in range(8):
        with torch.no_grad():
            for value in (*network.parameters(), *network.buffers()):
                value.add_(1)
        seen += 1
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * flat(network)
        torch.testing.assert_close(flat(average.network), wanted)
    assert min((1 + step) / (10 + step) for step in range(8)) == 0.1
    norm = average.network[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert int(norm.num_batches_tracked or 0) == seen  # counted, not averaged
    assert 0 < float(norm.running_mean[0]) < seen  # type: ignore[index]
    assert all(not one.requires_grad for one in average.parameters())


def test_what_is_deployed_is_the_average() -> None:
    retraining = retraining_of("retrain.ema=0.7")
    own = retraining_of()
    for step in range(3):
        train_step(retraining, step)
        train_step(own, step)
    torch.testing.assert_close(flat(retraining.network), flat(own.network), rtol=0, atol=0)
    assert retraining.average is not None
    deployed = retraining.deployed_weights()
    averaged = retraining.average.network.state_dict()
    assert all(torch.equal(deployed[name], averaged[name]) for name in deployed)
    assert deployed.keys() == own.deployed_weights().keys()
    assert any(not torch.equal(deployed[name], own.deployed_weights()[name]) for name in deployed)


def test_a_short_training_is_judged_by_what_would_be_deployed() -> None:
    data, genotype = made_images(), Genotype.published("DARTS_V2")
    retraining = retraining_of("retrain.ema=0.9")
    for step in range(4):
        train_step(retraining, step)
    found = judge(retraining, genotype, data)
    assert retraining.average is not None
    normalizer = Normalizer(data.mean, data.std)
    losses = [
        calibrated_loss(
            predict(network.eval(), data.arch_half, normalizer), data.arch_half.labels_N
        )[0]
        for network in (retraining.average.network, retraining.network)
    ]
    assert found.calibrated_loss == pytest.approx(losses[0])
    assert found.calibrated_loss != pytest.approx(losses[1])


def test_a_presets_learning_rate_of_sgd_is_told() -> None:
    config = configure("small", ["retrain.optimizer=adamw"])
    line = preset_line(config, values_of_presets("small"), ["retrain.optimizer"])
    assert line == "retrain.lr=0.1 (small) in place of AdamW's 0.001"
    given = configure("small", ["retrain.optimizer=adamw", "retrain.lr=0.002"])
    keys = ["retrain.optimizer", "retrain.lr"]
    assert preset_line(given, values_of_presets("small"), keys) is None
    assert preset_line(configure("small", []), values_of_presets("small"), []) is None


def test_adamw_is_pytorchs() -> None:
    torch.manual_seed(0)
    one = nn.Linear(5, 4)
    other = copy.deepcopy(one)
    ours = adamw(one, lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(3, 5)
        for module, optimizer in ((one, ours), (other, theirs)):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(flat(one), flat(other), rtol=1e-5, atol=1e-7)


def test_defaults_suit_the_optimizer() -> None:
    found = build_config({}, ["retrain.optimizer=adamw"]).retrain
    assert (found.lr, found.weight_decay) == (1e-3, 0.05)
    plain = RetrainConfig()
    assert (plain.optimizer, plain.lr, plain.weight_decay) == ("sgd", 0.025, 3e-4)
    given = build_config({}, ["retrain.optimizer=adamw", "retrain.lr=0.01"]).retrain
    assert (given.lr, given.weight_decay) == (0.01, 0.05)
    keys = ["retrain.momentum", "retrain.nesterov"]
    config = build_config({}, ["retrain.optimizer=adamw"])
    assert without_effect(config, keys) == {"retrain.optimizer=adamw": keys}
    assert without_effect(build_config({}), keys) == {}


def test_a_mixed_image_is_of_both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    retraining = retraining_of("retrain.mixup=0.5", "retrain.label_smoothing=0.2")
    images, labels = retraining.batches.batch(0)
    seen: list[Tensor] = []
    logits = torch.randn(len(labels), 4, requires_grad=True)

    def forward(given: Tensor, **_: Any) -> Tensor:
        seen.append(given)
        return logits

    monkeypatch.setattr(retraining.network, "forward", forward)
    totals: list[Tensor] = []
    monkeypatch.setattr(torch.autograd, "backward", totals.append)
    train_step(retraining, 0)
    mixed = mix(images, mixup=0.5, cutmix=0.0, generator=generator(0, "mix", 0))
    torch.testing.assert_close(seen[0], mixed.images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    targets = F.one_hot(labels, 4) * mixed.share
    targets = targets + F.one_hot(labels[mixed.partners], 4) * (1 - mixed.share)
    wanted = F.cross_entropy(logits, targets, label_smoothing=0.2)
    torch.testing.assert_close(totals[0], wanted)


def test_images_are_not_mixed_over_processes() -> None:
    with pytest.raises(ConfigError, match="are for one process"):
        retraining_of("retrain.mixup=0.1", ranks=Ranks(size=2))


def test_each_step_of_it_can_be_resumed_bit_equal() -> None:
    whole = retraining_of(*ALL)
    states = {0: whole.capture(0)}
    for report in whole.run():
        states[report.step + 1] = whole.capture(report.step + 1)
    end = states.pop(whole.num_steps)
    assert any(name.startswith("average.") for name in end.tensors)
    for state in states.values():
        resumed = retraining_of(*ALL)
        for _ in resumed.run(state):
            pass
        found = resumed.capture(resumed.num_steps)
        assert found.tensors.keys() == end.tensors.keys()
        assert all(torch.equal(found.tensors[name], end.tensors[name]) for name in end.tensors)
        assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("left_out", range(5), ids=lambda index: ALL[index])
def test_control_each_setting_changes_the_training(left_out: int) -> None:
    def weights(*settings: str) -> Tensor:
        retraining = retraining_of(*settings)
        for step in range(2):
            train_step(retraining, step)
        return torch.cat([value.flatten() for value in retraining.deployed_weights().values()])

    settings = (*ALL[:5], ALL[6])
    less = [one for index, one in enumerate(settings) if index != left_out]
    assert not torch.equal(weights(*settings), weights(*less))


def test_keys_of_before_hold_where_nothing_of_it_is_set() -> None:
    assert not {*LATER_SETTINGS} & {*training_settings(build_config({}))}
    later = ["retrain.accumulate=2", "retrain.patience=3", "retrain.validation_fraction=0.2"]
    later += [one for one in ALL if "smoothing" not in one and "epochs" not in one]
    of_libraries = ["derive.model=torchvision:resnet18", "retrain.pretrained=true"]
    config = build_config({}, [*later, *of_libraries])
    assert {*LATER_SETTINGS} <= {*training_settings(config)}

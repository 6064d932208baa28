"""A library's network in training: first weights by seed, and resumed bit-equal."""

import copy

import pytest
import torch
from library_networks import SMALL, give_small_network
from recipes import flat, retraining_of
from searches import CPU, config_of, made_images

from d2nas.nn.library_network import LibraryNetwork
from d2nas.train.retrain import Retraining, train_step


def training_of(*overrides: str, seed: int = 0) -> Retraining:
    plain = ["retrain.cutout=0", "retrain.batch_size=16", "retrain.epochs=2"]
    config = config_of("d2nas", *plain, *overrides, "derive.model=torchvision:small_net")
    return Retraining(
        config.retrain, SMALL, made_images(), seed=seed, device=CPU, augmentation=config.data
    )


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    give_small_network(monkeypatch)


def test_the_seed_decides_the_first_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = flat(training_of().network)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(flat(training_of().network), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(flat(training_of(seed=1).network), first)


@pytest.mark.parametrize("overrides", [(), ("retrain.ema=0.9", "retrain.mixup=0.2")])
def test_a_training_stopped_at_any_step_goes_on_to_the_same_bits(
    overrides: tuple[str, ...],
) -> None:
    whole = training_of(*overrides)
    states = []
    for report in whole.run():
        states.append(copy.deepcopy(whole.capture(report.step + 1)))
    deployed = whole.deployed_weights()
    assert len(states) == whole.num_steps
    for state in states[:-1]:
        again = training_of(*overrides)
        torch.rand(7)  # whatever others draw meanwhile
        for _ in again.run(state):
            pass
        assert all(torch.equal(again.deployed_weights()[k], v) for k, v in deployed.items())
        assert again.metrics == whole.metrics


def test_the_dropout_of_a_step_is_that_step_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Control: with PyTorch's own generator in its place the bits differ.
    def weights_after_a_step() -> torch.Tensor:
        training = training_of()
        training.network.train()
        torch.rand(5)
        train_step(training, 0)
        return flat(training.network)

    assert torch.equal(weights_after_a_step(), weights_after_a_step())
    monkeypatch.setattr(LibraryNetwork, "forward", lambda self, x, *, drop_path=None: self.body(x))
    assert not torch.equal(weights_after_a_step(), weights_after_a_step())


def test_settings_of_cells_change_nothing_and_are_no_part_of_what_is_kept() -> None:
    from pipeline.stages.stage import training_settings

    base = config_of("d2nas", f"derive.model={SMALL}")
    wider = config_of("d2nas", f"derive.model={SMALL}", "retrain.init_channels=64")
    assert training_settings(base) == training_settings(wider)
    assert "init_channels" in training_settings(config_of("d2nas"))
    assert torch.equal(
        flat(training_of("retrain.drop_path=0.5").network), flat(training_of().network)
    )
    assert retraining_of().network.num_droppable > 0 == training_of().network.num_droppable

"""Counting a module's cost leaves it as it was; the counts themselves are in ``test_exactness``."""

import pytest
import torch
from torch import nn

from d2nas import Genotype, Network, count_cost
from d2nas.errors import ConfigError


def test_a_counted_module_is_as_it_was() -> None:
    network = Network(Genotype.published("DARTS_V2"), num_cells=3, init_channels=4).train()
    network.stem.eval()
    modes = [part.training for part in network.modules()]
    values = {name: value.clone() for name, value in network.state_dict().items()}
    cost = count_cost(network, (3, 16, 16))
    assert cost.macs > cost.params > 0
    assert [part.training for part in network.modules()] == modes
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


class Fails(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("too small")


def test_so_is_one_that_fails() -> None:
    module = Fails().train()
    with pytest.raises(RuntimeError, match="too small"):
        count_cost(module, (3, 16, 16))
    assert module.training


def test_a_batch_counts_as_one_image() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert count_cost(layer, (7, 3, 5, 6)) == count_cost(layer, (3, 5, 6))
    assert count_cost(layer, (3, 5, 6)).macs == 4 * 5 * 6 * 3 * 3 * 3
    with pytest.raises(ConfigError, match="is not"):
        count_cost(layer, (5, 6))

"""Predictions: the same whenever they are made, whatever the network draws."""

import copy

import pytest
import torch
from searches import made_images
from torch import nn

from d2nas.data.images import Normalizer
from d2nas.genotype import Genotype
from d2nas.nn.network import Network
from d2nas.nn.operations import initialize, noises_in
from d2nas.nn.units import keep_everything
from d2nas.train.loop import predict

NOISY = Genotype.from_dict(
    {
        cell: [["noise", 0], ["sep_conv_3x3", 1], *[["skip_connect", 0], ["noise", 1]] * 3]
        for cell in ("normal", "reduce")
    }
)


def test_a_network_with_noise_predicts_the_same_again() -> None:
    network = Network(NOISY, num_cells=3, init_channels=4, num_classes=4).eval()
    initialize(network, torch.Generator().manual_seed(0))
    assert noises_in(network)
    data = made_images()
    normalizer = Normalizer(data.mean, data.std)
    before = torch.random.get_rng_state()
    first, again = (predict(network, data.train, normalizer, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())
    # Control: the noise does reach the prediction.
    assert not torch.equal(first, predict(network, data.train, normalizer, seed=4))


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_batch_norm_can_train_apart_from_the_rest(norms: bool, rest: bool) -> None:
    network = Network(Genotype.published("DARTS_V2"), num_cells=3, init_channels=4, num_classes=4)
    initialize(network, torch.Generator().manual_seed(0))
    network.double().train(rest)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(norms)
    plain = copy.deepcopy(network)
    keep_everything(plain)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(network(images), plain(images), rtol=1e-10, atol=1e-10)

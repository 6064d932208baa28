"""Predictions: the same whenever they are made, whatever the network draws."""

import torch
from searches import made_images

from d2nas.data import Normalizer
from d2nas.genotype import Genotype
from d2nas.network import Network
from d2nas.ops import initialize, noises_in
from d2nas.training import predict

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

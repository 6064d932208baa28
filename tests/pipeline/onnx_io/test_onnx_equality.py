"""The exported model is the model: genotypes by batch sizes, on every image the same answer."""

import numpy as np
import pytest
import torch
from onnx_models import torch_answer
from torch import nn

from d2nas import Genotype, Network
from d2nas.config.registry import data_sets
from d2nas.randomness import generator
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.session import open_session

GENOTYPES = ("DARTS_V1", "DARTS_V2", "GDAS_V1")
BATCHES = (1, 2, 3, 7, 96)
DIGITS = np.loadtxt(data_sets.find("digits").folder / "digits.csv.gz", delimiter=",", max_rows=1000)
IMAGES = (DIGITS[:, :-1].reshape(-1, 1, 8, 8) / 8.0 - 1.0).astype(np.float32)


def settled(genotype: str) -> nn.Module:
    """A small network whose statistics fit the images, so that its answers differ."""
    network = Network(
        Genotype.published(genotype), num_cells=3, init_channels=4, in_channels=1, auxiliary=False
    )
    draw = generator(0, "settled network")
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel()  # 1 for biases
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * fan_in**-0.5)
        network.train()
        for _ in range(30):  # the statistics move a tenth of the way each time
            network(torch.from_numpy(IMAGES[:100]))
        network.eval()
        # Else one class would be the answer to almost every image.
        network.classifier.bias.sub_(network(torch.from_numpy(IMAGES[:100])).mean(dim=0))
    return network


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_the_exported_model_answers_every_image_as_the_network_does(genotype: str) -> None:
    network = settled(genotype)
    assert len(IMAGES) >= 1000
    data = export_onnx(network, input_shape=(1, 8, 8), opset=20, metadata={})
    session = open_session(data, device="cpu", num_threads=1)
    wanted = torch_answer(network)(IMAGES)
    assert len(np.unique(wanted.argmax(axis=1))) >= 5
    for batch in BATCHES:
        parts = [session.run(IMAGES[at : at + batch]) for at in range(0, len(IMAGES), batch)]
        found = np.concatenate(parts)
        assert np.abs(found - wanted).max() <= 1e-4
        np.testing.assert_array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
    with torch.no_grad():  # control: one weight 1 % off
        network.classifier.weight.mul_(1.01)
    assert np.abs(torch_answer(network)(IMAGES) - found).max() > 1e-4

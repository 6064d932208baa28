"""Small models for the ONNX tests: a torch network with settled statistics, a hand-made file."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from d2nas.randomness import generator

INPUT_SHAPE = (3, 16, 16)
NUM_CLASSES = 7


def pattern_images(num_images: int, seed: int = 0) -> Tensor:
    """Coloured waves of different direction and frequency with some noise, in about [-1, 1]."""
    draw = generator(seed, "pattern images")
    waves = torch.rand(num_images, 3, 3, generator=draw) * torch.tensor([1.5, 1.5, 6.3])
    noise = torch.randn(num_images, *INPUT_SHAPE, generator=draw)
    rows = torch.arange(16.0).view(1, 1, 16, 1)
    columns = torch.arange(16.0).view(1, 1, 1, 16)
    down, right, phase = (waves[:, :, index, None, None] for index in range(3))
    return torch.sin(down * rows + right * columns + phase) + 0.1 * noise


class SmallNetwork(nn.Module):
    """The kinds of layers a derived network has, with an auxiliary head while training."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.separable = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.max_pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.average_pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.reduction = nn.Sequential(
            nn.ReLU(), nn.Conv2d(3 * channels, 2 * channels, 1, stride=2, bias=False)
        )
        self.norm = nn.BatchNorm2d(2 * channels)
        self.auxiliary = nn.Linear(2 * channels, NUM_CLASSES)
        self.classifier = nn.Linear(2 * channels, NUM_CLASSES)

    def forward(self, x: Tensor, *, drop_path: float | None = None) -> Any:
        assert drop_path is None
        x = self.stem(x)
        x = torch.cat([self.separable(x), self.max_pool(x), self.average_pool(x) + x], 1)
        features = self.norm(self.reduction(x)).mean((2, 3))
        if self.training:
            return self.classifier(features), self.auxiliary(features)
        return self.classifier(features)


def settled_network(seed: int = 0) -> SmallNetwork:
    """A network in evaluation mode whose BatchNorm statistics fit its features.

    Its logits differ between images; with the initial statistics they hardly would.
    """
    network = SmallNetwork()
    draw = generator(seed, "small network")
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel()  # 1 for biases
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * fan_in**-0.5)
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=draw) + 0.5)
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=draw) * 0.2)
        network.train()
        for step in range(4):
            network(pattern_images(32, seed=1000 + step))
    return network.eval()


def torch_answer(network: nn.Module) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The network as a function of NumPy images."""

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    return answer


def hand_made_model() -> onnx.ModelProto:
    """A valid classifier [batch, 1, 4, 4] -> [batch, 3] made without torch."""
    kernel = np.linspace(-1.0, 1.0, 2 * 9, dtype=np.float32)
    weight = np.linspace(1.0, -2.0, 3 * 2, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv", ["images", "kernel"], ["features"], name="conv", pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", ["features"], ["active"], name="relu"),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "weight"], ["logits"], name="gemm", transB=1),
        ],
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            onnx.numpy_helper.from_array(kernel.reshape(2, 1, 3, 3), "kernel"),
            onnx.numpy_helper.from_array(weight.reshape(3, 2), "weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

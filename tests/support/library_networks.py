"""A library's network that trains in a second: convolutions, dropout, a linear classifier."""

import pytest
from torch import nn

from d2nas.nn import library_network

SMALL = "torchvision:small_net"


def small_network(
    name: str, num_classes: int, in_channels: int, pretrained: bool, *, stride: int = 2
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(16, 32, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def give_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision have ``SMALL``, and nothing else."""
    monkeypatch.setattr(library_network, "_torchvision", small_network)

"""Exponential moving average of a network's weights and statistics."""

import copy

import torch
from torch import nn

WARM_UP = 10
"""The average of step t forgets no slower than (1 + t) / (10 + t): at first it follows closely."""


class WeightAverage(nn.Module):
    """Copy of a network that is the moving average of its weights, running statistics included.

    A function of the steps so far: ``update`` is told which step has ended, so that a checkpoint
    holds the averages alone. Whole numbers (batches counted) are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after ``step``, which counts from 0."""
        decay = min(self.decay, (1 + step) / (WARM_UP + step))
        averages, values = [], []
        for average, value in zip(_tensors(self.network), _tensors(network), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1.0 - decay)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [value.detach() for value in (*network.parameters(), *network.buffers())]

"""The index-hash weight fill of ``data/reference_values.json`` and access to its numbers.

Any implementation can reproduce the fill, whatever its module names or their order.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@cache
def reference() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "data" / "reference_values.json").read_text()
    return json.loads(text)


def uniform(shape: Sequence[int], salt: int) -> Tensor:
    """The hash u in [0, 1) of each element's indices."""
    number = torch.full(tuple(shape), salt, dtype=torch.int64)
    for axis, factor in zip(range(len(shape)), (1, 997, 99991, 7368787), strict=False):
        view = [1] * len(shape)
        view[axis] = shape[axis]
        number = number + (torch.arange(shape[axis]) * factor).view(view)
    return ((number * number + 12345 * number + 6789) % 1000003).double() / 1000003


def fill(module: nn.Module) -> nn.Module:
    """Give every convolution, linear and batch norm its float64 reference values."""
    module.double()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                scale = (12 / layer.weight[0].numel()) ** 0.5
                layer.weight.copy_((uniform(layer.weight.shape, 1) - 0.5) * scale)
            elif isinstance(layer, nn.Linear):
                scale = (12 / layer.in_features) ** 0.5
                layer.weight.copy_((uniform(layer.weight.shape, 2) - 0.5) * scale)
                layer.bias.copy_((uniform(layer.bias.shape, 3) - 0.5) * 0.1)
            elif isinstance(layer, nn.BatchNorm2d):
                if layer.affine:
                    layer.weight.copy_(0.75 + 0.5 * uniform(layer.weight.shape, 4))
                    layer.bias.copy_((uniform(layer.bias.shape, 5) - 0.5) * 0.2)
                layer.running_mean.copy_((uniform(layer.running_mean.shape, 6) - 0.5) * 0.2)
                layer.running_var.copy_(0.75 + 0.5 * uniform(layer.running_var.shape, 7))
    return module


def images(*shape: int) -> Tensor:
    """The reference input images, float64."""
    return (uniform(shape, 8) - 0.5) * 12**0.5


def architecture(shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The reference architecture tensors: normal alpha, reduce alpha, normal beta, reduce beta."""
    return [(uniform(shape, 20 + k) - 0.5) * 2 for k, shape in enumerate(shapes)]

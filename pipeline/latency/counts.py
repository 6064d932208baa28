"""Multiply-adds and parameters of the parts of networks, counted from their layers without torch.

As ``d2nas.measure.cost`` counts whole networks: multiply-adds of convolutions and of the classifier
for one image; of parameters all that is trained, so two numbers for each channel that is scaled.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..identity.layout import CellLayout, Claim, Factorized, Layers, operation_layers
from .fitting import Part
from .parts import CellShape, halved, network_cells, operations_in


@dataclass(frozen=True, slots=True)
class Counts:
    """Multiply-adds and parameters."""

    macs: int = 0
    params: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.macs + other.macs, self.params + other.params)


def count_layers(layers: Layers, channels: int, size: int) -> Counts:
    """Return what layers take, first to last, of a map of so many channels, height and width."""
    total, height, width = Counts(), size, size
    for layer in layers:
        if isinstance(layer, Factorized):
            height, width = halved(height), halved(width)
            weights = channels * layer.channels  # of both halves
            total += Counts(weights * height * width, weights + 2 * layer.channels)
            channels = layer.channels
            continue
        height, width = (
            halved(length) if step == 2 else length
            for length, step in zip((height, width), layer.stride, strict=True)
        )
        if layer.kind == "conv":
            outputs = layer.channels or channels
            inputs = 1 if layer.depthwise else channels
            weights = outputs * inputs * math.prod(layer.kernel)
            scales = 2 * outputs if layer.scaled else 0
            total += Counts(weights * height * width, weights + scales)
            channels = outputs
    return total


def count_part(part: Part) -> Counts:
    """Return what a part takes: an operation, or what a cell of a shape has before its edges."""
    if not isinstance(part, CellShape):
        layers = operation_layers(part.operation, part.channels, part.stride)
        return count_layers(layers, part.channels, part.size)
    layout = CellLayout(0, part.cell_type, part.channels, (), (), part.after_reduction)
    return _sum(
        count_layers(layout.preprocess(which), channels, size)
        for which, (channels, size) in enumerate(
            zip(part.input_channels, part.input_sizes, strict=True)
        )
    )


def count_outside(claim: Claim, image_size: int) -> Counts:
    """Return what stem and classifier take."""
    first, second = claim.stem_layers()
    stem = count_layers((*first, *second), claim.in_channels, image_size)
    last = claim.cells()[-1]
    weights = len(last.concat) * last.channels * claim.num_classes
    return stem + Counts(weights, weights + claim.num_classes)


def count_network(claim: Claim, image_size: int) -> Counts:
    """Return what a whole network takes. Raises ``KeyError`` for an operation that is not known."""
    total = count_outside(claim, image_size)
    for shape, layout in network_cells(claim, image_size):
        parts: list[Part] = [shape, *operations_in(shape, layout)]
        total += _sum(map(count_part, parts))
    return total


def _sum(counts: Iterable[Counts]) -> Counts:
    return sum(counts, Counts())

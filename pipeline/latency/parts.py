"""Parts of a deployed network that take time: its cells by shape, and the operations in them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from d2nas.genotype import Genotype

from ..identity.layout import CellLayout, Claim

MERGED = ("max_pool_3x3", "avg_pool_3x3")
"""Operations without weights: of several on one state ONNX Runtime computes one."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served: all besides its cells that its latency depends on."""

    image_size: int
    in_channels: int
    num_classes: int
    stem: str
    opset: int
    input_type: str
    precision: str
    batch: int

    def claim(self, genotype: Genotype, *, num_cells: int, init_channels: int) -> Claim:
        """Return a network as it would be served."""
        return Claim(
            genotype, num_cells, init_channels, self.num_classes, self.in_channels, self.stem
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, order=True)
class CellShape:
    """Shape of a cell: its type and width, its inputs' widths, and their height and width.

    ``input_sizes`` differ after a reduction cell, whose input is larger than its output.
    """

    cell_type: str
    channels: int
    input_channels: tuple[int, int]
    input_sizes: tuple[int, int]

    @property
    def after_reduction(self) -> bool:
        """Whether input 0 is brought to the size of input 1."""
        return self.input_sizes[0] != self.input_sizes[1]

    def size(self, stride: int) -> int:
        """Return the height and width that an operation of a stride reads."""
        size = self.input_sizes[1]
        return size if stride == 2 or self.cell_type == "normal" else halved(size)


@dataclass(frozen=True, slots=True, order=True)
class OperationShape:
    """An operation, the width and the size of the map that it reads, and its stride."""

    operation: str
    channels: int
    size: int
    stride: int


def halved(size: int) -> int:
    """Return the size of a map after a stride of 2."""
    return (size + 1) // 2


def network_cells(claim: Claim, image_size: int) -> Iterator[tuple[CellShape, CellLayout]]:
    """Yield the cells of a network, first to last."""
    outputs = {
        "normal": len(claim.genotype.normal_concat),
        "reduce": len(claim.genotype.reduce_concat),
    }
    if claim.stem == "cifar":
        widths, sizes = (3 * claim.init_channels,) * 2, (image_size, image_size)
    else:
        widths = (claim.init_channels,) * 2
        sizes = (halved(halved(image_size)), halved(halved(halved(image_size))))
    for layout in claim.cells():
        yield CellShape(layout.cell_type, layout.channels, widths, sizes), layout
        size = halved(sizes[1]) if layout.cell_type == "reduce" else sizes[1]
        widths = (widths[1], outputs[layout.cell_type] * layout.channels)
        sizes = (sizes[1], size)


def operations_in(shape: CellShape, layout: CellLayout) -> list[OperationShape]:
    """Return what a cell of a shape computes on its edges, ``MERGED`` ones of one state once."""
    found, merged = [], set[tuple[str, int]]()
    for pair in layout.pairs:
        operation, source = pair
        if operation in MERGED:
            if pair in merged:
                continue
            merged.add(pair)
        found.append(operation_at(shape, layout, operation, source))
    return found


def operation_at(
    shape: CellShape, layout: CellLayout, operation: str, source: int
) -> OperationShape:
    """Return an operation on ``source`` in a cell of a shape."""
    stride = layout.stride(source)
    return OperationShape(operation, layout.channels, shape.size(stride), stride)

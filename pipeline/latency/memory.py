"""Memory that a network needs at least while it answers: its weights and the maps alive at once."""

import math
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from ..identity.layout import Claim
from .graphs import network_graph
from .parts import Serving

_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.UINT8: 1, TensorProto.INT64: 8}


@dataclass(frozen=True, slots=True)
class LeastMemory:
    """Bytes of the weights, and of the maps that are alive at once, at the batch size served.

    A runtime takes more: it allocates in larger pieces, and some kernels need room of their own.
    """

    weights: int
    maps: int

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.weights + self.maps


def least_memory(claim: Claim, serving: Serving) -> LeastMemory:
    """Return the memory that a network needs at least, its nodes computed in the graph's order.

    A map is alive from its node to the last one that reads it. Raises ``KeyError`` for operations
    of other packages.
    """
    model = onnx.shape_inference.infer_shapes(
        onnx.load_model_from_string(network_graph(claim, serving))
    )
    graph = model.graph
    sizes = {
        value.name: math.prod(
            dimension.dim_value or serving.batch for dimension in value.type.tensor_type.shape.dim
        )
        * _BYTES[value.type.tensor_type.elem_type]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    last_read = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last_read |= {value.name: len(graph.node) for value in (*graph.input, *graph.output)}
    alive = peak = sum(sizes[value.name] for value in graph.input)
    for index, node in enumerate(graph.node):
        alive += sum(sizes[name] for name in node.output)
        peak = max(peak, alive)
        read = {name for name in node.input if name in sizes and last_read[name] == index}
        alive -= sum(sizes[name] for name in read)
    return LeastMemory(sum(len(tensor.raw_data) for tensor in graph.initializer), peak)

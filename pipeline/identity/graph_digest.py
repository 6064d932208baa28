"""Digest of an ONNX graph: its operators, their settings and what reads what, without names and
without weights.

Two trainings of one network have the same digest; a graph with another operator, stride or
connection has another.
"""

import hashlib
from typing import Any

import onnx
from onnx import numpy_helper

from d2nas.files.strict_json import canonical_json

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def graph_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of ``model``'s graph, 64 hexadecimal digits.

    Weights are floating-point tensors of one dimension or more, the bias of a single channel among
    them; of these type and shape count. Other constants (a shape, an axis, a bound) decide what is
    computed and count by their values. The order of the nodes counts, as the exporter's is one.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    numbers: dict[str, int] = {}
    constants: list[Any] = []

    def number(name: str) -> int | None:
        if not name:
            return None  # an input that is left out
        if name not in numbers and name in weights:
            constants.append([len(numbers), _constant(weights[name])])
        return numbers.setdefault(name, len(numbers))

    inputs = [[number(one.name), _type(one)] for one in model.graph.input]
    nodes = [
        [
            node.domain,
            node.op_type,
            [number(name) for name in node.input],
            [number(name) for name in node.output],
            sorted([entry.name, _setting(entry)] for entry in node.attribute),
        ]
        for node in model.graph.node
    ]
    outputs = [[number(one.name), _type(one)] for one in model.graph.output]
    operators = sorted([entry.domain, entry.version] for entry in model.opset_import)
    described = [operators, inputs, nodes, outputs, constants]
    return hashlib.sha256(canonical_json(described)).hexdigest()


def _type(value: onnx.ValueInfoProto) -> str:
    return bytes(value.type.SerializeToString(deterministic=True)).hex()


def _constant(tensor: onnx.TensorProto) -> list[Any]:
    array = numpy_helper.to_array(tensor)
    is_weight = tensor.data_type in _FLOATS and array.ndim > 0
    values = None if is_weight else hashlib.sha256(array.tobytes()).hexdigest()
    return [tensor.data_type, list(array.shape), values]


def _setting(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        array = numpy_helper.to_array(attribute.t)
        return [attribute.t.data_type, list(array.shape), array.tobytes().hex()]
    return bytes(attribute.SerializeToString(deterministic=True)).hex()

"""Faulty copies of a model, one fault each: a gate that lets one through proves nothing.

The faults sit where every logit depends on them: in the first convolution, the last one, the last
normalisation and the classifier. In a quantised model the faulty weights are quantised again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from d2nas.errors import ValidationFailedError

from ..onnx_io.model_file import check_model
from ..onnx_io.quantised_tensors import QuantisedTensor, quantised_again, quantised_tensor
from .comparison import Limits, compare, judge_parity
from .parity import Session

_FACTOR = 1.01

Weights = Mapping[str, NDArray[Any]]
"""What layers read that is constant: initializers, and integers as the numbers they stand for."""


@dataclass(frozen=True)
class SelfTest:
    """Faulty copies of the model: those that the gate rejected, and those that it let through."""

    rejected: tuple[str, ...]
    accepted: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there were faulty copies and none was let through."""
        return bool(self.rejected) and not self.accepted

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "passed": self.passed,
            "rejected": list(self.rejected),
            "accepted": list(self.accepted),
        }


def self_test(
    reference: NDArray[Any],
    faulty_sessions: Iterable[tuple[str, Session]],
    images: NDArray[Any],
    limits: Limits | None = None,
) -> SelfTest:
    """Show the gate faulty copies of the model (by name) on a few images.

    ``reference`` are the network's logits [N, classes] of ``images``. A gate that lets a copy
    through proves nothing when it lets the model through.
    """
    rejected: list[str] = []
    accepted: list[str] = []
    for name, session in faulty_sessions:
        verdict, _ = judge_parity(compare(reference, session.run(images)), limits, is_part=True)
        (rejected if verdict == "failed" else accepted).append(name)
    return SelfTest(tuple(rejected), tuple(accepted))


def self_test_by_weights(
    faulty_models: Iterable[tuple[str, bytes]], check: Callable[[bytes], object]
) -> SelfTest:
    """Show faulty copies of a quantised model (by name) to ``check``, which raises for those that
    are not the float32 model: rounding hides most of them from a look at logits.
    """
    rejected: list[str] = []
    accepted: list[str] = []
    for name, model in faulty_models:
        try:
            check(model)
        except ValidationFailedError:
            rejected.append(name)
        else:
            accepted.append(name)
    return SelfTest(tuple(rejected), tuple(accepted))


def mutants(model: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of copies with one fault each, which a parity gate has to reject.

    A copy whose tensor the fault would leave unchanged is not yielded. Raises
    ``ValidationFailedError`` if the model has neither convolution nor classifier weights.
    """
    parsed = check_model(model, what="model to mutate")
    weights = _weights(parsed)
    faults = [*_classifier_faults(parsed, weights), *_convolution_faults(parsed, weights)]
    if not faults:
        raise ValidationFailedError(
            "the gate's self-test found no convolution or classifier weight to mutate",
            hint="the model is not a convolutional classifier as d2nas exports it",
        )
    for fault, name, values in faults:
        if not np.array_equal(values, weights[name]):
            yield fault, _with_weight(parsed, name, values)
    skipped = _without_last_norm(parsed, weights)
    if skipped is not None:
        yield "a normalisation skipped", skipped


_Fault = tuple[str, str, NDArray[Any]]


def _classifier_faults(model: onnx.ModelProto, weights: Weights) -> Iterator[_Fault]:
    found = _classifier(model.graph, weights)
    if found is None:
        return
    name, class_axis = found
    values = weights[name]
    yield "classifier weight + 1 %", name, _scaled(values)
    yield "two classes swapped", name, _swap_farthest(values, class_axis)


def _convolution_faults(model: onnx.ModelProto, weights: Weights) -> Iterator[_Fault]:
    convolutions = _convolutions(model.graph, weights)
    if not convolutions:
        return
    first, last = convolutions[0].input[1], convolutions[-1].input[1]
    values = weights[first]
    yield "stem weight + 1 %", first, _scaled(values)
    if len(values) > 1:
        yield "two channels swapped", first, _swap_farthest(values, 0)
    yield "last convolution zeroed", last, np.zeros_like(weights[last])


def _convolutions(graph: onnx.GraphProto, weights: Weights) -> list[onnx.NodeProto]:
    return [
        node
        for node in graph.node
        if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in weights
    ]


def _without_last_norm(model: onnx.ModelProto, weights: Weights) -> bytes | None:
    """Leave the last normalisation out; one that became a convolution's bias loses that."""
    copy = _copied(model)
    for node in reversed(copy.graph.node):
        if node.op_type == "BatchNormalization":
            skipped = helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)
            node.CopyFrom(skipped)
            return bytes(copy.SerializeToString(deterministic=True))
    for node in reversed(_convolutions(model.graph, weights)):
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias in weights:
            values = weights[bias]
            if values.any():
                return _with_weight(model, bias, np.zeros_like(values))
    return None


def _classifier(graph: onnx.GraphProto, weights: Weights) -> tuple[str, int] | None:
    """Name of the classifier's weight and its class axis, or None."""
    for node in reversed(graph.node):
        if node.op_type not in ("Gemm", "MatMul") or len(node.input) < 2:
            continue
        name = node.input[1]
        if name not in weights or weights[name].ndim != 2:
            continue
        transposed = any(
            attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute
        )
        return name, 0 if transposed else 1
    return None


def _scaled(values: NDArray[Any]) -> NDArray[Any]:
    return (values.astype(np.float64) * _FACTOR).astype(values.dtype)


def _swap_farthest(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Swap the two slices along ``axis`` that differ most, so that the fault can be seen."""
    slices = np.moveaxis(values, axis, 0).astype(np.float64)
    rows = slices.reshape(len(slices), -1)
    first = 0
    # Two sweeps (the row farthest from the first, then the row farthest from that one) find a
    # pair at least half as far apart as the farthest, without a table of all pairs.
    second = int(np.argmax(np.linalg.norm(rows - rows[first], axis=1)))
    first = int(np.argmax(np.linalg.norm(rows - rows[second], axis=1)))
    order = np.arange(len(rows))
    order[[first, second]] = order[[second, first]]
    return np.take(values, order, axis=axis)


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _weights(model: onnx.ModelProto) -> Weights:
    plain = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    integers = {
        name: tensor.values().astype(np.float32) for name, (_, tensor) in _integers(model).items()
    }
    return plain | integers


def _integers(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, QuantisedTensor]]:
    """Return the weights of ``model`` that are integers, by the name that layers read."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = ((node, quantised_tensor(node, tensors)) for node in model.graph.node)
    return {node.output[0]: (node, tensor) for node, tensor in found if tensor is not None}


def _with_weight(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> bytes:
    replaced = {name: values}
    integers = _integers(model).get(name)
    if integers is not None:
        node, tensor = integers
        again = quantised_again(tensor, values)
        numbers = (again.integers, again.scale, again.zero_point)
        replaced = dict(zip(node.input, numbers, strict=False))
    copy = _copied(model)
    for tensor_proto in copy.graph.initializer:
        if tensor_proto.name in replaced:
            array = np.array(replaced[tensor_proto.name], order="C")
            tensor_proto.CopyFrom(numpy_helper.from_array(array, tensor_proto.name))
    return bytes(copy.SerializeToString(deterministic=True))

"""Is a quantised model its float32 model, but for rounding?

What rounding does to logits hides small faults: integer kernels and the same graph computed in
float32 differ by almost as much as either from the float32 model, because a value at the border of
two integers goes either way and others follow, and a weight that is 1 % off moves logits no
further. So a quantised model is not held against its answers alone: it must have every node of the
float32 model, with the same inputs, and each of its weights must lie within half a quantisation
step of the float32 one, where a channel's steps reach its largest weight and no farther. Ranges of
features are the calibration's; here they only have to be the same where a value is quantised and
where it becomes a real number again. Whether they are good ones, accuracy says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from d2nas.errors import ValidationFailedError

from ..onnx_io.model_file import check_model
from ..onnx_io.quantised_tensors import QuantisedTensor, quantised_tensor

_PAIR = ("QuantizeLinear", "DequantizeLinear")
_HALF = 0.501
"""Of a step: rounding, and a little for float32's own."""
_OWN_ROUNDING = 1e-6
_FEWEST_STEPS = 60
"""Of a channel's largest weight: 127, or 64 where products would saturate."""
_LARGE_BIAS = 2**28
"""In its own steps: beside it a channel's weights are nothing, and their steps are chosen by it."""
_HINT = "the quantised model is not made of these weights: export it again, d2nas export RUN"


@dataclass(frozen=True)
class QuantisedReport:
    """How much of a quantised model was compared."""

    num_weights: int
    """Tensors that are integers."""
    num_features: int
    """Features that are rounded."""
    largest_steps: float
    """Largest distance of a weight, in quantisation steps; biases have other steps."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "weights": self.num_weights,
            "features": self.num_features,
            "largest_steps": self.largest_steps,
        }


def check_quantised(model: bytes, original: bytes) -> QuantisedReport:
    """Check that ``model`` is ``original`` in integers.

    Raises ``ValidationFailedError`` naming the node that differs, ``DamagedArtifactError`` for
    bytes that are no model.
    """
    return _Comparison(
        check_model(model, what="quantised model"), check_model(original, what="float32 model")
    ).report()


def unquantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without its rounding: the same layers in float32; itself where it has none.

    Raises ``ValidationFailedError`` for a value that is rounded by one scale and taken for another.
    """
    if not any(node.op_type in _PAIR for node in model.graph.node):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rounding, weights = _Rounding(model), dict[str, onnx.TensorProto]()
    del made.graph.node[:]
    for node in model.graph.node:
        if node.op_type in _PAIR:
            continue
        (copy := made.graph.node.add()).CopyFrom(node)
        for position, name in enumerate(node.input):
            source = rounding.source(name, node.name)
            if isinstance(source, QuantisedTensor):
                values = source.values().astype(np.float32)
                weights[name] = numpy_helper.from_array(values, name)
            else:
                copy.input[position] = source
    made.graph.initializer.extend(weights.values())
    return made


class _Rounding:
    """Pairs of QuantizeLinear and DequantizeLinear in a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._pairs = {
            name: node for node in model.graph.node if node.op_type in _PAIR for name in node.output
        }

    def source(self, name: str, reader: str) -> str | QuantisedTensor:
        """Return the features that ``name`` is, once rounded, or the weight that it is."""
        while name in self._pairs:
            opened = self._pairs[name]
            weight = quantised_tensor(opened, self._weights)
            if weight is not None:
                return weight
            rounded = self._pairs.get(opened.input[0])
            numbers = None if rounded is None else [*map(self._number, rounded.input[1:])]
            if (
                rounded is None
                or (rounded.op_type, opened.op_type) != _PAIR
                or len(rounded.input) != 3
                or None in (numbers or [None])
                or numbers != [*map(self._number, opened.input[1:])]
            ):
                raise _differs(reader, "rounds what it reads by one scale and takes it for another")
            name = rounded.input[0]
        return name

    def _number(self, name: str) -> Any:
        """Return a constant that is one number; None otherwise."""
        values = numpy_helper.to_array(self._weights[name]) if name in self._weights else None
        return None if values is None or values.size != 1 else values.item()


class _Comparison:
    def __init__(self, model: onnx.ModelProto, original: onnx.ModelProto) -> None:
        self._model, self._original = model, original
        self._rounding = _Rounding(model)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._floats = {tensor.name: tensor for tensor in original.graph.initializer}
        self._compared = set[str]()
        self._largest = 0.0

    def report(self) -> QuantisedReport:
        self._compare_headers()
        nodes = {n.name: n for n in self._model.graph.node if n.op_type not in _PAIR}
        wanted = {node.name: node for node in self._original.graph.node}
        for name in nodes.keys() ^ wanted.keys():
            raise _differs(name, "is in one of both")
        for name, node in wanted.items():
            self._compare(nodes[name], node)
        features = sum(node.op_type == _PAIR[0] for node in self._model.graph.node)
        return QuantisedReport(len(self._compared), features, self._largest)

    def _compare_headers(self) -> None:
        for field in ("opset_import", "metadata_props", "ir_version"):
            if getattr(self._model, field) != getattr(self._original, field):
                raise _differs(field, "is not the float32 model's")
        for field in ("input", "output"):
            if getattr(self._model.graph, field) != getattr(self._original.graph, field):
                raise _differs(field, "is not the float32 model's")

    def _compare(self, node: onnx.NodeProto, wanted: onnx.NodeProto) -> None:
        same = node.op_type == wanted.op_type and list(node.output) == list(wanted.output)
        if not same or sorted(map(_bytes, node.attribute)) != sorted(map(_bytes, wanted.attribute)):
            raise _differs(node.name, "is another layer")
        if len(node.input) != len(wanted.input):
            raise _differs(node.name, "has other inputs")
        sources = [self._rounding.source(name, node.name) for name in node.input]
        for source, original in zip(sources, wanted.input, strict=True):
            if original in self._floats:
                self._compare_weight(source, original, node.name)
            elif source != original:
                raise _differs(node.name, f"reads other features than {original[:60]}")
        if len(sources) > 1 and isinstance(sources[1], QuantisedTensor):
            _check_range(sources[1], sources[2] if len(sources) > 2 else "", wanted, self._floats)

    def _compare_weight(self, found: str | QuantisedTensor, name: str, node: str) -> None:
        wanted = numpy_helper.to_array(self._floats[name])
        if isinstance(found, str):
            if found not in self._weights or not _equal(self._weights[found], self._floats[name]):
                raise _differs(node, "its numbers are not those of the float32 model")
            return
        if found.integers.shape != wanted.shape or not (found.scale > 0).all():
            raise _differs(node, "its weights do not fit")
        apart = np.abs(found.values() - wanted.astype(np.float64))
        excused = _OWN_ROUNDING * np.abs(wanted)
        steps = float((np.maximum(apart - excused, 0) / found.steps).max(initial=0.0))
        # "Not at most" rather than "above": a NaN must not pass.
        if not steps <= _HALF:
            raise _differs(
                node, f"a weight is {steps:.3g} quantisation steps off, 0.5 are rounding"
            )
        self._compared.add(name)
        self._largest = max(self._largest, steps)


def _check_range(
    weight: QuantisedTensor,
    bias: str | QuantisedTensor,
    wanted: onnx.NodeProto,
    floats: Mapping[str, onnx.TensorProto],
) -> None:
    """Raise where a channel's steps are so large that any weight would be within half of one."""
    real = np.abs(numpy_helper.to_array(floats[wanted.input[1]]).astype(np.float64))
    others = tuple(other for other in range(real.ndim) if other != weight.channel_axis)
    used = np.abs(weight.integers.astype(np.int64)).max(axis=others)
    coarse = (used < _FEWEST_STEPS) & (real.max(axis=others) > 0)
    if isinstance(bias, QuantisedTensor):
        coarse = coarse & (np.abs(bias.integers.astype(np.int64)) < _LARGE_BIAS)
    if np.any(coarse):
        raise _differs(wanted.name, "its weights are rounded to few values")


def _equal(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    first, second = numpy_helper.to_array(one), numpy_helper.to_array(other)
    return first.dtype == second.dtype and _exactly(first, second)


def _exactly(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _bytes(attribute: onnx.AttributeProto) -> bytes:
    return bytes(attribute.SerializeToString(deterministic=True))


def _differs(where: str, what: str) -> ValidationFailedError:
    return ValidationFailedError(f"quantisation: {where[:80]!r}: {what}", hint=_HINT)

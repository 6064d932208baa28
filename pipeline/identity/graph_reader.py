"""Reader of ONNX graphs as expressions, without names, order and repetition.

What leaves the function as it is, or changes its precision alone, is passed over. Brought to one
form are:

- batch normalisation, which may be folded into the convolutions before it (before a concatenation
  too) or stand after them: either way these are ``scaled``
- moving a map by rows and columns: by Slice, Pad, or a 1x1 convolution's own padding
- preparing the input (types, channels first, per-channel shift and scale), which is the input
- the mean over the map, and the classifier, each of which ONNX can write in several ways
- quantisation: a value that is rounded and taken for a real number again by the same scale is that
  value; weights that are integers are the real numbers that they stand for
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from d2nas.errors import ValidationFailedError

from ..onnx_io import INPUT_NAME, OUTPUT_NAME
from ..onnx_io.model_file import describe
from ..onnx_io.quantised_tensors import quantised_tensor
from .expressions import Array, Terms, Value, digest

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_TO_CHANNELS_FIRST = [0, 3, 1, 2]
_CHANNELS_LAST = ("channels last",)


def read_graph(model: onnx.ModelProto) -> Value:
    """Return what the logits of ``model``, which ``check_model`` returned, are.

    Raises ``ValidationFailedError`` for a node that no network of d2nas has.
    """
    return _Reader(model).read()


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[str, Array] = {}
        self._terms = Terms()
        described = describe(model)
        layout = _CHANNELS_LAST if described.input_type == "uint8" else ()
        images = self._terms.make("images", layout, (), described.array_shape, INPUT_NAME)
        self._values = {INPUT_NAME: images}

    def read(self) -> Value:
        needed = self._needed()
        for node in self._graph.node:
            if not needed.isdisjoint(node.output):
                self._evaluate(node)
        logits = self._values.get(OUTPUT_NAME)
        if logits is None:
            raise ValidationFailedError("identity: the logits do not depend on the images")
        return logits

    def _needed(self) -> set[str]:
        # What does not reach the logits does not matter.
        needed = {OUTPUT_NAME}
        for node in reversed(self._graph.node):
            if not needed.isdisjoint(node.output):
                needed.update(filter(None, node.input))
        return needed

    def _evaluate(self, node: onnx.NodeProto) -> None:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if not any(name in self._values for name in node.input):
            self._constants[node.output[0]] = self._constant_result(node, attributes)
            return
        read = _READERS.get(node.op_type)
        if read is None:
            raise _unexpected(node, "no network of d2nas has this operator")
        self._values[node.output[0]] = read(self, node, attributes)

    def _value(self, node: onnx.NodeProto, position: int) -> Value:
        name = node.input[position] if len(node.input) > position else ""
        if name not in self._values:
            raise _unexpected(node, f"input {position} is not computed from the images")
        return self._values[name]

    def _constant(self, node: onnx.NodeProto, position: int) -> Array | None:
        """Return a constant input; None if it is left out."""
        name = node.input[position] if len(node.input) > position else ""
        if not name:
            return None
        if name not in self._constants:
            if name not in self._weights:
                raise _unexpected(node, f"input {position} is not a constant")
            self._constants[name] = numpy_helper.to_array(self._weights[name])
        return self._constants[name]

    def _required(self, node: onnx.NodeProto, position: int) -> Array:
        constant = self._constant(node, position)
        if constant is None:
            raise _unexpected(node, f"input {position} is missing")
        return constant

    def _map(self, node: onnx.NodeProto) -> Value:
        """Return input 0, which must be a map (channels, height, width)."""
        value = self._value(node, 0)
        if len(value.shape) != 3 or value.settings == _CHANNELS_LAST:
            raise _unexpected(node, "does not read a map with channels first")
        return value

    def _constant_result(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Array:
        if node.op_type == "Constant" and "value" in attributes:
            return numpy_helper.to_array(attributes["value"])
        if node.op_type == "Constant":
            return np.array(next(iter(attributes.values())))
        if node.op_type == "Identity":
            return self._required(node, 0)
        if node.op_type == "Cast" and attributes["to"] in _FLOATS:
            return self._required(node, 0).astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
        weight = quantised_tensor(node, self._weights)
        if weight is not None:
            return weight.values().astype(np.float32)
        raise _unexpected(node, "computes on constants")

    def relu(self, node: onnx.NodeProto, _attributes: Mapping[str, Any]) -> Value:
        value = self._map(node)
        return self._terms.make("relu", (), (value,), value.shape, node.name)

    def same(self, node: onnx.NodeProto, _attributes: Mapping[str, Any]) -> Value:
        return self._value(node, 0)

    def cast(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        if attributes["to"] not in _FLOATS:
            raise _unexpected(node, "casts to a type that is no floating-point number")
        return self._value(node, 0)

    def quantise(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value = self._value(node, 0)
        settings = self._rounding(node, attributes)
        return self._terms.make("rounded", settings, (value,), value.shape, node.name)

    def dequantise(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        rounded = self._value(node, 0)
        if rounded.kind != "rounded" or rounded.settings != self._rounding(node, attributes):
            raise _unexpected(node, "takes integers for other numbers than they were made of")
        return rounded.inputs[0]

    def _rounding(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return scale and zero point, of a whole tensor."""
        numbers = [self._required(node, position) for position in (1, 2)]
        if attributes.get("block_size", 0) or any(number.size != 1 for number in numbers):
            raise _unexpected(node, "quantises features in parts")
        return tuple(digest(number) for number in numbers)

    def transpose(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value = self._value(node, 0)
        perm = list(attributes.get("perm", ()))
        if value.settings != _CHANNELS_LAST or perm != _TO_CHANNELS_FIRST:
            raise _unexpected(node, "only pixels are transposed, to channels first")
        height, width, channels = value.shape
        return self._terms.make("images", (), (), (channels, height, width), node.name)

    def prepare(self, node: onnx.NodeProto, _attributes: Mapping[str, Any]) -> Value:
        """Sub, Mul or Div by a constant for each channel, on the images alone."""
        commutes = node.op_type in ("Add", "Mul")
        position = 1 if commutes and node.input[0] not in self._values else 0
        value, constant = self._value(node, position), self._required(node, 1 - position)
        if value.kind == "images":
            channel_axis = 3 if value.settings == _CHANNELS_LAST else 1
            wanted = [1] * 4
            wanted[channel_axis] = value.shape[channel_axis - 1]
            shape = (1,) * (4 - constant.ndim) + constant.shape
            if all(size in (1, most) for size, most in zip(shape, wanted, strict=False)):
                return value
        raise _unexpected(node, "only the images are shifted and scaled, channel by channel")

    def add(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        if not all(name in self._values for name in node.input):
            return self._add_constant(node, attributes)
        operands = [self._value(node, position) for position in range(2)]
        if operands[0].shape != operands[1].shape:
            raise _unexpected(node, "adds maps of different shapes")
        first, second = sorted(operands, key=lambda value: value.number)
        return self._terms.make("add", (), (first, second), first.shape, node.name)

    def _add_constant(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        position = 0 if node.input[0] in self._values else 1
        value = self._value(node, position)
        if value.kind != "linear":
            return self.prepare(node, attributes)
        bias = self._required(node, 1 - position)
        if bias.size != value.shape[0]:
            raise _unexpected(node, "adds no bias")
        return self._terms.scale(value, digest(bias))

    def concat(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        parts = tuple(self._value(node, position) for position in range(len(node.input)))
        if attributes["axis"] not in (1, -3) or any(len(part.shape) != 3 for part in parts):
            raise _unexpected(node, "does not concatenate channels")
        if len({part.shape[1:] for part in parts}) != 1:
            raise _unexpected(node, "concatenates maps of different sizes")
        if len(parts) == 1:
            return parts[0]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return self._terms.make("concat", (), parts, shape, node.name)

    def conv(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value, weight, bias = self._map(node), self._required(node, 1), self._constant(node, 2)
        kernel, groups = weight.shape[2:], attributes.get("group", 1)
        if weight.ndim != 4 or weight.shape[1] * groups != value.shape[0]:
            raise _unexpected(node, "its weights do not fit its input")
        if tuple(attributes.get("kernel_shape", kernel)) != kernel:
            raise _unexpected(node, "its kernel is not that of its weights")
        strides, dilations, pads = _geometry(node, attributes)
        if kernel == (1, 1) and any(pads):
            value, pads = self._window(node, value, [-pad for pad in pads[:2]], pads[2:]), (0,) * 4
        sizes = _out_sizes(value, kernel, strides, dilations, pads)
        settings = (kernel, strides, dilations, pads, groups)
        shape = (weight.shape[0], *sizes)
        return self._terms.make(
            "conv", settings, (value,), shape, node.name, weight=weight, bias=bias
        )

    def batch_norm(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value = self._map(node)
        if attributes.get("training_mode", 0):
            raise _unexpected(node, "normalises by the batch")
        if value.kind == "images":
            return value
        own = sha256("".join(digest(self._required(node, i)) for i in range(1, 5)).encode())
        if value.kind == "conv":
            return self._terms.scale(value, own.hexdigest())
        if value.kind == "concat" and all(part.kind == "conv" for part in value.inputs):
            parts = tuple(
                self._terms.scale(part, f"{own.hexdigest()}/{index}")
                for index, part in enumerate(value.inputs)
            )
            return self._terms.make("concat", (), parts, value.shape, node.name)
        return self._terms.make("batch_norm", (own.hexdigest(),), (value,), value.shape, node.name)

    def pool(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value, kernel = self._map(node), tuple(attributes["kernel_shape"])
        strides, dilations, pads = _geometry(node, attributes)
        if attributes.get("ceil_mode", 0):
            raise _unexpected(node, "rounds sizes up")
        counts_padding = bool(attributes.get("count_include_pad", 0))
        shape = (value.shape[0], *_out_sizes(value, kernel, strides, dilations, pads))
        kind = "max_pool" if node.op_type == "MaxPool" else "avg_pool"
        settings = (kernel, strides, dilations, pads, counts_padding)
        return self._terms.make(kind, settings, (value,), shape, node.name)

    def slice(self, node: onnx.NodeProto, _attributes: Mapping[str, Any]) -> Value:
        value = self._map(node)
        starts, ends = (self._required(node, position).tolist() for position in (1, 2))
        axes = self._constant(node, 3)
        steps = self._constant(node, 4)
        if axes is None or (steps is not None and np.any(steps != 1)):
            raise _unexpected(node, "leaves out more than a border")
        before, after = [0, 0], [0, 0]
        for axis, start, end in zip(axes.tolist(), starts, ends, strict=True):
            axis = _spatial(node, axis)
            size = value.shape[1 + axis]
            first, last = (
                min(max(place + size if place < 0 else place, 0), size) for place in (start, end)
            )
            before[axis], after[axis] = first, last - size
        return self._window(node, value, before, after)

    def pad(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value, pads = self._map(node), self._required(node, 1).tolist()
        filler, axes = self._constant(node, 2), self._constant(node, 3)
        if attributes.get("mode", b"constant") != b"constant" or (
            filler is not None and np.any(filler)
        ):
            raise _unexpected(node, "does not pad with zeros")
        named = list(range(4)) if axes is None else axes.tolist()
        before, after = [0, 0], [0, 0]
        for index, axis in enumerate(named):
            amounts = pads[index], pads[index + len(named)]
            if any(amounts):
                axis = _spatial(node, axis)
                before[axis], after[axis] = -amounts[0], amounts[1]
        return self._window(node, value, before, after)

    def _window(self, node: onnx.NodeProto, value: Value, before: Any, after: Any) -> Value:
        """Return ``value`` without ``before`` rows and columns and with ``after`` zeros more."""
        base, old = value, (0, 0, 0, 0)
        if value.kind == "window":
            (base,), old = value.inputs, value.settings
        # What was cut off does not come back as zeros: such a pair is not one window.
        cuts = (old[0] > 0 > before[0], old[1] > 0 > before[1])
        if any(cuts) or (old[2] < 0 < after[0]) or (old[3] < 0 < after[1]):
            raise _unexpected(node, "pads where a border was cut off")
        window = (old[0] + before[0], old[1] + before[1], old[2] + after[0], old[3] + after[1])
        shape = (
            base.shape[0],
            base.shape[1] - window[0] + window[2],
            base.shape[2] - window[1] + window[3],
        )
        if window == (0, 0, 0, 0):
            return base
        return self._terms.make("window", window, (base,), shape, node.name)

    def mean(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value = self._map(node)
        if node.op_type == "ReduceMean":
            axes = self._constant(node, 1)
            named = attributes.get("axes", []) if axes is None else axes.tolist()
            if sorted(axis % 4 for axis in named) != [2, 3]:
                raise _unexpected(node, "is not the mean over height and width")
        return self._terms.make("mean", (), (value,), value.shape[:1], node.name)

    def flatten(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value = self._value(node, 0)
        features = list(value.shape)
        shape = None if node.op_type != "Reshape" else self._required(node, 1).tolist()
        if value.kind != "mean" or attributes.get("axis", 1) != 1:
            raise _unexpected(node, "only the means are flattened")
        if shape is not None and shape[1:] != features and shape != [0, -1]:
            raise _unexpected(node, "does not leave one vector for each image")
        return value

    def linear(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> Value:
        value, weight = self._value(node, 0), self._required(node, 1)
        plain = attributes.get("alpha", 1.0) == attributes.get(
            "beta", 1.0
        ) == 1.0 and not attributes.get("transA", 0)
        if attributes.get("transB", 0):
            weight = weight.T
        if not plain or value.kind != "mean" or weight.shape[:-1] != value.shape:
            raise _unexpected(node, "is no classifier on the means")
        bias = self._constant(node, 2)
        classes = weight.shape[1:]
        return self._terms.make(
            "linear", (), (value,), classes, node.name, weight=weight, bias=bias
        )


_READERS: Mapping[str, Callable[[_Reader, onnx.NodeProto, Mapping[str, Any]], Value]] = {
    "Add": _Reader.add,
    "AveragePool": _Reader.pool,
    "BatchNormalization": _Reader.batch_norm,
    "Cast": _Reader.cast,
    "Concat": _Reader.concat,
    "Conv": _Reader.conv,
    "DequantizeLinear": _Reader.dequantise,
    "Div": _Reader.prepare,
    "Flatten": _Reader.flatten,
    "Gemm": _Reader.linear,
    "GlobalAveragePool": _Reader.mean,
    "Identity": _Reader.same,
    "MatMul": _Reader.linear,
    "MaxPool": _Reader.pool,
    "Mul": _Reader.prepare,
    "Pad": _Reader.pad,
    "QuantizeLinear": _Reader.quantise,
    "ReduceMean": _Reader.mean,
    "Relu": _Reader.relu,
    "Reshape": _Reader.flatten,
    "Slice": _Reader.slice,
    "Squeeze": _Reader.flatten,
    "Sub": _Reader.prepare,
    "Transpose": _Reader.transpose,
}


def _geometry(
    node: onnx.NodeProto, attributes: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return strides, dilations (height, width) and pads (top, left, bottom, right)."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise _unexpected(node, "pads automatically")
    return (
        tuple(attributes.get("strides", (1, 1))),
        tuple(attributes.get("dilations", (1, 1))),
        tuple(attributes.get("pads", (0, 0, 0, 0))),
    )


def _out_sizes(
    value: Value,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
) -> tuple[int, int]:
    height, width = (
        (
            value.shape[1 + axis]
            + pads[axis]
            + pads[axis + 2]
            - dilations[axis] * (kernel[axis] - 1)
            - 1
        )
        // strides[axis]
        + 1
        for axis in range(2)
    )
    return height, width


def _spatial(node: onnx.NodeProto, axis: int) -> int:
    """Return 0 for the axis of height, 1 for that of width."""
    if axis % 4 < 2:
        raise _unexpected(node, "moves more than height and width")
    return axis % 4 - 2


def _unexpected(node: onnx.NodeProto, why: str) -> ValidationFailedError:
    return ValidationFailedError(f"identity: node {node.name[:80]!r} ({node.op_type}): {why}")

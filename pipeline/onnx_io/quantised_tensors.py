"""Constant tensors of a quantised graph: integers with a scale, which DequantizeLinear multiplies.

Per tensor or by channel: ``scale`` is one number or one for each slice along ``axis``. One number
is a scalar or a vector of one: for a bias of one channel ONNX Runtime writes a scale of shape [1]
with a zero point of shape [] and without an axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


@dataclass(frozen=True)
class QuantisedTensor:
    """What a DequantizeLinear node reads: real = (integers - zero_point) * scale."""

    integers: Array
    scale: Array
    zero_point: Array
    axis: int

    @property
    def steps(self) -> NDArray[np.float64]:
        """Distance between neighbouring values, of a shape that fits ``integers``."""
        return self._along(self.scale)

    def values(self) -> NDArray[np.float64]:
        """Return the real numbers."""
        return (self.integers.astype(np.float64) - self._along(self.zero_point)) * self.steps

    @property
    def channel_axis(self) -> int | None:
        """Axis, from 0, whose slices have scales of their own; None where all have one."""
        return self.axis % self.integers.ndim if self.scale.size != 1 else None

    def _along(self, numbers: Array) -> NDArray[np.float64]:
        shape = [1] * self.integers.ndim
        if self.channel_axis is not None:
            shape[self.channel_axis] = len(numbers)
        return numbers.astype(np.float64).reshape(shape)


def quantised_tensor(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]
) -> QuantisedTensor | None:
    """Return what a DequantizeLinear ``node`` reads of ``weights``; None where it reads features,
    or numbers that do not belong together.
    """
    if node.op_type != "DequantizeLinear" or any(name not in weights for name in node.input):
        return None
    integers, scale, *zero = (numpy_helper.to_array(weights[name]) for name in node.input)
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    axis = attributes.get("axis", 1)
    zero_point = zero[0] if zero else np.zeros_like(scale, integers.dtype)
    if attributes.get("block_size", 0) or scale.ndim > 1 or zero_point.ndim > 1:
        return None
    if zero_point.size != scale.size:
        return None
    if scale.size != 1 and not (
        -integers.ndim <= axis < integers.ndim and len(scale) == integers.shape[axis]
    ):
        return None
    return QuantisedTensor(integers, scale, zero_point, axis)


def quantised_again(tensor: QuantisedTensor, values: Array) -> QuantisedTensor:
    """Return ``values`` in the integers of ``tensor``: symmetric, by the same axis, scaled to
    the largest value of each channel; int32, a bias, by the scale that it has.
    """
    scale, info = tensor.scale.astype(np.float64), np.iinfo(tensor.integers.dtype)
    if tensor.integers.dtype != np.int32:
        others = tuple(other for other in range(values.ndim) if other != tensor.channel_axis)
        largest = np.abs(values).max(axis=others).astype(np.float64)
        # As many bits as there were: 127 or, where a CPU would saturate, 64.
        most = int(np.abs(tensor.integers.astype(np.int64)).max())
        largest = largest.reshape(scale.shape)
        scale = np.where(largest > 0, largest / max(most, 1), scale)
    made = QuantisedTensor(
        tensor.integers,
        scale.astype(np.float32),
        np.zeros_like(tensor.zero_point),
        tensor.axis,
    )
    integers = np.clip(np.rint(values / made.steps), info.min, info.max)
    return QuantisedTensor(
        integers.astype(tensor.integers.dtype), made.scale, made.zero_point, made.axis
    )

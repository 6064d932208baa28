"""Expressions of what a network computes, in which equal parts are one.

A ``Value`` is a layer with its settings and the values it reads. Equal layers on equal inputs are
one ``Value`` (two convolutions are equal if their weights are), so it makes no difference whether
something was computed once or twice.
"""

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Learned:
    """Learned values of a layer, as digests."""

    parameters: tuple[str, ...] = ()
    """Of everything."""
    weights: str = ""
    """Of the weights of a convolution or classifier alone."""
    uniform: bool = False
    """All weights are one number, so that equality with another layer's means nothing."""
    scaled: bool = False
    """There is a bias, or a batch normalisation after it."""


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A layer's output. ``shape`` is that of one image: (channels, height, width) or (features,).

    Settings, by ``kind``: conv (kernel, strides, dilations, pads, groups); max_pool and avg_pool
    (kernel, strides, dilations, pads, whether padding counts); window (rows and columns taken away
    at the top and left, zeros added at the bottom and right); pairs are (height, width), pads
    as ONNX has them; rounded (scale, zero point), which no layer reads. Others, without settings:
    images, relu, batch_norm, add, concat, mean, linear.
    """

    kind: str
    settings: tuple[Any, ...]
    inputs: tuple["Value", ...]
    shape: tuple[int, ...]
    node: str
    """A node of the graph that computes it, for messages only."""
    learned: Learned = Learned()
    number: int = -1
    depth: int = 0
    """Layers on the longest way from the images."""


class Terms:
    """Makes values, each once."""

    def __init__(self) -> None:
        self._table: dict[Any, Value] = {}

    def make(
        self,
        kind: str,
        settings: tuple[Any, ...],
        inputs: tuple[Value, ...],
        shape: tuple[int, ...],
        node: str,
        *,
        weight: Array | None = None,
        bias: Array | None = None,
    ) -> Value:
        """Return the value of this kind, settings, inputs and parameters."""
        if weight is None:
            return self._once(Value(kind, settings, inputs, shape, node))
        weights, scaled = digest(weight), bias is not None and bool(np.any(bias))
        parameters = (weights, digest(bias)) if bias is not None and scaled else (weights,)
        uniform = bool(np.all(weight == weight.flat[0]))
        learned = Learned(parameters, weights, uniform, scaled)
        return self._once(Value(kind, settings, inputs, shape, node, learned))

    def scale(self, value: Value, parameters: str) -> Value:
        """Return a convolution or classifier with a scale or bias after it."""
        learned = replace(
            value.learned, scaled=True, parameters=(*value.learned.parameters, parameters)
        )
        return self._once(replace(value, learned=learned))

    def _once(self, value: Value) -> Value:
        sources = tuple(source.number for source in value.inputs)
        key = (value.kind, value.settings, sources, value.learned.parameters)
        if key not in self._table:
            depth = 1 + max((source.depth for source in value.inputs), default=-1)
            self._table[key] = replace(value, number=len(self._table), depth=depth)
        return self._table[key]


def reachable(value: Value) -> list[Value]:
    """Return ``value`` and all values that it is computed from, each once."""
    found: dict[int, Value] = {value.number: value}
    waiting = [value]
    while waiting:
        for source in waiting.pop().inputs:
            if source.number not in found:
                found[source.number] = source
                waiting.append(source)
    return list(found.values())


def digest(array: Array) -> str:
    """Return a digest of an array's type, shape and values."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()

"""ONNX graphs of networks and of single cells with random weights, built without torch.

Time does not depend on the values of weights, so a network is timed before it is trained. An export
of it takes the exporter half a minute; here the layers of ``identity.layout``, by which the gate
reads a model's architecture, are written down as nodes in milliseconds. ONNX Runtime makes the same
kernels of both (a test compares them).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype
from d2nas.spaces import EDGES_PER_NODE

from ..identity.check import GENOTYPE_KEY, NETWORK_KEY
from ..identity.layout import DEPLOYED_OPERATIONS, CellLayout, Claim, Factorized, Layer, Layers
from ..onnx_io import INPUT_NAME, OUTPUT_NAME
from ..onnx_io.half_precision import to_half
from ..onnx_io.model_file import BATCH_AXIS, MAX_IR_VERSION
from ..onnx_io.pixel_input import take_pixels
from .parts import CellShape, Serving

_BATCH_NORM_EPS = 1e-5


class _Builder:
    """Nodes in the order of computation, and their weights; values are known by name."""

    def __init__(self, in_channels: int, size: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.channels = {INPUT_NAME: in_channels}
        self.sizes = {INPUT_NAME: size}
        self._draws = np.random.default_rng(0)

    def node(self, kind: str, inputs: Sequence[str], channels: int, **attributes: Any) -> str:
        """Add a node; return its output, of so many channels and the size that its strides say."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        self.channels[name] = channels
        stride = max(attributes.get("strides", [1]))
        self.sizes[name] = (self.sizes[inputs[0]] + stride - 1) // stride
        return name

    def constant(self, values: Any) -> str:
        """Add a tensor; return its name."""
        name = f"tensor_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, *shape: int) -> str:
        """Add weights that keep the size of what they are given."""
        spread = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        return self.constant(self._draws.normal(0.0, spread, shape).astype(np.float32))

    def bias(self, channels: int) -> str:
        """Add one number for each channel, near 0."""
        return self.constant(self._draws.normal(0.0, 0.1, channels).astype(np.float32))

    def lay(self, layers: Layers, value: str) -> str:
        """Add layers over a value, first to last."""
        for layer in layers:
            if isinstance(layer, Factorized):
                value = self._factorized(layer, value)
            elif layer.kind == "relu":
                value = self.node("Relu", [value], self.channels[value])
            elif layer.kind == "conv":
                value = self._convolution(layer, value)
            else:
                value = self._pooling(layer, value)
        return value

    def _convolution(self, layer: Layer, value: str, *, after: int = 0) -> str:
        inputs, outputs = self.channels[value], layer.channels or self.channels[value]
        groups = inputs if layer.depthwise else 1
        weights = [self.weights(outputs, inputs // groups, *layer.kernel)]
        bias = [self.bias(outputs)] if layer.scaled else []  # batch norm, folded by the export
        return self.node(
            "Conv",
            [value, *weights, *bias],
            outputs,
            group=groups,
            dilations=[layer.dilation] * 2,
            **_window(layer, after=after),
        )

    def _pooling(self, layer: Layer, value: str) -> str:
        kind = {"max_pool": "MaxPool", "avg_pool": "AveragePool"}[layer.kind]
        return self.node(kind, [value], self.channels[value], **_window(layer))

    def _factorized(self, layer: Factorized, value: str) -> str:
        half = layer.channels // 2
        conv = Layer("conv", stride=(2, 2), channels=half)
        relu = self.node("Relu", [value], self.channels[value])
        moved = relu
        for axis in (2, 3):
            one, last, axes = (
                self.constant(np.array([number], np.int64))
                for number in (1, np.iinfo(np.int64).max, axis)
            )
            moved = self.node("Slice", [moved, one, last, axes, one], self.channels[relu])
        # The other half of an odd size has a row and a column of zeros.
        zeros = self.sizes[relu] % 2
        halves = [self._convolution(conv, relu), self._convolution(conv, moved, after=zeros)]
        both = self.node("Concat", halves, 2 * half, axis=1)
        # Over the concatenation, so that it is not folded into the convolutions.
        statistics = [self.constant(np.ones(2 * half, np.float32)), self.bias(2 * half)]
        statistics += [self.bias(2 * half), self.constant(np.full(2 * half, 0.9, np.float32))]
        return self.node(
            "BatchNormalization", [both, *statistics], 2 * half, epsilon=_BATCH_NORM_EPS
        )

    def cell(self, layout: CellLayout, inputs: tuple[str, str]) -> str:
        """Add a cell over its two inputs; return its output."""
        states = [self.lay(layout.preprocess(which), each) for which, each in enumerate(inputs)]
        for first in range(0, len(layout.pairs), EDGES_PER_NODE):
            one, other = (
                self.lay(layout.operation(edge), states[layout.pairs[edge][1]])
                for edge in (first, first + 1)
            )
            states.append(self.node("Add", [other, one], layout.channels))
        nodes = [states[node] for node in layout.concat]
        if len(nodes) == 1:
            return nodes[0]
        return self.node("Concat", nodes, len(nodes) * layout.channels, axis=1)

    def classifier(self, value: str, num_classes: int) -> None:
        """Add the mean over height and width and the linear layer, whose output is the graph's."""
        channels = self.channels[value]
        axes = self.constant(np.array([2, 3], np.int64))
        mean = self.node("ReduceMean", [value, axes], channels, keepdims=0)
        weights, bias = self.weights(num_classes, channels), self.bias(num_classes)
        self.nodes.append(
            helper.make_node("Gemm", [mean, weights, bias], [OUTPUT_NAME], "classifier", transB=1)
        )

    def model(self, size: int, serving: Serving) -> onnx.ModelProto:
        """Return what was added as a model of images of so many pixels' height and width."""
        real = TensorProto.FLOAT
        shape: list[str | int | None] = [BATCH_AXIS, serving.in_channels, size, size]
        images = helper.make_tensor_value_info(INPUT_NAME, real, shape)
        classes: list[str | int | None] = [BATCH_AXIS, serving.num_classes]
        logits = helper.make_tensor_value_info(OUTPUT_NAME, real, classes)
        graph = helper.make_graph(self.nodes, "network", [images], [logits], self.tensors)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", serving.opset)], ir_version=MAX_IR_VERSION
        )


def _window(layer: Layer, *, after: int = 0) -> dict[str, list[int]]:
    """Return a window's attributes; ``after``: rows and columns of zeros at the end besides."""
    pads = [layer.dilation * (size // 2) for size in layer.kernel]
    return {
        "kernel_shape": [*layer.kernel],
        "strides": [*layer.stride],
        "pads": [*pads, *(pad + after for pad in pads)],
    }


def is_known(genotype: Genotype) -> bool:
    """Whether all operations of a genotype are d2nas's own: the graphs of others are not known."""
    return {name for name, _ in (*genotype.normal, *genotype.reduce)} <= {*DEPLOYED_OPERATIONS}


def network_graph(claim: Claim, serving: Serving) -> bytes:
    """Return the model of a whole network, as an export of it would be with other weights."""
    builder = _Builder(claim.in_channels, serving.image_size)
    to_first, to_second = claim.stem_layers()
    previous = builder.lay(to_first, INPUT_NAME)
    current = builder.lay(to_second, previous)
    for layout in claim.cells():
        previous, current = current, builder.cell(layout, (previous, current))
    builder.classifier(current, claim.num_classes)
    model = builder.model(serving.image_size, serving)
    sizes = {
        "genotype": claim.genotype.to_dict(),
        "num_cells": claim.num_cells,
        "init_channels": claim.init_channels,
        "num_classes": claim.num_classes,
        "in_channels": claim.in_channels,
        "stem": claim.stem,
    }
    for key, text in (
        (GENOTYPE_KEY, claim.genotype.to_json()),
        (NETWORK_KEY, canonical_json(sizes).decode()),
    ):
        model.metadata_props.add(key=key, value=text)
    return _as_served(model, serving)


def outside_graph(claim: Claim, serving: Serving) -> bytes:
    """Return the model of what is outside of the cells: stem and classifier."""
    builder = _Builder(claim.in_channels, serving.image_size)
    to_first, to_second = claim.stem_layers()
    last = builder.lay((*to_first, *to_second), INPUT_NAME)
    builder.classifier(last, claim.num_classes)
    return _as_served(builder.model(serving.image_size, serving), serving)


def cell_graph(shape: CellShape, layout: CellLayout | None, serving: Serving) -> bytes:
    """Return a model around one cell: two convolutions make its inputs of images, a classifier
    reads its output. Without a ``layout``: the same without the cell, the classifier reads both.
    """
    builder = _Builder(serving.in_channels, shape.input_sizes[0])
    inputs = []
    for channels, size in zip(shape.input_channels, shape.input_sizes, strict=True):
        stride = 1 if size == shape.input_sizes[0] else 2
        layer = Layer("conv", stride=(stride, stride), channels=channels, scaled=True)
        inputs.append(builder.lay((layer,), INPUT_NAME))
    if layout is None:
        axes = builder.constant(np.array([2, 3], np.int64))
        means = [
            builder.node("ReduceMean", [value, axes], builder.channels[value], keepdims=1)
            for value in inputs
        ]
        output = builder.node("Concat", means, sum(shape.input_channels), axis=1)
    else:
        output = builder.cell(layout, (inputs[0], inputs[1]))
    builder.classifier(output, serving.num_classes)
    prepared = replace(serving, input_type="float32")
    return _as_served(builder.model(shape.input_sizes[0], prepared), prepared)


def _as_served(model: onnx.ModelProto, serving: Serving) -> bytes:
    if serving.input_type == "uint8":
        channels = serving.in_channels
        take_pixels(model, (0.5,) * channels, (0.25,) * channels)
    if serving.precision == "fp16":
        model = to_half(model)
    return bytes(model.SerializeToString())

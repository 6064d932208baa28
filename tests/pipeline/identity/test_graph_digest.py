"""Digest of a library's graph: of what is computed, not of names and weights."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from d2nas.errors import ValidationFailedError
from d2nas.nn import library_network
from d2nas.nn.library_network import LibraryNetwork
from pipeline.gate.mutants import _integers, _weights, _with_weight, mutants
from pipeline.identity.check import GRAPH_KEY, LIBRARY_KEY, check_identity
from pipeline.identity.graph_digest import graph_digest
from pipeline.identity.quantised import check_quantised
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.model_file import with_metadata
from pipeline.onnx_io.quantisation import quantise

NAME = "torchvision:shufflenet_v2_x0_5"


@cache
def exported(seed: int, num_classes: int = 5) -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LibraryNetwork(NAME, num_classes=num_classes, in_channels=3).eval()
    return export_onnx(network, input_shape=(3, 32, 32), opset=18, metadata={LIBRARY_KEY: NAME})


def model_of(seed: int = 0) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(exported(seed))


def stride(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(entry for entry in node.attribute if entry.name == "strides").ints[0] = 1


def operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def connection(model: onnx.ModelProto) -> None:
    first, second = [node for node in model.graph.node if node.op_type == "Relu"][:2]
    second.input[0] = first.input[0]


def shape(model: onnx.ModelProto) -> None:
    name = next(node for node in model.graph.node if node.op_type == "Reshape").input[1]
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            values[1] += 1
            tensor.CopyFrom(numpy_helper.from_array(values, name))


def width(model: onnx.ModelProto) -> None:
    weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values[:-1], weight.name))


def test_other_weights_and_names_leave_the_digest() -> None:
    model = model_of()
    assert exported(0) != exported(1)
    assert graph_digest(model) == graph_digest(model_of(1))
    for node in model.graph.node:
        node.name = f"other_{node.name}"
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                values[place] = f"x_{value}" if value not in ("", "images", "logits") else value
    for tensor in model.graph.initializer:
        tensor.name = f"x_{tensor.name}"
    assert graph_digest(model) == graph_digest(model_of())


@pytest.mark.parametrize("change", [stride, operator, connection, shape, width])
def test_another_graph_has_another_digest(change: Callable[[onnx.ModelProto], None]) -> None:
    model = model_of()
    change(model)
    assert graph_digest(model) != graph_digest(model_of())


def test_another_number_of_classes_is_another_graph() -> None:
    other = onnx.ModelProto.FromString(exported(0, num_classes=6))
    assert graph_digest(other) != graph_digest(model_of())


def test_a_model_must_have_the_digest_that_it_says() -> None:
    stamped = with_metadata(exported(0), GRAPH_KEY, graph_digest(model_of()))
    report = check_identity(stamped)
    assert report.to_dict()["graph_sha256"] == graph_digest(model_of())
    assert report.genotype_digest is None
    changed = onnx.ModelProto.FromString(stamped)
    operator(changed)
    with pytest.raises(ValidationFailedError, match="is not that of torchvision:shufflenet"):
        check_identity(changed)
    with pytest.raises(ValidationFailedError):
        check_identity(exported(0))


def test_a_quantised_graph_has_the_digest_of_its_float32_model() -> None:
    whole = with_metadata(exported(0), GRAPH_KEY, graph_digest(model_of()))
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    data = quantise(whole, [images])
    assert check_quantised(data, whole).num_weights > 40
    found = check_identity(data)
    assert found.graph_sha256 == graph_digest(model_of())
    changed = onnx.ModelProto.FromString(data)
    assert graph_digest(changed) != found.graph_sha256  # with its rounding
    operator(changed)
    with pytest.raises(ValidationFailedError, match="its digest is another"):
        check_identity(changed)


def one_channel_network(*_: object) -> nn.Module:
    """A network with a convolution of one output channel, whose bias is one number."""
    return nn.Sequential(
        nn.Conv2d(3, 1, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def of_one_channel(monkeypatch: pytest.MonkeyPatch, seed: int) -> bytes:
    monkeypatch.setattr(library_network, "_torchvision", one_channel_network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LibraryNetwork(NAME, num_classes=5, in_channels=3).eval()
    data = export_onnx(network, input_shape=(3, 8, 8), opset=18, metadata={LIBRARY_KEY: NAME})
    return with_metadata(data, GRAPH_KEY, graph_digest(onnx.ModelProto.FromString(data)))


def test_a_bias_of_one_channel_is_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (
        onnx.ModelProto.FromString(of_one_channel(monkeypatch, seed)) for seed in range(2)
    )
    biases = [
        numpy_helper.to_array(tensor).item()
        for model in (one, other)
        for tensor in model.graph.initializer
        if list(tensor.dims) == [1]
    ]
    assert len({*biases}) == len(biases) == 2
    assert graph_digest(one) == graph_digest(other)


def bounded(bound: float) -> onnx.ModelProto:
    shape = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(
        [helper.make_node("Max", ["x", "bound"], ["y"])],
        "bounded",
        [shape],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.array(bound, np.float32), "bound")],
    )
    return helper.make_model(graph)


def test_control_a_scalar_counts_by_its_value() -> None:
    assert graph_digest(bounded(1.0)) == graph_digest(bounded(1.0))
    assert graph_digest(bounded(1.0)) != graph_digest(bounded(2.0))


@pytest.mark.parametrize("bits", [7, 8])
def test_a_convolution_of_one_output_channel_is_quantised(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    whole = of_one_channel(monkeypatch, 0)
    images = np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32)
    data = quantise(whole, [images], bits=bits)  # type: ignore[arg-type]
    assert check_quantised(data, whole).num_weights == 6
    assert check_identity(data) == check_identity(whole)
    # Its weights quantised again are those that they were, in shapes that are read.
    parsed = onnx.ModelProto.FromString(data)
    shapes = {tensor.name: list(tensor.dims) for tensor in parsed.graph.initializer}
    for name in _integers(parsed):
        again = _with_weight(parsed, name, _weights(parsed)[name])
        check_quantised(again, whole)
        made = onnx.ModelProto.FromString(again).graph.initializer
        assert {tensor.name: list(tensor.dims) for tensor in made} == shapes
    faulty = dict(mutants(data))
    assert "stem weight + 1 %" in faulty
    for copy in faulty.values():
        with pytest.raises(ValidationFailedError, match="quantisation: "):
            check_quantised(copy, whole)

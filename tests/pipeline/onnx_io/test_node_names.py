"""Names of exported nodes: cell, node and edge of each, also where the graph merged equal ones."""

import re

import onnx
import pytest
from architectures import EVERY_OPERATION, MERGED, exported
from onnx import helper
from onnx_models import INPUT_SHAPE, settled_network

from d2nas.nn.network import Network
from d2nas.spaces import NODES
from pipeline.onnx_io import export
from pipeline.onnx_io.node_names import name_nodes

PLACE = re.compile(
    r"(stem|cell\d\d/(preprocess[01]|node[2-5]/edge[01]_\w+)|classifier)/[a-z]+(_\d+)?"
    r"|cell\d\d/(node[2-5]/add|concat)"
)


@pytest.fixture(scope="module")
def graph() -> onnx.GraphProto:
    return onnx.ModelProto.FromString(exported(EVERY_OPERATION, opset=18, size=15)).graph


@pytest.fixture(scope="module")
def merged() -> onnx.GraphProto:
    return onnx.ModelProto.FromString(exported(MERGED)).graph


def test_every_node_has_a_name_of_its_own_that_says_its_place(
    graph: onnx.GraphProto, merged: onnx.GraphProto
) -> None:
    for names in ([node.name for node in part.node] for part in (graph, merged)):
        assert [name for name in names if not PLACE.fullmatch(name)] == []
        assert len(set(names)) == len(names)


def test_an_edge_has_its_operations_layers_and_no_others(graph: onnx.GraphProto) -> None:
    types: dict[str, list[str]] = {}
    for node in graph.node:
        types.setdefault(node.name.rpartition("/")[0], []).append(node.op_type)
    depthwise = ["Relu", "Conv", "Conv"]
    # The first to read a state computes its ReLU.
    assert types["cell03/node2/edge0_sep_conv_3x3"] == 2 * depthwise
    assert types["cell03/node3/edge1_dil_conv_5x5"] == depthwise
    assert types["cell03/node3/edge0_max_pool_3x3"] == ["MaxPool"]
    assert types["cell03/node4/edge0_conv_7x1_1x7"] == ["Conv", "Conv"]
    assert types["cell03/node4/edge1_avg_pool_3x3"] == ["AveragePool"]
    assert "cell03/node2/edge1_skip_connect" not in types
    assert types["cell01/node2/edge0_skip_connect"].count("BatchNormalization") == 1
    assert types["cell01/preprocess1"] == ["Relu", "Conv"]
    assert types["cell01"] == ["Concat"]
    assert types["classifier"] == ["ReduceMean", "Gemm"]
    assert types["stem"] == ["Conv"]


def test_the_sum_of_a_node_adds_what_the_names_say(graph: onnx.GraphProto) -> None:
    inputs = {node.name: set(node.input) for node in graph.node}
    assert inputs["cell03/node2/add"] == {
        "cell03/node2/edge0_sep_conv_3x3/conv_3",
        "cell03/preprocess1/conv",
    }
    assert inputs["cell03/node5/add"] == {
        "cell03/node5/edge0_dil_conv_3x3/conv_1",
        "cell03/preprocess0/batchnormalization",
    }
    for cell in range(4):
        assert list(node_of(graph, f"cell{cell:02d}/concat").input) == [
            f"cell{cell:02d}/node{node}/add" for node in NODES
        ]


def node_of(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    (found,) = (node for node in graph.node if node.name == name)
    return found


def test_a_merged_node_has_its_first_users_name(merged: onnx.GraphProto) -> None:
    names = {node.name for node in merged.node}
    assert "cell00/node2/edge0_max_pool_3x3/maxpool" in names
    assert "cell00/node3/edge1_max_pool_3x3/maxpool" not in names
    # Node 5 of the reduction cell repeats node 3, which is then its name too.
    assert "cell01/node3/add" in names
    assert "cell01/node5/add" not in names
    assert list(node_of(merged, "cell01/concat").input) == [
        f"cell01/node{node}/add" for node in (2, 3, 4, 3)
    ]


def test_values_are_called_after_their_nodes_and_the_interface_is_kept(
    graph: onnx.GraphProto,
) -> None:
    assert all(node.output[0] in (node.name, "logits") for node in graph.node)
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "logits"]
    weights = {tensor.name for tensor in graph.initializer}
    assert "cells.3.operations.0.0.convs.0.weight" in weights
    known = weights | {"images"} | {name for node in graph.node for name in node.output}
    assert {name for node in graph.node for name in node.input if name} <= known
    assert {value.name for value in graph.value_info} <= known


def test_other_modules_keep_their_path() -> None:
    data = export.export_onnx(settled_network(), input_shape=INPUT_SHAPE, opset=20, metadata={})
    names = [node.name for node in onnx.ModelProto.FromString(data).graph.node]
    assert len(set(names)) == len(names)
    assert {"stem/1/conv", "separable/0/relu", "max_pool/maxpool", "classifier/gemm"} <= set(names)


def test_control_without_the_exporters_metadata_nothing_is_guessed() -> None:
    network = Network(EVERY_OPERATION, num_cells=1, init_channels=4)
    nodes = [helper.make_node("Relu", ["images"], ["logits"], name="node_relu_7")]
    model = helper.make_model(helper.make_graph(nodes, "", [], []))
    name_nodes(model, network)
    assert model.graph.node[0].name == "node_relu_7"

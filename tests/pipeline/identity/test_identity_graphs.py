"""Graphs that were tampered with are refused, and the place is named."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from architectures import (
    EVERY_OPERATION,
    edited,
    exported,
    insert,
    node,
    set_attribute,
    set_weight,
    weight,
)
from onnx import helper, numpy_helper

from d2nas.errors import ValidationFailedError
from pipeline.identity import check as identity
from pipeline.identity import layout as architecture
from pipeline.identity.check import check_identity

Edit = Callable[[onnx.ModelProto], None]

# The normal cell 3 and the reduction cell 1 of EVERY_OPERATION, 16 channels and 8.
SEP = "cell03/node2/edge0_sep_conv_3x3"
DIL = "cell03/node5/edge0_dil_conv_3x3"
HALVED = "cell01/node4/edge0_sep_conv_7x7"
SKIP = "cell01/node2/edge0_skip_connect"


@pytest.fixture(scope="module")
def data() -> bytes:
    return exported(EVERY_OPERATION, opset=18, size=15)


def less_dilation(model: onnx.ModelProto) -> None:
    set_attribute(node(model, f"{DIL}/conv_0"), "dilations", [1, 1])
    set_attribute(node(model, f"{DIL}/conv_0"), "pads", [1, 1, 1, 1])


def more_dilation(model: onnx.ModelProto) -> None:
    set_attribute(node(model, f"{SEP}/conv_0"), "dilations", [2, 2])
    set_attribute(node(model, f"{SEP}/conv_0"), "pads", [2, 2, 2, 2])


def larger_kernel(model: onnx.ModelProto) -> None:
    changed = node(model, f"{SEP}/conv_2")
    values = np.pad(
        numpy_helper.to_array(weight(model, changed.input[1])), [(0, 0)] * 2 + [(1, 1)] * 2
    )
    set_weight(model, changed.input[1], values)
    set_attribute(changed, "kernel_shape", [5, 5])
    set_attribute(changed, "pads", [2, 2, 2, 2])


def no_groups(model: onnx.ModelProto) -> None:
    changed = node(model, f"{SEP}/conv_0")
    values = np.linspace(-1, 1, 16 * 16 * 9, dtype=np.float32).reshape(16, 16, 3, 3)
    set_weight(model, changed.input[1], values)
    set_attribute(changed, "group", 1)


def stride_moved(model: onnx.ModelProto) -> None:
    set_attribute(node(model, f"{HALVED}/conv_0"), "strides", [1, 1])
    set_attribute(node(model, f"{HALVED}/conv_2"), "strides", [2, 2])
    del model.graph.value_info[:]


def stride_on_the_1x1(model: onnx.ModelProto) -> None:
    set_attribute(node(model, f"{HALVED}/conv_0"), "strides", [1, 1])
    set_attribute(node(model, f"{HALVED}/conv_1"), "strides", [2, 2])
    del model.graph.value_info[:]


def average_for_maximum(model: onnx.ModelProto) -> None:
    changed = node(model, "cell03/node3/edge0_max_pool_3x3/maxpool")
    changed.op_type = "AveragePool"
    kept = [a for a in changed.attribute if a.name not in ("storage_order", "dilations")]
    del changed.attribute[:]
    changed.attribute.extend(kept)


def padding_counts(model: onnx.ModelProto) -> None:
    set_attribute(
        node(model, "cell03/node4/edge1_avg_pool_3x3/averagepool"), "count_include_pad", 1
    )


def rewired(model: onnx.ModelProto) -> None:
    node(model, f"{DIL}/relu").input[0] = "cell03/node2/add"


def sources_exchanged(model: onnx.ModelProto) -> None:
    first = node(model, "cell03/node4/edge0_conv_7x1_1x7/conv_0")
    insert(model, helper.make_node("Relu", ["cell03/node2/add"], ["other"]), before=first.name)
    node(model, first.name).input[0] = "other"
    pool = node(model, "cell03/node4/edge1_avg_pool_3x3/averagepool")
    pool.input[0] = "cell03/preprocess0/batchnormalization"


def skip_of_another_state(model: onnx.ModelProto) -> None:
    added = node(model, "cell03/node5/add")
    position = list(added.input).index("cell03/preprocess0/batchnormalization")
    added.input[position] = "cell03/preprocess1/conv"


def skip_replaced(model: onnx.ModelProto) -> None:
    pool = helper.make_node(
        "MaxPool",
        ["cell03/preprocess1/conv"],
        ["pooled"],
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )
    insert(model, pool, before="cell03/node2/add")
    added = node(model, "cell03/node2/add")
    added.input[list(added.input).index("cell03/preprocess1/conv")] = "pooled"


def nodes_exchanged(model: onnx.ModelProto) -> None:
    joined = node(model, "cell03/concat")
    joined.input[0], joined.input[1] = joined.input[1], joined.input[0]


def node_repeated(model: onnx.ModelProto) -> None:
    node(model, "cell03/concat").input[3] = "cell03/node4/add"


def cell_skipped(model: onnx.ModelProto) -> None:
    # Cell 2 and cell 1 differ in shape; cell 2's own nodes do not.
    node(model, "cell02/concat").input[2] = "cell02/node2/add"


def other_cells_input(model: onnx.ModelProto) -> None:
    # Cell 1's input 0 is the stem's output; both inputs of cell 0 are, too.
    node(model, "cell01/preprocess0/conv").input[0] = "cell00/preprocess0/conv"
    values = np.linspace(-1, 1, 8 * 4, dtype=np.float32).reshape(8, 4, 1, 1)
    set_weight(model, "cells.1.preprocess0.convs.0.weight", values)


def no_relu(model: onnx.ModelProto) -> None:
    node(model, f"{DIL}/conv_0").input[0] = "cell03/node3/add"


def one_relu_more(model: onnx.ModelProto) -> None:
    insert(model, helper.make_node("Relu", [f"{SEP}/conv_0"], ["more"]), before=f"{SEP}/conv_1")
    node(model, f"{SEP}/conv_1").input[0] = "more"


def no_shift(model: onnx.ModelProto) -> None:
    node(model, f"{SKIP}/conv_1").input[0] = f"{SKIP}/relu"
    set_attribute(node(model, f"{SKIP}/conv_1"), "pads", [0, 0, 0, 0])


def halves_exchanged(model: onnx.ModelProto) -> None:
    joined = node(model, f"{SKIP}/concat")
    joined.input[0], joined.input[1] = joined.input[1], joined.input[0]


def bias_inside(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "bias"))
    node(model, f"{SEP}/conv_0").input.append("bias")


def weights_shared(model: onnx.ModelProto) -> None:
    node(model, f"{SEP}/conv_2").input[1] = node(model, f"{SEP}/conv_0").input[1]


def other_cells_weights(model: onnx.ModelProto) -> None:
    first, second = (node(model, f"{name}/conv_0") for name in (DIL, SEP))
    second.input[1] = first.input[1]


def mean_over_one_axis(model: onnx.ModelProto) -> None:
    axes = node(model, "classifier/reducemean").input[1]
    set_weight(model, axes, np.array([1, 2], np.int64))
    set_weight(model, "classifier.weight", np.ones((5, 4), np.float32))
    del model.graph.value_info[:]


def another_operator(model: onnx.ModelProto) -> None:
    node(model, f"{DIL}/relu").op_type = "Sigmoid"


def random_values(model: onnx.ModelProto) -> None:
    noise = helper.make_node("RandomNormalLike", ["cell03/node3/add"], ["noise"])
    insert(model, noise, before=f"{DIL}/relu")
    node(model, f"{DIL}/relu").input[0] = "noise"


SABOTAGE: dict[Edit, str] = {
    less_dilation: r"cell03/node5: .*sep|cell03/node5: .*no known operation",
    more_dilation: "cell03/node2",
    larger_kernel: "cell03/node2",
    no_groups: "cell03/node2",
    stride_moved: "cell01/node4",
    stride_on_the_1x1: "cell01/node4",
    average_for_maximum: r"cell03/node3: the graph computes .*avg_pool_3x3\(0\)",
    padding_counts: "cell03/node4",
    rewired: r"cell03/node5: .*dil_conv_3x3\(2\).*genotype dil_conv_3x3\(3\)",
    sources_exchanged: r"computes (.*conv_7x1_1x7\(2\)|.*avg_pool_3x3\(0\)){2}, the",
    skip_of_another_state: r"cell03/node5: .*skip_connect\(1\).*genotype",
    skip_replaced: r"cell03/node2: .*max_pool_3x3\(1\).*genotype .*skip_connect\(1\)",
    nodes_exchanged: "cell03/node2",
    node_repeated: "cell03/node5",
    cell_skipped: "cell02/node4",
    other_cells_input: "cell01",
    no_relu: "cell03/node5",
    one_relu_more: "cell03/node2",
    no_shift: "cell01/node2",
    halves_exchanged: "cell01/node2",
    bias_inside: "cell03/node2",
    weights_shared: "cell03: .*shares weights",
    other_cells_weights: "cell03: .*shares weights",
    mean_over_one_axis: "not the mean over height and width",
    another_operator: "Sigmoid.*no network of d2nas has this operator",
    random_values: "RandomNormalLike.*no network of d2nas",
}


@pytest.mark.parametrize("edit", SABOTAGE, ids=lambda edit: edit.__name__)
def test_a_tampered_graph_is_refused_and_the_place_named(data: bytes, edit: Edit) -> None:
    model = edited(data, edit)
    with pytest.raises(ValidationFailedError, match=SABOTAGE[edit]) as caught:
        check_identity(model)
    assert "\n" not in str(caught.value)


def test_weights_shared_by_two_cells_are_refused(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        first, second = (node(model, f"cell{cell}/{HALVED[7:]}/conv_1") for cell in ("01", "02"))
        values = numpy_helper.to_array(weight(model, second.input[1]))
        values = values[:8, :8].copy()
        set_weight(model, first.input[1], values)
        third = node(model, "cell01/node2/edge1_sep_conv_5x5/conv_1")
        third.input[1] = first.input[1]

    with pytest.raises(ValidationFailedError, match="shares weights"):
        check_identity(edited(data, edit))

    # Controls: without the rule it is accepted, and weights that are all one number are too.
    def zeroed(model: onnx.ModelProto) -> None:
        edit(model)
        name = node(model, f"{HALVED}/conv_1").input[1]
        set_weight(model, name, np.zeros((8, 8, 1, 1), np.float32))

    assert check_identity(edited(data, zeroed))
    for module in (architecture, identity):
        monkeypatch.setattr(module, "shared_weights", lambda layers: None)
    assert check_identity(edited(data, edit))

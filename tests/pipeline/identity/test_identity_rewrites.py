"""The same function written otherwise is accepted, and looked at as closely."""

import random
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
from onnx import TensorProto, helper, numpy_helper

from d2nas.errors import ValidationFailedError
from pipeline.identity.check import check_identity

Edit = Callable[[onnx.ModelProto], None]

SEP = "cell03/node2/edge0_sep_conv_3x3"
SKIP = "cell01/node2/edge0_skip_connect"


@pytest.fixture(scope="module")
def data() -> bytes:
    return exported(EVERY_OPERATION, opset=18, size=15)


def renamed(model: onnx.ModelProto) -> None:
    new = {name: f"v{i}" for i, part in enumerate(model.graph.node) for name in part.output}
    new |= {tensor.name: f"w{i}" for i, tensor in enumerate(model.graph.initializer)}
    new.pop("logits")
    for index, part in enumerate(model.graph.node):
        part.name = f"cell{index:02d}/node2/edge0_max_pool_3x3"  # a lie, which nobody reads
        part.input[:] = [new.get(name, name) for name in part.input]
        part.output[:] = [new.get(name, name) for name in part.output]
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    del model.graph.value_info[:]


def operands_turned(model: onnx.ModelProto) -> None:
    for part in model.graph.node:
        if part.op_type == "Add":
            part.input[:] = reversed(part.input)


def weights_shuffled(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)
    random.Random(0).shuffle(tensors)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def nodes_shuffled(model: onnx.ModelProto) -> None:
    """Another order in which every node still stands after what it reads."""
    draw, waiting, done = random.Random(0), list(model.graph.node), {"", "images"}
    done |= {tensor.name for tensor in model.graph.initializer}
    ordered = []
    while waiting:
        ready = [part for part in waiting if done.issuperset(part.input)]
        ordered.append(draw.choice(ready))
        waiting.remove(ordered[-1])
        done.update(ordered[-1].output)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def nothing_merged(model: onnx.ModelProto) -> None:
    """Each reader of a ReLU, a pool or a sum gets one of its own."""
    every = []
    for part in list(model.graph.node):
        for position, name in enumerate(part.input):
            made = [other for other in every if name in other.output]
            if made and made[0].op_type in ("Relu", "MaxPool", "AveragePool", "Add"):
                twin = onnx.NodeProto()
                twin.CopyFrom(made[0])
                twin.name = twin.output[0] = f"{part.name} reads {position}"
                part.input[position] = twin.output[0]
                every.append(twin)
        every.append(part)
    del model.graph.node[:]
    model.graph.node.extend(every)


def norm_unfolded(model: onnx.ModelProto) -> None:
    changed = node(model, f"{SEP}/conv_3")
    parameters = ["scale", changed.input[2], "mean", "variance"]
    for name in ("scale", "mean", "variance"):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), name))
    output = changed.output[0]
    del changed.input[2:]
    changed.output[0] = "plain"
    norm = helper.make_node("BatchNormalization", ["plain", *parameters], [output])
    insert(model, norm, before="cell03/node2/add")


def norm_folded(model: onnx.ModelProto) -> None:
    """The batch norm after the halves of a factorized reduction goes into both."""
    norm = node(model, f"{SKIP}/batchnormalization")
    halves = [node(model, f"{SKIP}/conv_{half}") for half in (0, 1)]
    bias = numpy_helper.to_array(weight(model, norm.input[2]))
    for half, values in zip(halves, np.split(bias, 2), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(values, f"{half.name} bias"))
        half.input.append(f"{half.name} bias")
    node(model, f"{SKIP}/concat").output[0] = norm.output[0]
    model.graph.node.remove(norm)


def padded_before(model: onnx.ModelProto) -> None:
    """The row and column of zeros for odd sizes come from a Pad of their own."""
    conv = node(model, f"{SKIP}/conv_1")
    pads = np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(pads, "pads"))
    pad = helper.make_node("Pad", [conv.input[0], "pads"], ["padded"])
    insert(model, pad, before=conv.name)
    conv.input[0] = "padded"
    set_attribute(conv, "pads", [0, 0, 0, 0])


def other_head(model: onnx.ModelProto) -> None:
    mean, gemm = (node(model, f"classifier/{name}") for name in ("reducemean", "gemm"))
    features, bias = mean.input[0], gemm.input[2]
    values = numpy_helper.to_array(weight(model, "classifier.weight")).T.copy()
    set_weight(model, "classifier.weight", values)
    for part in (mean, gemm):
        model.graph.node.remove(part)
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", [features], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "classifier.weight"], ["product"]),
            helper.make_node("Add", ["product", bias], ["logits"]),
        ]
    )


def half_precision_inside(model: onnx.ModelProto) -> None:
    """float16 weights and maps between two casts."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    stem, gemm = node(model, "stem/conv"), node(model, "classifier/gemm")
    stem.input[0], gemm.output[0] = "half", "half logits"
    insert(
        model,
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
        before="stem/conv",
    )
    model.graph.node.append(
        helper.make_node("Cast", ["half logits"], ["logits"], to=TensorProto.FLOAT)
    )
    del model.graph.value_info[:]


def pixels_in(model: onnx.ModelProto) -> None:
    """uint8 pixels with channels last, prepared in the graph."""
    values = model.graph.input[0].type.tensor_type
    values.elem_type = TensorProto.UINT8
    for axis, size in zip(values.shape.dim[1:], (15, 15, 3), strict=True):
        axis.dim_value = size
    shape = (1, 3, 1, 1)
    constants = {"full": np.float32(255), "mean": np.full(shape, 0.5, np.float32)}
    constants["deviation"] = np.full(shape, 0.25, np.float32)
    for name, constant in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), name))
    chain = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["first", "full"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["prepared"]),
    ]
    insert(model, *chain, before="stem/conv")
    node(model, "stem/conv").input[0] = "prepared"


def unread_nodes(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Sigmoid", ["cell03/concat"], ["unread"]))


def no_dilation(model: onnx.ModelProto) -> None:
    changed = node(model, "cell03/node5/edge0_dil_conv_3x3/conv_0")
    set_attribute(changed, "dilations", [1, 1])
    set_attribute(changed, "pads", [1, 1, 1, 1])


HARMLESS: list[Edit] = [
    renamed,
    operands_turned,
    weights_shuffled,
    nodes_shuffled,
    nothing_merged,
    norm_unfolded,
    norm_folded,
    padded_before,
    other_head,
    half_precision_inside,
    pixels_in,
    unread_nodes,
]


@pytest.mark.parametrize("edit", HARMLESS, ids=lambda edit: edit.__name__)
def test_the_same_function_written_otherwise_is_accepted(data: bytes, edit: Edit) -> None:
    model = edited(data, edit)
    assert model.SerializeToString(deterministic=True) != data
    assert check_identity(model) == check_identity(data)
    # And is looked at as closely as before.
    if edit is not renamed:
        with pytest.raises(ValidationFailedError, match="cell03/node5"):
            check_identity(edited(model.SerializeToString(), no_dilation))


def test_control_pixels_that_are_not_turned_channels_first_are_refused(data: bytes) -> None:
    def edit(model: onnx.ModelProto) -> None:
        pixels_in(model)
        turned = node(model, "stem/conv")
        for part in model.graph.node:
            if part.op_type == "Transpose":
                set_attribute(part, "perm", [0, 3, 2, 1])
        assert turned.input[0] == "prepared"

    with pytest.raises(ValidationFailedError, match="only pixels are transposed"):
        check_identity(edited(data, edit))

"""ONNX files changed in one way each, and what is said of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Change = Callable[[onnx.ModelProto], Any]


def external_weight(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")


def external_constant(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))


def external_entry_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


def custom_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def custom_node(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[1].domain = "com.example"


def opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


def two_opsets(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 21))


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    imports = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("", "Own", ["x"], ["y"], [node], imports))


def training_info(model: onnx.ModelProto) -> None:
    model.training_info.add()


def subgraph(model: onnx.ModelProto) -> None:
    shape = helper.make_tensor_value_info("active_then", TensorProto.FLOAT, ["batch", 2, 4, 4])
    branch = helper.make_graph(
        [helper.make_node("Relu", ["features"], ["active_then"])], "branch", [], [shape]
    )
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node[1].CopyFrom(
        helper.make_node("If", ["yes"], ["active"], then_branch=branch, else_branch=branch)
    )


def sparse_weight(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch"]))


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 2, 1, 1])
    )


def input_with_default(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        numpy_helper.from_array(np.zeros((2, 1, 4, 4), np.float32), "images")
    )


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"


def shape_of(part: str, *shape: int | str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (value,) = getattr(model.graph, part)
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))

    return change


def integer_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def repeated_key(model: onnx.ModelProto) -> None:
    for value in ("one", "two"):
        model.metadata_props.add(key="d2nas.weights", value=value)


def dangling_input(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def wrong_weight_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [3, 5]


def truncated_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-1]


def overlong_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].raw_data += b"more"


def negative_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [3, -2]


CASES: list[tuple[Change, str, str | None]] = [
    # change, reason, the one protection that refuses it (None: onnx.checker would as well)
    (external_weight, "tensor 'kernel' lies in another file", None),
    (external_constant, "tensor 'c' lies in another file", None),
    (external_entry_only, "tensor 'kernel' lies in another file", "_check_external_data"),
    (custom_domain, "custom operators .domain 'com.example'", "_check_header"),
    (custom_node, "custom operators .domain 'com.example'", None),
    (opset(17), "opset 17, 18 to 21", "_check_header"),
    (opset(22), "opset 22, 18 to 21", "_check_header"),
    (two_opsets, "opset 0, 18 to 21", None),
    (lambda model: setattr(model, "ir_version", 11), "IR version 11", "_check_header"),
    (function, "functions of its own", "_check_header"),
    (training_info, "training information", "_check_header"),
    (subgraph, "carries a subgraph", "_check_graph"),
    (sparse_weight, "sparse weights", None),
    (second_input, "one input named images, has 'images', 'mask'", "_check_interface"),
    (second_output, "one output named logits", "_check_interface"),
    (renamed_input, "one input named images, has 'pixels'", "_check_interface"),
    (input_with_default, "images has a default value", "_check_interface"),
    (integer_input, "images is not float32", None),
    (shape_of("input", 2, 1, 4, 4), r"images must be \[batch, 3 fixed", "_check_interface"),
    (shape_of("input", "batch", 1, "h", 4), r"is \[batch, 1, h, 4\]", "_check_interface"),
    (shape_of("input", "n", 1, 4, 4), r"is \[n, 1, 4, 4\]", "_check_interface"),
    (shape_of("input", "batch", 1, 2**20, 2**20), "1x1048576x1048576 values", "_check_interface"),
    (shape_of("output", "batch", "classes"), "logits must be", "_check_interface"),
    (shape_of("output", "batch"), "logits must be", None),
    (repeated_key, "same metadata key twice", None),
    (dangling_input, "not valid ONNX", None),
    (wrong_weight_size, "tensor 'weight' does not hold the values", None),
    (truncated_weight, "tensor 'weight' does not hold the values", None),
    (overlong_weight, "tensor 'weight' does not hold the values", "_check_values"),
    (negative_size, "tensor 'weight' does not hold the values", None),
]

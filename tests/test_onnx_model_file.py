"""Loading an ONNX file from anywhere: what a classifier does not need is refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import hand_made_model

from d2nas.errors import DamagedArtifactError
from pipeline.onnx_io import model_file
from pipeline.onnx_io.model_file import check_model, describe, lineage

Change = Callable[[onnx.ModelProto], Any]


def loaded(change: Change) -> onnx.ModelProto:
    model = hand_made_model()
    change(model)
    return check_model(model.SerializeToString(), what="bundle/model.onnx")


def test_a_sound_model_is_accepted_and_described() -> None:
    model = loaded(lambda model: None)
    assert model == hand_made_model()
    assert describe(model).to_dict() == {
        "input_shape": [1, 4, 4],
        "input_type": "float32",
        "num_classes": 3,
        "opset": 20,
        "ir_version": 10,
        "num_nodes": 5,
    }


def test_pixels_come_with_their_channels_last() -> None:
    def change(model: onnx.ModelProto) -> None:
        image = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 5, 1])
        model.graph.input[0].CopyFrom(image)
        model.graph.node.insert(0, helper.make_node("Cast", ["images"], ["real"], to=1))
        model.graph.node.insert(
            1, helper.make_node("Transpose", ["real"], ["planes"], perm=[0, 3, 1, 2])
        )
        model.graph.node[2].input[0] = "planes"

    description = describe(loaded(change))
    assert description.input_shape == (1, 4, 5)
    assert (description.array_shape, description.input_type) == ((4, 5, 1), "uint8")
    assert describe(hand_made_model()).array_shape == (1, 4, 4)


def test_lineage_is_the_metadata_of_d2nas_alone() -> None:
    def change(model: onnx.ModelProto) -> None:
        for key in ("d2nas.weights", "author", "d2nas.genotype"):
            model.metadata_props.add(key=key, value=f"of {key}")

    assert lineage(loaded(change)) == {
        "d2nas.genotype": "of d2nas.genotype",
        "d2nas.weights": "of d2nas.weights",
    }


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


@pytest.mark.parametrize(("change", "reason", "guard"), CASES)
def test_what_a_classifier_does_not_need_is_refused(
    change: Change, reason: str, guard: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DamagedArtifactError, match=f"^bundle/model.onnx: .*{reason}") as caught:
        loaded(change)
    assert "\n" not in str(caught.value)
    if guard is not None:
        monkeypatch.setattr(model_file, guard, lambda part: None)
        loaded(change)


def test_a_custom_domain_on_a_node_is_refused_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "_check_header", lambda model: None)
    with pytest.raises(DamagedArtifactError, match="node 'relu' has custom domain"):
        loaded(custom_node)


def test_fields_that_the_format_does_not_define_are_refused() -> None:
    data = hand_made_model().SerializeToString()
    unknown_field = bytes([0xFA, 0x3F, 3]) + b"abc"  # number 1023, length-delimited
    assert check_model(data, what="model")
    with pytest.raises(DamagedArtifactError, match="fields that the ONNX format does not define"):
        check_model(data + unknown_field, what="model")


def test_text_that_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hand_made_model()
    model.metadata_props.add(key="d2nas.run", value="name of a run")
    data = model.SerializeToString().replace(b"name of a run", b"name of \xe9 run")
    with pytest.raises(DamagedArtifactError, match="text that is not UTF-8"):
        check_model(data, what="model")
    monkeypatch.setattr(model_file, "_check_text", lambda message: None)
    assert not isinstance(lineage(check_model(data, what="model"))["d2nas.run"], str)


def test_size_is_limited_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hand_made_model().SerializeToString()
    monkeypatch.setattr(model_file, "MAX_MODEL_BYTES", len(data))
    assert check_model(data, what="model")
    with pytest.raises(DamagedArtifactError, match=f"{len(data) + 1} bytes of ONNX"):
        check_model(data + b"\0", what="model")


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"not a model at all", bytes(range(256))])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedArtifactError, match="model: not an ONNX file"):
        check_model(data, what="model")


def test_no_damaged_byte_and_no_truncation_escapes_as_another_error() -> None:
    """Whatever one byte does, the answer is a model or one line about the file."""
    data = hand_made_model().SerializeToString()
    num_refused = 0
    damaged = [data[:end] for end in range(len(data))]
    for flip in (0x01, 0x80, 0xFF):
        damaged += [
            data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :] for at in range(len(data))
        ]
    for broken in damaged:
        try:
            model = check_model(broken, what="model")
            describe(model).to_dict()
            lineage(model)
        except DamagedArtifactError:
            num_refused += 1
    assert num_refused > len(data)

"""Loading an ONNX file from anywhere: what a classifier does not need is refused by name."""

import onnx
import pytest
from model_changes import CASES, Change, custom_node
from onnx import TensorProto, helper
from onnx_models import hand_made_model

from d2nas.errors import DamagedArtifactError
from pipeline.onnx_io import model_file
from pipeline.onnx_io.model_file import check_model, describe, lineage


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

"""A quantised model is its float32 model but for rounding; whatever else it is, is refused."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from architectures import EVERY_OPERATION, MERGED, edited, exported, weight
from onnx import numpy_helper

from d2nas.errors import ValidationFailedError
from pipeline.gate.mutants import _integers, _weights, _with_weight, mutants
from pipeline.identity.check import check_identity
from pipeline.identity.quantised import check_quantised
from pipeline.onnx_io.quantisation import quantise

FAULTS = [
    "classifier weight + 1 %",
    "two classes swapped",
    "stem weight + 1 %",
    "two channels swapped",
    "last convolution zeroed",
    "a normalisation skipped",
]


def quantised(model: bytes, bits: int = 8) -> bytes:
    images = np.random.default_rng(0).standard_normal((16, 3, 16, 16), np.float32)
    return quantise(model, [images], bits=bits)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def original() -> bytes:
    return exported(EVERY_OPERATION)


@pytest.fixture(scope="module")
def model(original: bytes) -> bytes:
    return quantised(original)


@pytest.mark.parametrize("genotype", [EVERY_OPERATION, MERGED])
@pytest.mark.parametrize("bits", [7, 8])
def test_an_honest_one_is_its_original_and_its_genotype(genotype: object, bits: int) -> None:
    whole = exported(genotype)  # type: ignore[arg-type]
    data = quantised(whole, bits)
    report = check_quantised(data, whole)
    assert 0.4 < report.largest_steps <= 0.501
    assert report.num_weights > 40
    found, wanted = check_identity(data), check_identity(whole)
    assert found == wanted


def test_each_faulty_copy_is_rejected(original: bytes, model: bytes) -> None:
    found = dict(mutants(model))
    assert list(found) == FAULTS
    for copy in found.values():
        with pytest.raises(ValidationFailedError, match="quantisation: "):
            check_quantised(copy, original)


@pytest.mark.parametrize("bits", [7, 8])
def test_each_faulty_network_is_rejected_once_quantised(original: bytes, bits: int) -> None:
    for copy in dict(mutants(original)).values():
        with pytest.raises(ValidationFailedError, match="quantisation: "):
            check_quantised(quantised(copy, bits), original)


def test_control_a_copy_whose_weight_was_quantised_again_is_none(
    original: bytes, model: bytes
) -> None:
    parsed = onnx.ModelProto.FromString(model)
    names = list(_integers(parsed))
    for name in names[:: len(names) // 8]:
        check_quantised(_with_weight(parsed, name, _weights(parsed)[name]), original)


def test_weights_of_another_network_are_rejected(original: bytes) -> None:
    def other(changed: onnx.ModelProto) -> None:
        for tensor in changed.graph.initializer:
            if len(tensor.dims) == 4:
                values = numpy_helper.to_array(tensor)
                draw = np.random.default_rng(7).standard_normal(values.shape)
                tensor.CopyFrom(numpy_helper.from_array(draw.astype(np.float32), tensor.name))

    another = edited(original, other).SerializeToString()
    with pytest.raises(ValidationFailedError, match=r"a weight is .* quantisation steps off"):
        check_quantised(quantised(another), original)


def scale_of_a_weight(model: onnx.ModelProto) -> None:
    (convolution, *_) = (n for n in model.graph.node if n.op_type == "Conv")
    node, _ = _integers(model)[convolution.input[1]]
    tensor = weight(model, node.input[1])
    values = numpy_helper.to_array(tensor) * np.float32(1.2)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def scale_of_half_a_pair(model: onnx.ModelProto) -> None:
    (node, *_) = (n for n in model.graph.node if n.op_type == "QuantizeLinear")
    values = numpy_helper.to_array(weight(model, node.input[1])) * np.float32(1.2)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), "wrong"))
    node.input[1] = "wrong"


def without_a_relu(model: onnx.ModelProto) -> None:
    (node, *_) = (n for n in model.graph.node if n.op_type == "Relu")
    node.op_type = "Identity"


def other_strides(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "AveragePool" and node.name.startswith("cell00"):
            for attribute in node.attribute:
                if attribute.name == "count_include_pad":
                    attribute.i = 1


def other_operand(model: onnx.ModelProto) -> None:
    (first, second, *_) = (n for n in model.graph.node if n.op_type == "Relu")
    second.input[0] = first.input[0]


@pytest.mark.parametrize(
    ("change", "message", "by_itself"),
    [
        (scale_of_a_weight, "'stem/conv': a weight is .* quantisation steps off", False),
        (scale_of_half_a_pair, "rounds what it reads by one scale and takes it", True),
        (without_a_relu, "is another layer", True),
        (other_strides, "is another layer", True),
        (other_operand, "reads other features", None),
    ],
)
def test_one_change_is_rejected(
    original: bytes,
    model: bytes,
    change: Callable[[onnx.ModelProto], None],
    message: str,
    by_itself: bool | None,
) -> None:
    changed = edited(model, change)
    with pytest.raises(ValidationFailedError, match=message):
        check_quantised(changed.SerializeToString(), original)
    if by_itself:  # what the graph says, it says without its original
        with pytest.raises(ValidationFailedError, match="identity: "):
            check_identity(changed)
    elif by_itself is False:
        check_identity(changed)


def test_a_dead_channel_with_a_bias_is_no_fault(original: bytes) -> None:
    """Its steps are the bias's: an int32 could not hold that in steps of such weights."""

    def dead(changed: onnx.ModelProto) -> None:
        kernel = numpy_helper.to_array(weight(changed, "stem.convs.0.weight")).copy()
        bias = numpy_helper.to_array(weight(changed, "stem.convs.0.weight_bias")).copy()
        kernel[0] *= np.float32(1e-12)
        bias[0] = 0.7
        for name, values in (("stem.convs.0.weight", kernel), ("stem.convs.0.weight_bias", bias)):
            weight(changed, name).CopyFrom(numpy_helper.from_array(values, name))

    whole = edited(original, dead).SerializeToString()
    data = quantised(whole)
    check_quantised(data, whole)
    (stem, *_) = (n for n in onnx.ModelProto.FromString(data).graph.node if n.op_type == "Conv")
    _, tensor = _integers(onnx.ModelProto.FromString(data))[stem.input[1]]
    assert np.abs(tensor.integers[0].astype(int)).max() < 60  # the case that is excused


def test_a_model_is_not_another_ones(original: bytes) -> None:
    with pytest.raises(ValidationFailedError, match="quantisation: 'metadata_props'"):
        check_quantised(quantised(exported(MERGED)), original)

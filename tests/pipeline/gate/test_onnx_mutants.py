"""Faulty copies of a model: one fault each, where every logit depends on it."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import hand_made_model

from d2nas.errors import ValidationFailedError
from pipeline.gate.mutants import mutants
from pipeline.onnx_io.model_file import check_model


def mutant(model: bytes, name: str) -> onnx.ModelProto:
    return check_model(dict(mutants(model))[name], what="mutant")


def changed_weights(data: bytes) -> dict[str, tuple[Any, Any]]:
    before = {t.name: numpy_helper.to_array(t) for t in hand_made_model().graph.initializer}
    model = check_model(data, what="mutant")
    after = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(before[tensor.name], tensor.name))
    assert model == hand_made_model()  # nothing but weights differs
    return {
        name: (before[name], after[name])
        for name in before
        if not np.array_equal(before[name], after[name])
    }


def test_each_mutant_has_one_fault_in_one_weight() -> None:
    found = dict(mutants(hand_made_model().SerializeToString()))
    assert list(found) == [
        "classifier weight + 1 %",
        "two classes swapped",
        "stem weight + 1 %",
        "two channels swapped",
        "last convolution zeroed",
    ]
    changes = {name: changed_weights(data) for name, data in found.items()}
    assert [list(change) for change in changes.values()] == [
        ["weight"],
        ["weight"],
        ["kernel"],
        ["kernel"],
        ["kernel"],
    ]
    before, after = changes["classifier weight + 1 %"]["weight"]
    np.testing.assert_allclose(after, before * 1.01, rtol=1e-6)
    before, after = changes["two classes swapped"]["weight"]
    np.testing.assert_array_equal(after, before[[2, 1, 0]])  # the two that differ most
    before, after = changes["stem weight + 1 %"]["kernel"]
    np.testing.assert_allclose(after, before * 1.01, rtol=1e-6)
    before, after = changes["two channels swapped"]["kernel"]
    np.testing.assert_array_equal(after, before[[1, 0]])
    assert not changes["last convolution zeroed"]["kernel"][1].any()


def test_classes_are_found_in_the_other_layouts_too() -> None:
    def untransposed(model: onnx.ModelProto) -> None:
        weight = numpy_helper.to_array(model.graph.initializer[1])
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight.T.copy(), "weight"))
        model.graph.node[4].CopyFrom(helper.make_node("MatMul", ["flat", "weight"], ["logits"]))

    model = hand_made_model()
    untransposed(model)
    swapped = mutant(model.SerializeToString(), "two classes swapped")
    before = numpy_helper.to_array(model.graph.initializer[1])
    after = numpy_helper.to_array(swapped.graph.initializer[1])
    np.testing.assert_array_equal(after, before[:, [2, 1, 0]])


def test_a_fault_that_changes_nothing_is_not_offered() -> None:
    model = hand_made_model()
    model.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.zeros((3, 2), np.float32), "weight")
    )
    names = [name for name, _ in mutants(model.SerializeToString())]
    assert names == ["stem weight + 1 %", "two channels swapped", "last convolution zeroed"]


def test_a_model_without_weights_to_mutate_fails_the_self_test() -> None:
    model = hand_made_model()
    del model.graph.initializer[:]
    shape = numpy_helper.from_array(np.array([0, -1]), "shape")
    ends = [numpy_helper.from_array(np.array([at]), name) for at, name in ((0, "s"), (3, "e"))]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    model.graph.initializer.extend([shape, *ends, axis])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Reshape", ["images", "shape"], ["flat"]))
    model.graph.node.append(helper.make_node("Slice", ["flat", "s", "e", "axis"], ["logits"]))
    with pytest.raises(ValidationFailedError, match="no convolution or classifier weight"):
        list(mutants(model.SerializeToString()))


def with_norm(model: onnx.ModelProto) -> bytes:
    values = {"scale": [2.0, 3.0], "shift": [1.0, 1.0], "mean": [0.5, 0.0], "var": [1.0, 4.0]}
    for name, numbers in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.float32), name))
    model.graph.node[1].input[0] = "normal"
    norm = helper.make_node("BatchNormalization", ["features", *values], ["normal"], name="norm")
    model.graph.node.insert(1, norm)
    return model.SerializeToString()


def test_a_normalisation_is_skipped_and_nothing_else_changes() -> None:
    skipped = check_model(
        dict(mutants(with_norm(hand_made_model())))["a normalisation skipped"], what="m"
    )
    whole = onnx.ModelProto.FromString(with_norm(hand_made_model()))
    before, after = whole.graph.node[1], skipped.graph.node[1]
    assert (after.op_type, list(after.input), list(after.output)) == (
        "Identity",
        ["features"],
        list(before.output),
    )
    skipped.graph.node[1].CopyFrom(before)
    assert skipped == whole


def test_a_normalisation_that_became_a_bias_loses_it() -> None:
    model = hand_made_model()
    model.graph.node[0].input.append("bias")
    bias = np.array([0.5, 0.25], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    skipped = check_model(
        dict(mutants(model.SerializeToString()))["a normalisation skipped"], what="m"
    )
    assert not numpy_helper.to_array(skipped.graph.initializer[2]).any()
    assert list(skipped.graph.node) == list(model.graph.node)


def test_half_precision_weights_are_mutated_in_their_own_type() -> None:
    model = hand_made_model()
    weight = numpy_helper.to_array(model.graph.initializer[1]).astype(np.float16)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "half"))
    model.graph.node.insert(4, helper.make_node("Cast", ["flat"], ["flat_half"], to=10))
    gemm = helper.make_node("Gemm", ["flat_half", "half"], ["logits_half"], transB=1)
    model.graph.node[5].CopyFrom(gemm)
    model.graph.node.append(helper.make_node("Cast", ["logits_half"], ["logits"], to=1))
    scaled = check_model(
        dict(mutants(model.SerializeToString()))["classifier weight + 1 %"], what="m"
    )
    after = numpy_helper.to_array(scaled.graph.initializer[1])
    assert after.dtype == np.float16
    np.testing.assert_allclose(after, weight * 1.01, rtol=2e-3)

"""Models that compute in half precision, and models that take pixels."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_models import INPUT_SHAPE, pattern_images, settled_network, torch_answer
from torch import nn

from d2nas.data.images import Normalizer
from d2nas.errors import ConfigError
from pipeline.gate.comparison import compare
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.half_precision import to_half
from pipeline.onnx_io.model_file import check_model, describe
from pipeline.onnx_io.session import OnnxSession, open_session

PIXELS = Normalizer((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return settled_network()


def exported(network: nn.Module, **options: Any) -> bytes:
    return export_onnx(network, input_shape=INPUT_SHAPE, opset=20, metadata={}, **options)


def on_cpu(model: bytes) -> OnnxSession:
    return open_session(model, device="cpu", num_threads=1)


def test_half_precision_inside_and_float32_outside(network: nn.Module) -> None:
    half = check_model(exported(network, precision="fp16"), what="half")
    types = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) > 1}
    assert types == {onnx.TensorProto.FLOAT16}
    assert describe(half).input_type == "float32"
    images = pattern_images(40).numpy()
    wanted = torch_answer(network)(images)
    answered = on_cpu(half.SerializeToString()).run(images)
    assert answered.dtype == np.float32
    distance = compare(wanted, answered).relative_l2 or 0.0
    assert 1e-5 < distance < 5e-3  # not float32 any more, and near enough


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pixels_are_normalised_in_the_graph_as_training_does(
    network: nn.Module, precision: Any
) -> None:
    pixels_NHWC = np.random.default_rng(3).integers(0, 256, (9, 16, 16, 3), np.uint8)
    planes = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).contiguous()
    wanted = torch_answer(network)(PIXELS(planes).numpy())
    model = exported(network, pixels=PIXELS, precision=precision)
    answered = on_cpu(model).run(pixels_NHWC)
    limit = 1e-5 if precision == "fp32" else 5e-3
    assert (compare(wanted, answered).relative_l2 or 1.0) < limit
    # Control: without the normalisation, or with the channels first, it is another model.
    raw = torch_answer(network)(planes.float().numpy() / 255)
    assert (compare(raw, answered).relative_l2 or 0.0) > 0.1
    with pytest.raises(ConfigError, match=r"uint8 images of shape \[N, 16, 16, 3\]"):
        on_cpu(model).run(planes.numpy())


def test_pixels_need_a_mean_for_every_channel(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="3 channels, but 1 means"):
        exported(network, pixels=Normalizer((0.5,), (0.5,)))


def test_nodes_come_after_what_they_read(network: nn.Module) -> None:
    """The checker refuses others; here the order of the rest is looked at, too."""
    whole = check_model(exported(network), what="model")
    half = to_half(check_model(exported(network), what="model"))
    known = {"images", *(tensor.name for tensor in half.graph.initializer)}
    for node in half.graph.node:
        assert set(node.input) <= known
        known.update(node.output)
    kept = [node.name for node in half.graph.node if node.op_type != "Cast"]
    assert kept == [node.name for node in whole.graph.node]

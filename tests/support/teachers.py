"""Teachers as others would write them: ONNX files that answer by the nearest mean of a class."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from d2nas.data.images import ImageData, ImageSet

_SHARPNESS = 4.0


def linear_of(data: ImageData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights [classes, values of an image] and biases of logits by the distance from the mean of
    each class's training images, for values 0 to 1.
    """
    images = data.train
    assert isinstance(images, ImageSet)
    values = images.images_NCHW.numpy().reshape(len(images), -1) / 255
    labels = images.labels_N.numpy()
    means = np.stack([values[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    return _SHARPNESS * means, -_SHARPNESS * (means**2).sum(axis=1) / 2


def teacher_model(
    data: ImageData,
    *,
    layout: str = "NCHW",
    dtype: type = np.float32,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    gives: str = "logits",
    batch: int | str = "n",
    free_size: bool = False,
    grey: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A teacher for images that were normalised by ``mean`` and ``std``; uint8: for pixels.

    ``order``: the classes in which order; ``names``: of its classes, in the metadata; ``gives``:
    logits, probabilities or chance; ``grey``: the images' only channel is given three times.
    """
    size = data.image_size
    channels = 3 if grey else data.channels
    weights, biases = linear_of(data)
    if grey:
        weights = np.concatenate([weights / 3] * 3, axis=1)
    if order is not None:
        weights, biases = weights[list(order)], biases[list(order)]
    if gives == "chance":
        weights, biases = np.zeros_like(weights), np.arange(len(biases), dtype=np.float64)
    # Values 0 to 1 are what the input times std plus mean is.
    by_channel = [np.array([*one] * (channels if len(one) == 1 else 1)) for one in (mean, std)]
    means, stds = (np.repeat(one, size * size) for one in by_channel)
    if dtype is np.uint8:
        means, stds = 0 * means, 0 * stds + 1 / 255
    constants = {
        "weights": weights * stds,
        "biases": biases + weights @ means,
        "flat_shape": np.array([-1, channels * size * size]),
    }
    axes: list[Any] = [channels, size, size] if layout == "NCHW" else [size, size, channels]
    if free_size:
        axes = [axis if axis == channels else f"size{at}" for at, axis in enumerate(axes)]
    nodes = [helper.make_node("Cast", ["pictures"], ["real"], to=TensorProto.FLOAT)]
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["real"], ["first"], perm=[0, 3, 1, 2]))
    last = "first" if layout == "NHWC" else "real"
    nodes += [
        helper.make_node("Reshape", [last, "flat_shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "biases"], ["scores"], transB=1),
        helper.make_node(
            "Softmax" if gives == "probabilities" else "Identity", ["scores"], ["answers"]
        ),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("pictures", kind, [batch, *axes])],
        [helper.make_tensor_value_info("answers", TensorProto.FLOAT, [batch, len(biases)])],
        [
            numpy_helper.from_array(
                value if value.dtype == np.int64 else value.astype(np.float32), name
            )
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    told = dict(metadata or {})
    if names is not None:
        told["class_names"] = json.dumps(list(names))
    for key, text in told.items():
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def written(folder: Path, data: ImageData, name: str = "big.onnx", **options: Any) -> Path:
    """The path of such a file."""
    path = folder / name
    path.write_bytes(teacher_model(data, **options))
    return path

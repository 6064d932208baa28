"""A model of prepared images becomes one that takes pixels: the preparation moves into the graph.

What a server can then do wrong is only to decode and to scale the picture.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from . import INPUT_NAME
from .model_file import BATCH_AXIS

_PREPARED = "prepared_images"


def take_pixels(model: onnx.ModelProto, mean: Sequence[float], std: Sequence[float]) -> None:
    """Change ``model`` to take uint8 [batch, height, width, channels].

    The values become ``(value / 255 - mean) / std`` by channel, in this order of operations, as
    training computes them; then the channels go first.
    """
    graph = model.graph
    _, channels, height, width = (
        axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim
    )
    if not channels == len(mean) == len(std):
        raise ValueError(f"{channels} channels, but {len(mean)} means and {len(std)} deviations")
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == INPUT_NAME:
                node.input[place] = _PREPARED
    pixels = [BATCH_AXIS, height, width, channels]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, pixels))
    constants = {
        "pixels/largest": np.array(255.0, np.float32),
        "pixels/mean": np.array(mean, np.float32),
        "pixels/std": np.array(std, np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    steps = [
        helper.make_node(
            "Cast", [INPUT_NAME], ["pixels/real"], "pixels/cast", to=TensorProto.FLOAT
        ),
        helper.make_node(
            "Div", ["pixels/real", "pixels/largest"], ["pixels/scaled"], "pixels/scale"
        ),
        helper.make_node(
            "Sub", ["pixels/scaled", "pixels/mean"], ["pixels/centred"], "pixels/centre"
        ),
        helper.make_node(
            "Div", ["pixels/centred", "pixels/std"], ["pixels/normal"], "pixels/normalise"
        ),
        helper.make_node(
            "Transpose", ["pixels/normal"], [_PREPARED], "pixels/transpose", perm=[0, 3, 1, 2]
        ),
    ]
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)

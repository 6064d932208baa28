"""A float32 model becomes one that computes in float16, with the same input and output types.

Converted after the export, so that normalisations were folded into convolutions in full precision.
"""

import onnx

from .node_order import order_nodes


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with weights and features in float16; logits leave it as float32.

    Values beyond float16's range become its largest, as ONNX Runtime's converter has it.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    # The converter appends what casts the input, which ONNX wants before its first use.
    order_nodes(half.graph, list(half.graph.node))
    # Written for float32; every reader infers the types again.
    del half.graph.value_info[:]
    return half

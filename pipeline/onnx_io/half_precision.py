"""A float32 model becomes one that computes in float16, with the same input and output types.

Converted after the export, so that normalisations were folded into convolutions in full precision.
"""

import onnx


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with weights and features in float16; logits leave it as float32.

    Values beyond float16's range become its largest, as ONNX Runtime's converter has it.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    # The converter appends what casts the input, which ONNX wants before its first use.
    ordered = _ordered(half.graph)
    del half.graph.node[:]
    half.graph.node.extend(ordered)
    # Written for float32; every reader infers the types again.
    del half.graph.value_info[:]
    return half


def _ordered(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes, each after what it reads and otherwise in the order they had."""
    made_by = {name: at for at, node in enumerate(graph.node) for name in node.output}
    order: dict[int, None] = {}
    for at in range(len(graph.node)):
        waiting = [at]
        while waiting:
            sources = (made_by.get(name, -1) for name in graph.node[waiting[-1]].input)
            needed = [source for source in sources if source >= 0 and source not in order]
            if needed:
                waiting.extend(needed)
            else:
                order.setdefault(waiting.pop())
    return [graph.node[at] for at in order]

"""A float32 model becomes one that computes in 8-bit integers, with the same input and output.

Static quantisation by ONNX Runtime, as pairs of QuantizeLinear and DequantizeLinear around the
layers, which a runtime fuses into integer kernels where it has some and computes in float32 else.

- Features are uint8 and weights int8, symmetric and by output channel: the operands of x86's dot
  product instructions (VNNI); with int8 features ONNX Runtime's kernels were slower than float32's
  on a CPU that has them. Its CUDA provider has no integer convolutions for either.
- A CPU without VNNI adds pairs of products in 16 bits, which saturate: there, weights have 7 bits.
- Ranges are the smallest and largest values of the calibration images. With ranges cut off at a
  percentile or by entropy the logits of three networks were farther from float32.
- All layers of a cell are quantised, not convolutions alone, so that features stay integers from
  one to the next; logits are float32, where 8 bits would make ties.

Shapes are inferred and normalisations folded before, by the library and the exporter: nothing is
left for the library's preprocessing.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from d2nas.cpus import has_dot_product

from . import INPUT_NAME
from .model_file import check_model
from .node_order import order_nodes
from .runtime import captured_log, load_runtime

WeightBits = Literal[7, 8]
METHOD = "min-max"
_LAYERS = ("Add", "AveragePool", "Concat", "Conv", "Gemm", "MaxPool", "Relu")
_OPTIONS: Mapping[str, Any] = {
    # A ReLU that a range from 0 makes superfluous is the runtime's to drop: the graph stays the
    # network's.
    "QDQKeepRemovableActivations": True,
    "OpTypesToExcludeOutputQuantization": ["Gemm"],
}


def weight_bits() -> WeightBits:
    """Return the bits that weights may have for this machine's CPU not to saturate."""
    return 8 if has_dot_product() else 7


def quantise(
    model: bytes, batches: Iterable[NDArray[Any]], *, bits: WeightBits | None = None
) -> bytes:
    """Return ``model``, float32 as ``export_onnx`` wrote it, in 8-bit integers; byte-identical when
    repeated on the same machine.

    ``batches`` are the calibration images, [N, *array_shape] each as the model takes them, of which
    one is in memory at a time; ``bits`` those of weights, by default this machine's. Raises
    ``ValueError`` without images.
    """
    load_runtime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    whole = check_model(model, what="model to quantise")
    prepared = onnx.ModelProto.FromString(model)  # the library changes what it is given
    add_pre_process_metadata(prepared)  # else it warns
    with tempfile.TemporaryDirectory(prefix="d2nas-quantise-") as folder, captured_log():
        path = Path(folder) / "quantised.onnx"
        quantize_static(
            prepared,
            path,
            _Feed(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            per_channel=True,
            reduce_range=(bits or weight_bits()) == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=dict(_OPTIONS),
        )
        made = onnx.ModelProto.FromString(path.read_bytes())
    # The library orders nodes anew; here those of the float32 model keep their order.
    place = {node.name: at for at, node in enumerate(whole.graph.node)}
    nodes = sorted(made.graph.node, key=lambda node: place.get(node.name, len(place)))
    order_nodes(made.graph, nodes)
    whole.graph.CopyFrom(made.graph)
    del whole.graph.value_info[:]  # every reader infers the types again
    data = bytes(whole.SerializeToString(deterministic=True))
    check_model(data, what="quantised model")
    return data


class _Feed:
    """Calibration images as the library asks for them: a batch at a time."""

    def __init__(self, batches: Iterable[NDArray[Any]]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        images = next(self._left, None)
        return None if images is None else {INPUT_NAME: images}

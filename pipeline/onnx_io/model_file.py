"""An ONNX file as d2nas writes it: guarded loading, lineage, description.

A model may come from anywhere, so loading refuses whatever a classifier does not need: other
files, other operator domains, control flow, functions, training parts, oversized inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import numpy_helper

from d2nas.errors import DamagedArtifactError, brief_reason

from . import INPUT_NAME, OUTPUT_NAME

MAX_MODEL_BYTES = 512 * 1024 * 1024
MAX_INPUT_VALUES = 16 * 1024 * 1024
"""Values of one image; a file that asks for more would only exhaust memory."""
MAX_CLASSES = 1_000_000
MIN_OPSET = 18
MAX_OPSET = 21
"""MaxPool has no CUDA kernel in ONNX Runtime from opset 22 on."""
MAX_IR_VERSION = 10
"""What the ONNX Runtime inside current Triton releases reads."""

BATCH_AXIS = "batch"
LINEAGE_PREFIX = "d2nas."

InputType = Literal["float32", "uint8"]
"""Prepared images [channels, height, width], or pixels as decoded [height, width, channels]."""
_INPUT_TYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.UINT8: "uint8",
}
_STANDARD_DOMAINS = ("", "ai.onnx")
_SUBGRAPH_ATTRIBUTES = (
    onnx.AttributeProto.GRAPH,
    onnx.AttributeProto.GRAPHS,
    onnx.AttributeProto.SPARSE_TENSOR,
    onnx.AttributeProto.SPARSE_TENSORS,
    onnx.AttributeProto.TYPE_PROTO,
    onnx.AttributeProto.TYPE_PROTOS,
)


@dataclass(frozen=True)
class ModelDescription:
    """Inputs and outputs of a model: one image is ``input_shape`` (channels, height, width)."""

    input_shape: tuple[int, int, int]
    num_classes: int
    opset: int
    ir_version: int
    num_nodes: int
    input_type: InputType = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the input's values."""
        return np.dtype(self.input_type)

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """One image as the input takes it: uint8 pixels have their channels last."""
        channels, height, width = self.input_shape
        return (height, width, channels) if self.input_type == "uint8" else self.input_shape

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "input_shape": list(self.input_shape),
            "input_type": self.input_type,
            "num_classes": self.num_classes,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "num_nodes": self.num_nodes,
        }


def check_model(data: bytes, *, what: str) -> onnx.ModelProto:
    """Parse ``data`` and return the model if it is one that d2nas would run; ``what`` names it.

    Accepted: one file of at most 512 MiB with all weights inside, standard operators of opset 18
    to 21, IR version up to 10, no subgraphs, functions or training parts, exactly one input
    ``images``, float32 [batch, channels, height, width] or uint8 [batch, height, width, channels],
    and one float32 output ``logits`` [batch, classes]; and ``onnx.checker`` agrees. Raises
    ``DamagedArtifactError`` otherwise.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise DamagedArtifactError(
            f"{what}: {len(data)} bytes of ONNX, at most {MAX_MODEL_BYTES} are read"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        _check_text(model)
        _check_header(model)
        _check_external_data(model)
        _check_values(model)
        _check_graph(model.graph)
        _check_interface(model.graph)
        onnx.checker.check_model(model, full_check=True)
    except _RefusalError as refusal:
        raise DamagedArtifactError(f"{what}: {refusal}") from None
    except (DecodeError, UnicodeDecodeError):
        raise DamagedArtifactError(f"{what}: not an ONNX file") from None
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        RuntimeError,
    ) as error:
        raise DamagedArtifactError(f"{what}: not valid ONNX ({brief_reason(error)})") from None
    return model


def check_whole(data: bytes, *, what: str) -> None:
    """Raise ``DamagedArtifactError`` unless ``data`` is an ONNX model with all weights inside.

    For models that others wrote, of any operators and any interface: what of them can be run is for
    the runtime to say. Files that they name are not opened.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        if not model.HasField("graph"):
            raise _RefusalError("not an ONNX file")
        _check_external_data(model)
    except _RefusalError as refusal:
        raise DamagedArtifactError(f"{what}: {refusal}") from None
    except DecodeError:
        raise DamagedArtifactError(f"{what}: not an ONNX file") from None


def lineage(model: onnx.ModelProto) -> dict[str, str]:
    """Return the ``d2nas.*`` metadata of ``model``, sorted by key."""
    pairs = {entry.key: entry.value for entry in model.metadata_props}
    return {key: pairs[key] for key in sorted(pairs) if key.startswith(LINEAGE_PREFIX)}


def with_metadata(data: bytes, key: str, value: str) -> bytes:
    """Return a model's bytes with one more entry of metadata, its entries sorted by key."""
    model = onnx.ModelProto.FromString(data)
    entries = {entry.key: entry.value for entry in model.metadata_props} | {key: value}
    del model.metadata_props[:]
    for name in sorted(entries):
        model.metadata_props.add(key=name, value=entries[name])
    return bytes(model.SerializeToString(deterministic=True))


def describe(model: onnx.ModelProto) -> ModelDescription:
    """Describe a model that ``check_model`` returned."""
    image = model.graph.input[0].type.tensor_type
    logits = model.graph.output[0].type.tensor_type.shape.dim
    first, second, third = (axis.dim_value for axis in image.shape.dim[1:])
    pixels = image.elem_type == onnx.TensorProto.UINT8
    return ModelDescription(
        input_shape=(third, first, second) if pixels else (first, second, third),
        num_classes=logits[1].dim_value,
        opset=emitted_opset(model),
        ir_version=model.ir_version,
        num_nodes=len(model.graph.node),
        input_type="uint8" if pixels else "float32",
    )


def emitted_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set that ``model`` imports (0: none)."""
    versions = [entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS]
    return versions[0] if len(versions) == 1 else 0


class _RefusalError(Exception):
    """Why a model is not accepted; becomes a ``DamagedArtifactError`` that names the source."""


def _check_text(message: Message) -> None:
    # The parser hands out names that are not UTF-8 as bytes, where every reader expects text.
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, str | bytes) else value
            if any(isinstance(text, bytes) for text in texts):
                raise _RefusalError("holds text that is not UTF-8")
        elif field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                _check_text(child)


def _check_header(model: onnx.ModelProto) -> None:
    if not model.HasField("graph"):
        raise _RefusalError("not an ONNX file")
    # What this reader skips, another reader might understand.
    num_bytes = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != num_bytes:
        raise _RefusalError("has fields that the ONNX format does not define")
    if not 1 <= model.ir_version <= MAX_IR_VERSION:
        raise _RefusalError(f"IR version {model.ir_version}, at most {MAX_IR_VERSION} is supported")
    for entry in model.opset_import:
        if entry.domain not in _STANDARD_DOMAINS:
            raise _RefusalError(f"needs custom operators (domain {_shown(entry.domain)})")
    opset = emitted_opset(model)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise _RefusalError(f"opset {opset}, {MIN_OPSET} to {MAX_OPSET} are supported")
    if model.functions:
        raise _RefusalError("defines functions of its own")
    if model.training_info:
        raise _RefusalError("carries training information")
    keys = [entry.key for entry in model.metadata_props]
    if len(set(keys)) != len(keys):
        raise _RefusalError("has the same metadata key twice")


def _check_external_data(model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            raise _RefusalError(f"tensor {_shown(tensor.name)} lies in another file")


def _check_values(model: onnx.ModelProto) -> None:
    # Only after _check_external_data: reading an external tensor would open its file.
    for tensor in _tensors(model):
        try:
            complete = min(tensor.dims, default=0) >= 0
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError):
            complete = False
        if not complete:
            raise _RefusalError(
                f"tensor {_shown(tensor.name)} does not hold the values that its shape declares"
            )


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    # Every field of every message, so that no corner of the format is forgotten.
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in [value] if isinstance(value, Message) else value:
            yield from _tensors(child)


def _check_graph(graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        raise _RefusalError("has sparse weights")
    for node in graph.node:
        if node.domain not in _STANDARD_DOMAINS:
            raise _RefusalError(f"node {_shown(node.name)} has custom domain {_shown(node.domain)}")
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise _RefusalError(f"node {_shown(node.name)} takes an attribute from a function")
            if attribute.type in _SUBGRAPH_ATTRIBUTES:
                raise _RefusalError(
                    f"node {_shown(node.name)} ({_shown(node.op_type)}) carries a subgraph, "
                    "a sparse tensor or a type"
                )


def _check_interface(graph: onnx.GraphProto) -> None:
    image = _only_value(list(graph.input), "input", INPUT_NAME)
    logits = _only_value(list(graph.output), "output", OUTPUT_NAME)
    sizes = _sizes(image, 3, _INPUT_TYPES)
    if int(np.prod([float(size) for size in sizes])) > MAX_INPUT_VALUES:
        raise _RefusalError(f"asks for images of {'x'.join(map(str, sizes))} values")
    (num_classes,) = _sizes(logits, 1, {onnx.TensorProto.FLOAT: "float32"})
    if num_classes > MAX_CLASSES:
        raise _RefusalError(f"has {num_classes} classes, at most {MAX_CLASSES} are supported")
    if any(tensor.name == INPUT_NAME for tensor in graph.initializer):
        raise _RefusalError(f"input {INPUT_NAME} has a default value")


def _only_value(values: list[onnx.ValueInfoProto], role: str, name: str) -> onnx.ValueInfoProto:
    if [value.name for value in values] != [name]:
        names = ", ".join(_shown(value.name) for value in values[:4]) or "none"
        raise _RefusalError(f"must have exactly one {role} named {name}, has {names}")
    return values[0]


def _sizes(value: onnx.ValueInfoProto, num_fixed: int, types: Mapping[int, str]) -> list[int]:
    """Sizes of the axes after ``batch``, which must be fixed; one of ``types`` is required."""
    tensor = value.type.tensor_type
    if tensor.elem_type not in types:
        raise _RefusalError(f"{value.name} is not {' or '.join(types.values())}")
    axes = tensor.shape.dim
    sizes = [axis.dim_value for axis in axes[1:]]
    if len(sizes) != num_fixed or axes[0].dim_param != BATCH_AXIS or min(sizes) < 1:
        shape = ", ".join(axis.dim_param or str(axis.dim_value) for axis in axes[:6])
        raise _RefusalError(
            f"{value.name} must be [{BATCH_AXIS}, {num_fixed} fixed sizes], is [{shape}]"
        )
    return sizes


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:59] + "…")

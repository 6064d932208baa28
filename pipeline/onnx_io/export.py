"""A trained network becomes one ONNX file whose bytes depend on the network alone.

The exporter writes stack traces with absolute source paths, class names and graph listings into
every node. All of that is removed, once the nodes are named after the architecture, and replaced by
the caller's lineage keys, so the same weights give the same bytes in any folder and process, and no
path leaves the machine.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import onnx
import torch
from google.protobuf.message import Message  # type: ignore[import-untyped]
from torch import nn

from d2nas._version import __version__
from d2nas.compiler import load_compiler
from d2nas.data.images import Normalizer
from d2nas.errors import ConfigError, ValidationFailedError

from . import INPUT_NAME, OUTPUT_NAME
from .half_precision import to_half
from .model_file import (
    BATCH_AXIS,
    LINEAGE_PREFIX,
    MAX_IR_VERSION,
    MAX_OPSET,
    MIN_OPSET,
    check_model,
    emitted_opset,
)
from .node_names import name_nodes
from .pixel_input import take_pixels

Precision = Literal["fp32", "fp16"]
PRODUCER_NAME = "d2nas"
EXAMPLE_BATCH = 2
"""One is a size that exporters have specialised on."""
_CHATTY_LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch._dynamo",
    "onnxscript",
    "onnx_ir",
)
_ONLY_WHILE_TRAINING = ("Dropout",)


def export_onnx(
    network: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    opset: int,
    metadata: Mapping[str, str],
    pixels: Normalizer | None = None,
    precision: Precision = "fp32",
) -> bytes:
    """Return ``network`` as one ONNX file with all weights inside, byte-identical when repeated.

    ``input_shape`` is (channels, height, width) of one image; the batch size stays free, as the
    named axis ``batch`` of input ``images`` and output ``logits``. ``metadata`` (keys starting
    with ``d2nas.``) becomes the file's only metadata. With ``pixels`` the model takes uint8
    [batch, height, width, channels] and normalises them itself; ``precision`` fp16 is what it
    computes in, with the same logits in float32. The network is not changed.

    Raises ``ConfigError`` for a network that is in training mode, has outputs besides
    [batch, classes] logits, or is not float32, and for an unusable opset, shape or metadata key;
    ``ValidationFailedError`` if the exporter fails or does not deliver what was asked.
    """
    _check_request(input_shape, opset, metadata)
    example = _check_network(network, input_shape)
    model = _traced(network, example, opset)
    name_nodes(model, network)
    if pixels is not None:
        take_pixels(model, pixels.mean, pixels.std)
    if precision == "fp16":
        model = to_half(model)
    _strip(model)
    _stamp(model, metadata)
    _check_emitted(model, opset)
    data = bytes(model.SerializeToString(deterministic=True))
    # What is written must be what every later step agrees to read.
    check_model(data, what="exported model")
    return data


def _check_request(
    input_shape: tuple[int, int, int], opset: int, metadata: Mapping[str, str]
) -> None:
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ConfigError(f"export: image shape {input_shape} is not (channels, height, width)")
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ConfigError(
            f"export: opset {opset} is not supported",
            hint=f"export.opset from {MIN_OPSET} to {MAX_OPSET}; "
            "from 22 on MaxPool has no CUDA kernel in ONNX Runtime",
        )
    for key in metadata:
        if not key.startswith(LINEAGE_PREFIX):
            raise ConfigError(f"export: metadata key {key!r} does not start with {LINEAGE_PREFIX}")


def _check_network(network: nn.Module, input_shape: tuple[int, int, int]) -> torch.Tensor:
    """Refuse a network that is not ready for deployment; return the example to trace it with."""
    for name, module in network.named_modules():
        if module.training:
            raise ConfigError(
                f"export: {name or 'the network'} is in training mode",
                hint="call network.eval() first",
            )
    tensors = [*network.parameters(), *network.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(f"export: the network holds {tensor.dtype} weights, not float32")
    device = tensors[0].device if tensors else torch.device("cpu")
    example = torch.zeros(EXAMPLE_BATCH, *input_shape, device=device)
    try:
        with torch.no_grad():
            output = network(example)
    except RuntimeError as error:
        raise ConfigError(
            f"export: the network does not take images of shape {input_shape}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ConfigError(
            f"export: the network returns a {type(output).__name__}, not logits alone",
            hint="an auxiliary head belongs to training; it must be off in evaluation mode",
        )
    if output.ndim != 2 or len(output) != EXAMPLE_BATCH or output.dtype != torch.float32:
        raise ConfigError(
            f"export: the network returns {output.dtype} of shape {tuple(output.shape)} for a "
            f"batch of {EXAMPLE_BATCH}, not float32 [batch, classes]"
        )
    return example


def _traced(network: nn.Module, example: torch.Tensor, opset: int) -> onnx.ModelProto:
    load_compiler()
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim(BATCH_AXIS)},),
                external_data=False,
            )
    except torch.onnx.OnnxExporterError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise error.__cause__ from None  # a package is absent, the network is fine
        reason = str(error.__cause__ or error).strip().splitlines() or ["no reason given"]
        raise ValidationFailedError(
            f"export: the network cannot be converted to ONNX opset {opset} ({reason[0][:200]})",
            hint="--debug shows the exporter's own report",
        ) from error
    if program is None:
        raise ValidationFailedError(f"export: the exporter returned no model for opset {opset}")
    return program.model_proto


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's messages off the terminal: its failures arrive as exceptions."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    # onnxscript 0.6 prints, and stdout is for answers.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _strip(message: Message) -> None:
    """Clear every doc string and metadata entry of ``message`` and of all that it holds."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                _strip(child)


def _stamp(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    model.producer_name = PRODUCER_NAME
    model.producer_version = __version__
    model.model_version = 1
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def _check_emitted(model: onnx.ModelProto, opset: int) -> None:
    # For some requests the exporter warns, gives another opset, and reports success.
    if emitted_opset(model) != opset:
        raise ValidationFailedError(
            f"export: opset {opset} was asked for, the exporter wrote {emitted_opset(model)}"
        )
    if model.ir_version > MAX_IR_VERSION:
        raise ValidationFailedError(
            f"export: the exporter wrote IR version {model.ir_version}, "
            f"servers read at most {MAX_IR_VERSION}"
        )
    for node in model.graph.node:
        training = any(
            attribute.name == "training_mode" and attribute.i for attribute in node.attribute
        )
        if training or node.op_type in _ONLY_WHILE_TRAINING:
            raise ValidationFailedError(
                f"export: node {node.name} ({node.op_type}) belongs to training"
            )

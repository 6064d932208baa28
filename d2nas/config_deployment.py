"""The sections of export and validation (no torch)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .config_section import Device, Positive, PositiveReal, Rate, Section

P99_SAMPLES = 662
"""Timed runs that a p99 needs (MLPerf's early-stopping rule)."""
LatencyMode = Literal["plain", "nhwc", "cuda-graph", "nhwc-cuda-graph"]


class ExportConfig(Section):
    """ONNX export."""

    opset: Annotated[int, Field(ge=18, le=21)] = 20
    """MaxPool has no CUDA kernel from opset 22 on."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """What the model computes in; its logits are float32 either way."""
    input: Literal["float32", "uint8"] = "float32"
    """Prepared images (NCHW), or pixels (NHWC) that the model normalises itself."""


class ValidateConfig(Section):
    """The gate before deployment."""

    device: Device = "auto"
    parity_batches: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] = (
        1,
        2,
        7,
        64,
    )
    relative_l2: PositiveReal | None = None
    """Largest distance of the logits from PyTorch's float32; none: 1e-5 (fp32), 5e-3 (fp16)."""
    top1_agreement: Rate | None = None
    """Smallest share of images with the same answer; none: 0.999 (fp32), 0.99 (fp16)."""
    accuracy_floor: Rate | None = None
    """Smallest part of PyTorch's accuracy; none: 0.999 (fp32), 0.99 (fp16; MLPerf's floors)."""
    latency_batches: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] = (1, 8, 64)
    latency_samples: Positive = P99_SAMPLES
    """662 timed runs are what a p99 needs (MLPerf's early-stopping rule)."""
    latency_seconds: PositiveReal = 10.0
    """Time budget per batch size; fewer samples mean fewer percentiles, never guessed ones."""
    modes: Annotated[tuple[LatencyMode, ...], Field(min_length=1, strict=False)] | None = None
    """How the runtime may run the model on a GPU; none tries all, a CPU has only plain."""
    max_p99_ms: PositiveReal | None = None
    """The gate: the p99 of gate_batch, from host to host in the best mode, must not be longer."""
    gate_batch: Positive = 1
    """Batch size that max_p99_ms is for."""
    compare_eager: bool = True
    """Time PyTorch without a compiler beside the runtime."""

    @model_validator(mode="after")
    def _can_be_shown(self) -> "ValidateConfig":
        if self.max_p99_ms is not None and self.latency_samples < P99_SAMPLES:
            raise ValueError(
                f"validate.max_p99_ms needs validate.latency_samples of at least {P99_SAMPLES}"
            )
        return self

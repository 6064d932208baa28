"""The sections of export and validation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .section import Batch, Device, Distance, Milliseconds, Rate, Seconds, Section, Source

LatencyMode = Literal["plain", "nhwc", "cuda-graph", "nhwc-cuda-graph"]

MIN_SAMPLES = {50: 11, 90: 64, 95: 130, 99: 662}
"""Timed runs that a percentile needs (MLPerf, computed from the incomplete beta function)."""


class ExportConfig(Section):
    """ONNX export."""

    opset: Annotated[
        int, Field(ge=18, le=21), Source("ours: the newest that ONNX Runtime's CUDA kernels cover")
    ] = 20
    """MaxPool has no CUDA kernel from opset 22 on."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """What the model computes in; its logits are float32 either way. int8 is served only where it
    is faster than fp32."""
    calibration_images: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Training images that the ranges of an int8 model's features are taken from."""
    input: Literal["float32", "uint8"] = "float32"
    """Prepared images (NCHW), or pixels (NHWC) that the model normalises itself."""

    @property
    def float_precision(self) -> Literal["fp32", "fp16"]:
        """Precision of the model before it is quantised. Its latency is predicted in place of an
        int8 model's, which is served only where it is faster.
        """
        return "fp16" if self.precision == "fp16" else "fp32"


class ValidateConfig(Section):
    """The gate before deployment."""

    device: Device = "auto"
    parity_batches: Annotated[
        tuple[Batch, ...], Field(min_length=1, max_length=64, strict=False)
    ] = (
        1,
        2,
        7,
        64,
    )
    relative_l2: Annotated[Distance | None, Source("ours: by precision")] = None
    """Largest distance of the logits from PyTorch's float32; none: 1e-5 (fp32), 5e-3 (fp16), 0.1
    (int8, whose weights are compared besides)."""
    top1_agreement: Annotated[Rate | None, Source("ours: by precision")] = None
    """Smallest share of images with the same answer; none: 0.999 (fp32), 0.99 (fp16), 0.95
    (int8)."""
    accuracy_floor: Annotated[Rate | None, Source("MLPerf: 99.9 % (fp32), 99 % (others)")] = None
    """Smallest part of PyTorch's accuracy; none: 0.999 (fp32), 0.99 (others; MLPerf's)."""
    latency_batches: Annotated[
        tuple[Batch, ...], Field(min_length=1, max_length=64, strict=False)
    ] = (1, 8, 64)
    latency_samples: Annotated[
        int, Field(ge=1, le=1_000_000), Source("MLPerf's early-stopping rule: a p99 needs 662")
    ] = MIN_SAMPLES[99]
    """662 timed runs are what a p99 needs (MLPerf's early-stopping rule)."""
    latency_seconds: Seconds = 10.0
    """Time budget per batch size; fewer samples mean fewer percentiles, never guessed ones."""
    modes: Annotated[
        Annotated[tuple[LatencyMode, ...], Field(min_length=1, max_length=8, strict=False)] | None,
        Source("ours: all that the device has"),
    ] = None
    """How the runtime may run the model on a GPU; none tries all, a CPU has only plain."""
    max_p99_ms: Annotated[Milliseconds | None, Source("ours: no gate")] = None
    """The gate: the p99 of gate_batch, from host to host in the best mode, must not be longer."""
    gate_batch: Batch | None = None
    """Batch size that max_p99_ms is for; none: 1."""
    min_recall: Annotated[Rate | None, Source("ours: no gate")] = None
    """The gate: each class with test images must be recalled as often; none: whatever it is."""
    min_balanced_accuracy: Annotated[Rate | None, Source("ours: no gate")] = None
    """The gate: the mean of the classes' recalls must not be less."""
    shown_mistakes: Annotated[int, Field(ge=0, le=48)] = 12
    """Test images in the report, those mistaken with the most confidence; 0 keeps images out."""
    compare_eager: bool = True
    """Time PyTorch without a compiler beside the runtime."""

    @property
    def gated_batch(self) -> int | None:
        """Batch size that the gate on latency is for; None without one."""
        return None if self.max_p99_ms is None else self.gate_batch or 1

    @model_validator(mode="after")
    def _gate_is_whole(self) -> "ValidateConfig":
        if self.gate_batch is None:
            return self
        if self.max_p99_ms is None:
            raise ValueError("validate.gate_batch needs validate.max_p99_ms, the gate's limit")
        largest = max(self.parity_batches)
        if self.gate_batch > largest:
            raise ValueError(
                f"validate.gate_batch={self.gate_batch} is above {largest}, the largest batch "
                "that is served (validate.parity_batches)"
            )
        return self

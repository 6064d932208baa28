"""Form of ``report.json``, a validation's findings."""

from typing import Annotated, Literal

from pydantic import Field

from d2nas.config.section import NonNegative, Positive

from ..store.forms import Form, Number

REPORT_SCHEMA = 1
"""Of ``report.json``, which a bundle's reader must know."""


class _Data(Form):
    name: str
    digest: str
    train: Positive
    weight_half: NonNegative
    arch_half: NonNegative
    test: Positive
    evaluation: str


class _Accuracy(Form):
    onnx: Number
    torch: Number
    test_images: Positive


class _Limits(Form):
    relative_l2: Number
    top1_agreement: Number


class _Batch(Form):
    batch: Positive


class _Parity(Form):
    verdict: str
    relative_l2: Number
    max_abs: Number
    top1_agreement: Number
    limits: _Limits
    batches: Annotated[list[_Batch], Field(min_length=1)]


class _SelfTest(Form):
    rejected: list[str]


class _Device(Form):
    kind: Literal["cpu", "cuda"]
    label: str
    provider: str


class _Latency(Form):
    batch: Positive
    kind: Literal["cpu", "cuda"]
    device: str
    provider: str
    samples: Positive
    p50_ms: Number | None
    p90_ms: Number | None
    p99_ms: Number | None


class _Model(Form):
    precision: Literal["fp32", "fp16", "int8"]
    input_type: Literal["float32", "uint8"]
    input_shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    num_classes: Positive


class Report(Form):
    """Findings of a validation, ``report.json``, as far as bundles and readers rely on them."""

    genotype_digest: str | None = None
    architecture: str | None = None
    """A library's network, in place of a genotype."""
    found_by: str
    found_on_this_data: bool
    params: NonNegative
    macs: NonNegative
    macs_convention: str
    data: _Data
    accuracy: _Accuracy
    parity: _Parity
    self_test: _SelfTest
    device: _Device
    latency: list[_Latency]
    model: _Model
    trained_on: str
    lineage: dict[str, str]

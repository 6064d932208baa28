"""Precision of training: compute type, exactness, and the loss scale that float16 needs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError

_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn ``auto`` into what the device is good at: ``fp32``, ``bf16`` or ``fp16``.

    Raises ``ConfigError`` where the device does not compute as asked for.
    """
    on_cuda = device.type == "cuda"
    # Without emulation: cards before Ampere hold the type, and compute in it by detours.
    has_bfloat16 = not on_cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return ("bf16" if has_bfloat16 else "fp16") if on_cuda else "fp32"
    # Both came with the same generation of cards.
    if precision == "tf32" and not (on_cuda and has_bfloat16):
        name = torch.cuda.get_device_name(device) if on_cuda else "a CPU"
        raise ConfigError(
            f"{name} does not compute in tf32", hint="precision=fp32 works everywhere"
        )
    if precision == "bf16" and not has_bfloat16:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} does not compute in bf16",
            hint="precision=fp32 works everywhere; retrain.precision=fp16 is as small",
        )
    return precision


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that features are computed in. Weights, statistics and sums stay in float32.

    Raises as ``resolve_precision``.
    """
    return _TYPES[resolve_precision(precision, device)]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Arithmetic of a device on float32 values."""

    float32: Literal["ieee", "tf32"]
    """``tf32``: products of convolutions and matrices from 10 bits of mantissa, on a GPU."""
    autotune: bool
    """Whether cuDNN tries its algorithms at a shape's first use and keeps the fastest."""

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Compute this way inside the ``with``, whatever PyTorch's own defaults are."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
        self._set(self.float32 == "tf32", self.float32 == "tf32", self.autotune)
        try:
            yield
        finally:
            self._set(*before)

    @staticmethod
    def _set(convolutions: bool, matrices: bool, autotune: bool) -> None:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = matrices
        torch.backends.cudnn.benchmark = autotune


def arithmetic_of(precision: str, device: torch.device) -> Arithmetic:
    """Return how a training in ``precision`` computes: fp32 is IEEE's, not PyTorch's TF32 default.

    Shapes are the same at every step, so algorithms are tried once; not where
    ``torch.use_deterministic_algorithms`` asks for what the clock does not decide.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    return Arithmetic(
        float32="tf32" if precision == "tf32" else "ieee",
        autotune=device.type == "cuda" and not deterministic,
    )


class LossScale(nn.Module):
    """The factor on the loss that keeps float16 gradients from vanishing (Micikevicius et al.,
    arXiv 1710.03740): halved after an overflow, doubled after ``GROWTH_STEPS`` without one.

    As buffers, so that it lives on the device, waits for nothing, and is part of a checkpoint.
    """

    GROWTH_STEPS = 2000
    START = 2.0**16
    LEAST = 1.0
    """What overflows at this scale is no matter of scale."""

    scale: Tensor
    good_steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(self.START))
        self.register_buffer("good_steps", torch.tensor(0, dtype=torch.int32))

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        torch._foreach_mul_(gradients, 1.0 / self.scale)

    def usable(self, finite: Tensor) -> Tensor:
        """Return whether a step was fine or its overflow is one that a smaller scale may cure."""
        return finite | (self.scale > self.LEAST)

    def update(self, finite: Tensor) -> None:
        """Choose the next step's scale, given whether this one's gradients were finite (0-d)."""
        good = torch.where(finite, self.good_steps + 1, 0)
        grown = good >= self.GROWTH_STEPS
        factor = torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)
        self.scale.mul_(factor).clamp_(min=self.LEAST)
        self.good_steps.copy_(torch.where(grown, 0, good))


def cpu_arithmetic() -> dict[str, int | str]:
    """Return what decides the order in which a CPU adds floats: threads, and instruction set.

    With another one the same training is no longer equal to the last bit.
    """
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }

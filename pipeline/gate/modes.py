"""The modes a device can run a model in: which are tried, and which answer as PyTorch does.

A mode that may serve passes what the plain one passed: parity at every batch size on all test
images, and the accuracy's floor. One with CUDA graphs holds for one batch size each and one thread
at a time; it is timed for comparison, after a look at bound images, and never serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2nas.config.deployment import ValidateConfig
from d2nas.measure.scores import wilson_interval

from ..onnx_io.devices import CpuDevice, Device
from ..onnx_io.session import MODE_OPTIONS, PLAIN, OnnxSession
from .comparison import compare
from .parity import Limits, Reference, Rows, check_parity, gate, in_batches, rows_at, sample_of

NUM_BOUND = 64
"""Images that a mode with CUDA graphs is checked on."""


@dataclass(frozen=True)
class GateLimits:
    """Limits of the gate: distance and agreement, and the accuracy's part of PyTorch's."""

    parity: Limits
    accuracy_floor: float


@dataclass(frozen=True)
class ModeCheck:
    """Judges sessions in other modes by the images that the plain one was judged by."""

    answer: Reference
    """PyTorch's logits [N, classes] of images as the model takes them."""
    images: Rows
    labels: NDArray[np.int64]
    batches: Sequence[int]
    limits: GateLimits
    accuracy: float
    """PyTorch's, from 0 to 1."""

    def problem(self, session: OnnxSession) -> str | None:
        """Say why ``session`` does not answer as PyTorch does; None if it does."""
        if not may_serve(session.mode):
            return self._problem_bound(session)
        parity = check_parity(
            self.answer, session, self.images, self.batches, self.limits.parity, self.labels
        )
        if not parity.passed:
            return f"parity {parity.verdict}: {'; '.join(parity.reasons[:3])}"
        answers = in_batches(session.run, self.images, max(self.batches))
        accuracy = accuracy_of(answers, self.labels)
        floor = self.limits.accuracy_floor * self.accuracy
        # "Not at least" rather than "below": a NaN must not pass.
        return None if accuracy >= floor else f"accuracy {accuracy:.4f} is below {floor:.4f}"

    def _problem_bound(self, session: OnnxSession) -> str | None:
        images = rows_at(self.images, sample_of(len(self.images), self.labels, NUM_BOUND))
        bound = session.bind(images)
        bound()  # what is captured at the first run must hold for the images of a later one
        answers = bound.answer(images[::-1].copy())[::-1]
        found = compare(self.answer(images), answers)
        verdict, reasons = gate(found, self.limits.parity, is_part=True)
        return "; ".join(reasons) if verdict == "failed" else None


def may_serve(mode: str) -> bool:
    """Whether a server that takes any batch size at any time can run in ``mode``."""
    return "cuda-graph" not in mode


def modes_of(device: Device, config: ValidateConfig) -> Sequence[str]:
    """Return the modes to try on ``device``, plain first."""
    if isinstance(device, CpuDevice):
        return (PLAIN,)
    chosen = tuple(MODE_OPTIONS) if config.modes is None else config.modes
    # Plain always: it is what parity was checked in, and what serves where no other may.
    return tuple(mode for mode in MODE_OPTIONS if mode == PLAIN or mode in chosen)


def accuracy_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of rows [N, classes] whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def is_near_chance(accuracy: float, num_images: int, largest_share: float) -> bool:
    """Whether an accuracy counted on so many images may be that of always answering the largest
    class: the lower end of its 95 % interval (Wilson's) is not above that class's share.
    """
    return wilson_interval(accuracy, num_images)[0] <= largest_share

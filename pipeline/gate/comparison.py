"""Distance between two models' logits, its limits, and the verdict on it.

Numbers: with R the reference logits, G the exported model's, all in float64:

- ``max_abs`` = max |G - R|; ``relative_l2`` = ||G - R|| / ||R||; ``cosine`` = the smallest cosine
  of an image's two rows; ``top1_agreement`` = share of images with the same argmax,
  ``top5_agreement`` = share of R's five largest classes that are among G's.
- ``spread`` = ||V|| / ||R||, V being R without what a prediction cannot depend on: each image's
  mean over classes, then each class's mean over images. It is the part of R that tells images
  apart.

Why the spread: if the logits hardly vary between images, a broken model agrees with the network as
well as an intact one: in a randomly initialised 20-cell network, zeroing a whole convolution moved
logits of 0.17 by 6e-6 and no prediction. A pass means ||G - R|| <= limit ||R||. That is evidence
only if the error allowed is small beside the signal, so a pass counts from spread >= 100 x limit
on: then the allowed error is at most 1 % of what tells images apart (fp16: 40 x, see
``PRECISION_LIMITS``). Below, the verdict is ``inconclusive``, which is not a pass.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Outcome = Literal["passed", "failed", "inconclusive"]

TOP_CLASSES = 5
RELATIVE_L2_LIMIT = 1e-5
TOP1_LIMIT = 0.999
SPREAD_FACTOR = 100.0


@dataclass(frozen=True)
class ParityResult:
    """Comparison of two arrays of logits; numbers stay None where an earlier check failed."""

    shape_equal: bool
    dtype_equal: bool
    finite: bool
    max_abs: float | None = None
    relative_l2: float | None = None
    top1_agreement: float | None = None
    spread: float | None = None
    top5_agreement: float | None = None
    """Of fewer classes than six: 1, whatever was answered."""
    cosine: float | None = None
    num_images: int | None = None

    @property
    def num_flips(self) -> int | None:
        """Images that are answered with another class; None if that is not known."""
        if self.top1_agreement is None or self.num_images is None:
            return None
        return round((1.0 - self.top1_agreement) * self.num_images)


@dataclass(frozen=True)
class Limits:
    """Limits of the gate; the defaults are float32's."""

    relative_l2: float = RELATIVE_L2_LIMIT
    top1_agreement: float = TOP1_LIMIT
    spread_factor: float | None = None
    """Smallest spread over ``relative_l2`` at which passing means something; none: 100."""
    accuracy_floor: float = 0.999
    """Smallest part of PyTorch's accuracy."""

    @property
    def spread(self) -> float:
        """Smallest spread at which passing means something."""
        factor = SPREAD_FACTOR if self.spread_factor is None else self.spread_factor
        return factor * self.relative_l2

    def flips(self, num_images: int) -> int:
        """Return how many images of a part of them may be answered with another class."""
        return math.ceil(round((1.0 - self.top1_agreement) * num_images, 9))


PRECISION_LIMITS = {
    "fp32": Limits(),
    # Measured (benchmarks/fp16_parity.json): weights and features rounded to 11 bits move logits by
    # at most 1.6e-3, from 4 to 36 channels and from chance to 99 % accuracy; each faulty copy of
    # the self-test, once a network was trained for an epoch (spread 0.37 and more), by 8e-3 and
    # more. Of networks as initialised the spread is at most 0.08, and a zeroed convolution moves
    # logits by 1e-4: no limit tells that from rounding. 0.2 lies between, and the error that is
    # allowed is then at most 2.5 % of what tells images apart. The floors are MLPerf's.
    "fp16": Limits(relative_l2=5e-3, top1_agreement=0.99, spread_factor=40.0, accuracy_floor=0.99),
    # The proof is the comparison of weights (identity/quantised.py); this finds kernels that
    # compute something else, such as products that saturate. Measured (benchmarks/int8.json): 0.015
    # to 0.027 from 8 to 36 channels, 0.976 of the images and more answered alike.
    "int8": Limits(relative_l2=0.1, top1_agreement=0.95, spread_factor=2.0, accuracy_floor=0.99),
}
"""What the gate allows, by the model's precision."""


def compare(reference: NDArray[Any], got: NDArray[Any]) -> ParityResult:
    """Compare logits [N, classes]: shape, then dtype, then finiteness of both, then values.

    Each check is made only if the ones before it hold.
    """
    if reference.shape != got.shape or reference.ndim != 2 or reference.size == 0:
        return ParityResult(shape_equal=False, dtype_equal=False, finite=False)
    if reference.dtype != got.dtype:
        return ParityResult(shape_equal=True, dtype_equal=False, finite=False)
    if not (np.isfinite(reference).all() and np.isfinite(got).all()):
        return ParityResult(shape_equal=True, dtype_equal=True, finite=False)
    wanted = reference.astype(np.float64)
    difference = got.astype(np.float64) - wanted
    agreement = np.argmax(reference, axis=1) == np.argmax(got, axis=1)
    return ParityResult(
        shape_equal=True,
        dtype_equal=True,
        finite=True,
        max_abs=float(np.abs(difference).max()),
        relative_l2=ratio(difference, wanted),
        top1_agreement=float(agreement.mean()),
        spread=_spread(wanted),
        top5_agreement=_top_agreement(wanted, got, TOP_CLASSES),
        cosine=_smallest_cosine(wanted, got.astype(np.float64)),
        num_images=len(reference),
    )


def judge_parity(
    result: ParityResult, limits: Limits | None = None, *, is_part: bool = False
) -> tuple[Outcome, tuple[str, ...]]:
    """Judge a comparison; with the reasons (one line each) when it is not ``passed``.

    ``is_part``: of a part of the images, where agreement is counted in images.
    """
    limits = limits or Limits()
    if not result.shape_equal:
        return "failed", ("the outputs differ in shape",)
    if not result.dtype_equal:
        return "failed", ("the outputs differ in type",)
    if not result.finite:
        return "failed", ("an output is not finite",)
    if result.relative_l2 is None or result.top1_agreement is None or result.spread is None:
        return "failed", ("the outputs were not compared",)
    reasons = []
    # "Not at most" rather than "above": a NaN must not pass.
    if not result.relative_l2 <= limits.relative_l2:
        reasons.append(f"relative L2 {result.relative_l2:.3g} > {limits.relative_l2:.3g}")
    excused = is_part and (result.num_flips or 0) <= limits.flips(result.num_images or 0)
    if not result.top1_agreement >= limits.top1_agreement and not excused:
        reasons.append(f"top-1 agreement {result.top1_agreement:.5f} < {limits.top1_agreement:g}")
    if reasons:
        return "failed", tuple(reasons)
    if not result.spread >= limits.spread:
        return "inconclusive", (
            f"the logits hardly vary between images: spread {result.spread:.3g} "
            f"< {limits.spread:.3g}",
        )
    return "passed", ()


def largest_share(classes: NDArray[Any]) -> float:
    """Return the share that the most frequent of ``classes`` [N] has."""
    return float(np.bincount(classes).max() / len(classes))


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """||part|| / ||whole||; zero over zero is 0, anything else over zero is infinite."""
    above, below = float(np.linalg.norm(part)), float(np.linalg.norm(whole))
    if below > 0.0:
        return above / below
    return 0.0 if above == 0.0 else math.inf


def _spread(reference: NDArray[np.float64]) -> float:
    varying = reference
    if reference.shape[1] > 1:
        varying = varying - varying.mean(axis=1, keepdims=True)
    return ratio(varying - varying.mean(axis=0, keepdims=True), reference)


def _top_agreement(wanted: NDArray[Any], got: NDArray[Any], count: int) -> float:
    """Share of each row's ``count`` largest of ``wanted`` that are among the largest of ``got``."""
    count = min(count, wanted.shape[1])
    largest = [np.argsort(-rows, axis=1, kind="stable")[:, :count] for rows in (wanted, got)]
    common = [len(np.intersect1d(one, other)) / count for one, other in zip(*largest, strict=True)]
    return float(np.mean(common))


def _smallest_cosine(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """Smallest cosine of two rows; rows of zeros are alike to each other and to nothing else."""
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    products = (wanted * got).sum(axis=1)
    alike = (wanted == got).all(axis=1)
    cosines = np.divide(products, lengths, out=alike.astype(np.float64), where=lengths > 0)
    return float(cosines.min())

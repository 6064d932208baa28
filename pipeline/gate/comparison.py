"""Distance between two models' logits.

Numbers. With R the reference logits, G the exported model's, all in float64:

- ``max_abs`` = max |G - R|; ``relative_l2`` = ||G - R|| / ||R||; ``cosine`` = the smallest cosine
  of an image's two rows; ``top1_agreement`` = share of images with the same argmax,
  ``top5_agreement`` = share of R's five largest classes that are among G's.
- ``spread`` = ||V|| / ||R||, V being R without what a prediction cannot depend on: each image's
  mean over classes, then each class's mean over images. It is the part of R that tells images
  apart.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_CLASSES = 5


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

"""Parity: whether a session answers at every batch size as the trained network does.

``comparison`` defines distance and verdict. Here also: the network answers nearly all images with
one class although their labels differ, which is ``inconclusive`` too: such answers agree whatever
the copy computes.

Agreement is held to its limit over all images, which the largest batch size sees. The others see a
part of n, where one image weighs more than the limit: ceil((1 - limit) n) of them may differ.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from d2nas.data.subsample import spread_sample
from d2nas.errors import ConfigError

from .comparison import Limits, Outcome, ParityResult, compare, judge_parity, largest_share, ratio

DEFAULT_BATCHES = (1, 2, 7, 64)
SMALL_BATCH_IMAGES = 64
"""Images that every batch size but the largest is checked on; the largest sees all."""
SAMPLE_PURPOSE = "model-check"
CONSTANT_SHARE = 0.95
"""Largest share of the images that the network may answer with one class, where no class of the
labels has more than 90 %; above that, half way from the largest class's share to all of them."""
TOP1_RULE = "over all images; of a part of n, ceil((1 - limit) n) may be answered otherwise"


class Rows(Protocol):
    """Images [N, channels, height, width] that are looked at in parts: all may be too many."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]:
        """Return a part of them."""


class Session(Protocol):
    """Session that is compared with the reference: ``OnnxSession`` or a stand-in."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [N, classes] of ``images`` [N, channels, height, width]."""

    def check_provider(self) -> None:
        """Raise ``ValidationFailedError`` if the session left its device."""


@dataclass(frozen=True)
class BatchParity:
    """The comparison at one batch size.

    ``identical_rows`` is the largest relative L2 distance between answers to copies of one image
    in a batch, ``permuted_rows`` that between answers to a batch and to the same batch reordered.
    """

    batch: int
    num_images: int
    result: ParityResult
    identical_rows: float
    permuted_rows: float
    verdict: Outcome
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "batch": self.batch,
            "images": self.num_images,
            "verdict": self.verdict,
            "max_abs": _json_number(self.result.max_abs),
            "relative_l2": _json_number(self.result.relative_l2),
            "top1_agreement": self.result.top1_agreement,
            "top1_flips": self.result.num_flips,
            "top5_agreement": self.result.top5_agreement,
            "cosine": _json_number(self.result.cosine),
            "spread": _json_number(self.result.spread),
            "identical_rows": _json_number(self.identical_rows),
            "permuted_rows": _json_number(self.permuted_rows),
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class ParityReport:
    """The verdict over all batch sizes: the worst one's."""

    batches: tuple[BatchParity, ...]
    limits: Limits

    @property
    def verdict(self) -> Outcome:
        """``failed`` if any batch size failed, else ``inconclusive`` if any was, else passed."""
        return _worst(entry.verdict for entry in self.batches)

    @property
    def passed(self) -> bool:
        """Whether every batch size passed on outputs that vary."""
        return self.verdict == "passed"

    @property
    def max_abs(self) -> float | None:
        """Largest absolute difference of a logit; None if some outputs cannot be compared."""
        return _largest([entry.result.max_abs for entry in self.batches])

    @property
    def relative_l2(self) -> float | None:
        """Largest relative L2 difference; None if some outputs cannot be compared."""
        return _largest([entry.result.relative_l2 for entry in self.batches])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass, one line each."""
        return tuple(f"batch {e.batch}: {reason}" for e in self.batches for reason in e.reasons)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        results = [entry.result for entry in self.batches]
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "max_abs": self.max_abs,
            "relative_l2": self.relative_l2,
            "top1_agreement": _smallest([result.top1_agreement for result in results]),
            "top5_agreement": _smallest([result.top5_agreement for result in results]),
            "cosine": _smallest([result.cosine for result in results]),
            "limits": {
                "relative_l2": self.limits.relative_l2,
                "top1_agreement": self.limits.top1_agreement,
                "top1_rule": TOP1_RULE,
                "spread": self.limits.spread,
                "constant_share": CONSTANT_SHARE,
            },
            "batches": [entry.to_dict() for entry in self.batches],
            "reasons": list(self.reasons),
        }


def check_parity(
    reference: NDArray[Any],
    session: Session,
    images: Rows,
    batches: Sequence[int] = DEFAULT_BATCHES,
    limits: Limits | None = None,
    labels: NDArray[np.int64] | None = None,
) -> ParityReport:
    """Compare the answers of ``session`` with ``reference`` at every batch size of ``batches``.

    ``images`` is [N, channels, height, width], ``reference`` their logits [N, classes]. The largest
    batch size runs over all images, the others over the 64 of ``sample_of`` (over all, if fewer); a
    batch size above that number is filled by repeating images, so that it is really run. Every size
    also answers one image copied into the whole batch, and one batch in another order. With
    ``labels`` [N], small samples are of all classes, and answers of one class for nearly all images
    are inconclusive. Raises ``ConfigError`` without images or batch sizes, and what ``session``
    raises.
    """
    if len(images) < 1 or not batches or min(batches) < 1:
        raise ConfigError("parity needs at least one image and batch sizes of at least 1")
    if len(reference) != len(images):
        raise ValueError("the reference does not answer each image with one row of logits")
    limits = limits or Limits()
    largest = max(batches)
    entries = []
    sample = sample_of(len(images), labels)
    sampled = rows_at(images, sample)
    for batch in sorted(set(batches)):
        rows, wanted, num_images = images, reference, len(images)
        if batch > len(images) or (batch != largest and len(images) > len(sample)):
            num_images = len(sample)
            repeated = np.arange(max(batch, num_images)) % num_images
            rows, wanted = sampled[repeated], reference[sample][repeated]
        some = sampled[np.arange(batch) % len(sampled)]
        is_part = num_images < len(images)
        entries.append(_at_batch(session, rows, wanted, some, limits, is_part=is_part))
    constant = None if labels is None else _constant(reference, labels)
    if constant is not None and entries[-1].verdict == "passed":
        entries[-1] = replace(entries[-1], verdict="inconclusive", reasons=(constant,))
    session.check_provider()
    return ParityReport(tuple(entries), limits)


def sample_of(
    num_images: int, labels: NDArray[np.int64] | None, count: int = SMALL_BATCH_IMAGES
) -> list[int]:
    """Return the images that a model is checked on where not all are needed, of all classes."""
    return spread_sample(
        num_images,
        count,
        purpose=SAMPLE_PURPOSE,
        labels=None if labels is None else labels.tolist(),
    )


def rows_at(images: Rows, indices: Sequence[int]) -> NDArray[Any]:
    """Return the images with these numbers."""
    return np.concatenate([images[index : index + 1] for index in indices])


def _at_batch(
    session: Session,
    images: Rows,
    reference: NDArray[Any],
    one_batch: NDArray[np.float32],
    limits: Limits,
    *,
    is_part: bool,
) -> BatchParity:
    batch = len(one_batch)
    result = compare(reference, in_batches(session.run, images, batch))
    verdict, reasons = judge_parity(result, limits, is_part=is_part)
    identical, permuted = _row_invariance(session, one_batch)
    broken = [
        f"{what} differ by relative L2 {distance:.3g} > {limits.relative_l2:.3g}"
        for what, distance in (
            ("answers to copies of one image", identical),
            ("answers to a reordered batch", permuted),
        )
        if not distance <= limits.relative_l2
    ]
    if broken:
        reasons = (*reasons, *broken) if verdict == "failed" else tuple(broken)
        verdict = "failed"
    return BatchParity(batch, len(images), result, identical, permuted, verdict, reasons)


def _constant(reference: NDArray[Any], labels: NDArray[np.int64]) -> str | None:
    """Say that one class is the answer to nearly all images although their labels differ."""
    share, of_labels = largest_share(reference.argmax(axis=1)), largest_share(labels)
    if share <= max(CONSTANT_SHARE, (1.0 + of_labels) / 2):
        return None
    return (
        f"the network answers {100 * share:.1f} % of the images with one class, "
        f"which {100 * of_labels:.1f} % at most have"
    )


def _row_invariance(session: Session, rows: NDArray[np.float32]) -> tuple[float, float]:
    """Largest distance between identical rows, and between a batch and itself reordered."""
    if len(rows) == 1:
        return 0.0, 0.0
    copies = session.run(np.repeat(rows[:1], len(rows), axis=0))
    order = _scrambled(len(rows))
    straight, reordered = session.run(rows), session.run(rows[order])
    if not len(rows) == len(copies) == len(straight) == len(reordered):
        return math.inf, math.inf
    if not copies.shape == straight.shape == reordered.shape:
        return math.inf, math.inf
    return _row_distance(copies, copies[:1]), _row_distance(reordered, straight[order])


def _scrambled(num_rows: int) -> NDArray[np.intp]:
    """A fixed order that is neither a rotation nor a reversal: those hide whole-batch shifts."""
    scattered = np.arange(1, num_rows + 1, dtype=np.uint64) * np.uint64(2654435761)
    return np.argsort(scattered % np.uint64(2**32), kind="stable")


def _row_distance(rows: NDArray[Any], wanted: NDArray[Any]) -> float:
    rows, wanted = np.broadcast_arrays(rows.astype(np.float64), wanted.astype(np.float64))
    if not (np.isfinite(rows).all() and np.isfinite(wanted).all()):
        return math.inf
    return max(ratio(row - target, target) for row, target in zip(rows, wanted, strict=True))


def in_batches(
    answer: Callable[[NDArray[Any]], NDArray[Any]], images: Rows, batch: int
) -> NDArray[Any]:
    """Return the answers to all images in order, ``batch`` at a time.

    An array of no rows if a batch is answered by another number of rows.
    """
    answers = []
    for at in range(0, len(images), batch):
        rows = images[at : at + batch]
        answers.append(np.asarray(answer(rows)))
        if answers[-1].shape[:1] != (len(rows),) or answers[-1].shape[1:] != answers[0].shape[1:]:
            return np.empty((0, 0), np.float32)
    return np.concatenate(answers)


def _smallest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return min(known) if len(known) == len(values) else None


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return max(known) if len(known) == len(values) else None


def _worst(verdicts: Iterable[Outcome]) -> Outcome:
    seen = set(verdicts)
    if "failed" in seen:
        return "failed"
    return "inconclusive" if "inconclusive" in seen else "passed"


def _json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

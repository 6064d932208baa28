"""Verdict by class: recall, precision, calibration, and the mistakes made with the most confidence.

One accuracy for all classes hides a class that is never recognised. Numbers are of the exported
model's answers to all test images.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2nas.errors import ValidationFailedError
from d2nas.measure.scores import Scores, softmax

MOST_CLASSES = 200
"""Classes up to which a report has the whole confusion matrix: it grows with their square."""
MOST_PAIRS = 50
MOST_DETAILS = 50


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer to a test image, with the probability that the model gives it."""

    index: int
    label: int
    answer: int
    confidence: float


@dataclass(frozen=True)
class ClassVerdict:
    """What a model's answers say of each class, and its worst mistakes first."""

    scores: Scores
    class_names: Sequence[str]
    mistakes: Sequence[Mistake]

    def require(self, min_recall: float | None, min_balanced_accuracy: float | None) -> None:
        """Raise ``ValidationFailedError`` where a class with test images is recalled less often, or
        the mean of the recalls is lower; its details are the scores of the classes that are.
        """
        overall, problems, details = self.scores.overall(), list[str](), list[str]()
        balanced = overall["balanced_accuracy"]
        if min_balanced_accuracy is not None and not balanced >= min_balanced_accuracy:
            problems.append(
                f"balanced accuracy {100 * balanced:.2f} % < {100 * min_balanced_accuracy:g} %"
            )
        least = max(min_recall or 0.0, balanced if problems else 0.0)
        rows = [
            (row["recall"], name, row)
            for name, row in zip(self.class_names, self.scores.by_class(), strict=True)
            if row["images"]
        ]
        for recall, name, row in sorted(rows, key=lambda one: one[0]):
            if not recall >= least:
                precision = "n/a" if row["precision"] is None else f"{100 * row['precision']:.1f} %"
                details.append(
                    f"{name}: recall {100 * recall:.1f} % of {row['images']}, precision {precision}"
                )
        if min_recall is not None:
            low = [recall for recall, *_ in rows if not recall >= min_recall]
            if low:
                number = "1 class" if len(low) == 1 else f"{len(low)} classes"
                problems.append(f"recall of {number} < {100 * min_recall:g} %")
        if problems:
            raise ValidationFailedError(
                "; ".join(problems),
                hint="validate.min_recall, validate.min_balanced_accuracy; retrain.class_weights "
                "weighs rare classes",
                details=details[:MOST_DETAILS],
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report's parts as JSON data; the confusion matrix is None of more than
        ``MOST_CLASSES`` classes.
        """
        found = self.scores.to_dict(self.class_names)
        few = len(self.class_names) <= MOST_CLASSES
        return {
            "balanced_accuracy": found["balanced_accuracy"],
            "ece": found["ece"],
            "per_class": found["per_class"],
            "without_images": found["without_images"],
            "reliability": found["reliability"],
            "confusion": found["confusion"] if few else None,
            "confused": self._confused(),
            "mistakes": [asdict(one) for one in self.mistakes],
        }

    def _confused(self) -> list[dict[str, Any]]:
        """Return the pairs of a class and another answer that most images have."""
        wrong = self.scores.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [
            {
                "class": self.class_names[label],
                "answer": self.class_names[answer],
                "images": int(wrong[label, answer]),
            }
            for label, answer in pairs
            if wrong[label, answer]
        ]


def class_verdict(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    num_mistakes: int,
) -> ClassVerdict:
    """Return what finite logits [N, classes] say of images with ``labels`` [N]."""
    scores, probabilities = Scores(len(class_names)), softmax(logits)
    scores.add(labels, probabilities)
    answers, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    (wrong,) = np.nonzero(answers != labels)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:num_mistakes]
    mistakes = [
        Mistake(int(index), int(labels[index]), int(answers[index]), float(confidences[index]))
        for index in worst
    ]
    return ClassVerdict(scores, class_names, mistakes)

"""Accuracy of a classifier: with interval, by class, balanced, calibration error, confusion matrix.

Counted as answers come, so that memory does not grow with the images. No torch.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
"""Bins of confidence of the calibration error, as in Guo et al. (2017)."""
_NORMAL_QUANTILE = 1.96


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval (Wilson's score interval) of a share counted on so many images."""
    squared = _NORMAL_QUANTILE**2 / count
    middle = (share + squared / 2) / (1 + squared)
    spread = math.sqrt(share * (1 - share) * squared + squared**2 / 4) / (1 + squared)
    return middle - spread, min(1.0, middle + spread)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities of finite logits over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    shares = np.exp(shifted)
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


class Scores:
    """Counts of answers to labelled images."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        """Images by their class (rows) and their answer (columns)."""
        self._bins = np.zeros((3, NUM_BINS))  # images, right answers, sum of confidences

    def add(self, labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
        """Count the answers to images with ``labels`` [N]; ``probabilities`` [N, classes]."""
        answers = probabilities.argmax(axis=1)
        confidences = probabilities.max(axis=1)
        np.add.at(self.confusion, (labels, answers), 1)
        # A bin holds its upper end, not its lower one.
        bins = np.clip(np.ceil(confidences * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        for row, values in enumerate((np.ones(len(labels)), answers == labels, confidences)):
            np.add.at(self._bins[row], bins, values)

    @property
    def num_images(self) -> int:
        """Number of images counted."""
        return int(self.confusion.sum())

    @property
    def num_correct(self) -> int:
        """Number of images answered with their class."""
        return int(self.confusion.trace())

    def overall(self) -> dict[str, Any]:
        """Return what is said of all images together, as fractions; of one image at least.

        ``balanced_accuracy`` is the mean recall of the classes that have images; ``ece`` the mean
        distance of confidence and accuracy over ``NUM_BINS`` bins of equal width.
        """
        accuracy = self.num_correct / self.num_images
        recalls = [row["recall"] for row in self.by_class() if row["recall"] is not None]
        _, correct, confidence = self._bins
        return {
            "images": self.num_images,
            "correct": self.num_correct,
            "accuracy": accuracy,
            "accuracy_interval": list(wilson_interval(accuracy, self.num_images)),
            "balanced_accuracy": sum(recalls) / len(recalls),
            "ece": float(np.abs(correct - confidence).sum() / self.num_images),
        }

    def reliability(self) -> list[dict[str, Any]]:
        """Return images, accuracy and mean confidence of each bin of confidence that has images,
        with its upper end.
        """
        return [
            {
                "up_to": (index + 1) / NUM_BINS,
                "images": int(images),
                "accuracy": correct / images,
                "confidence": confidence / images,
            }
            for index, (images, correct, confidence) in enumerate(self._bins.T.tolist())
            if images
        ]

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return all of it as JSON data: ``overall``, ``per_class`` with names, ``reliability``,
        ``confusion``, and the names of classes without images.
        """
        by_class = zip(class_names, self.by_class(), strict=True)
        per_class = [{"class": name, **row} for name, row in by_class]
        return {
            **self.overall(),
            "per_class": per_class,
            "labels": list(class_names),
            "confusion": self.confusion.tolist(),
            "reliability": self.reliability(),
            "without_images": [row["class"] for row in per_class if not row["images"]],
        }

    def by_class(self) -> list[dict[str, Any]]:
        """Return images, recall, precision and f1 of each class; None is of no images at all:
        recall without images of the class, precision without answers, f1 without either.
        """
        rows = []
        for index, row in enumerate(self.confusion):
            hits, images = int(row[index]), int(row.sum())
            answered = int(self.confusion[:, index].sum())
            rows.append(
                {
                    "images": images,
                    "recall": hits / images if images else None,
                    "precision": hits / answered if answered else None,
                    "f1": 2 * hits / (images + answered) if images + answered else None,
                }
            )
        return rows

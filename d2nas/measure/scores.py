"""Accuracy of a classifier: with interval, by class, balanced, calibration error, confusion matrix.

Counted as answers come, so that memory does not grow with the images. No torch.
"""

import math
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

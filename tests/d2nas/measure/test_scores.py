"""Scores of a classifier by hand."""

import numpy as np
import pytest

from d2nas.measure.scores import NUM_BINS, Scores, softmax


def test_softmax_adds_up_to_one_and_bears_large_logits() -> None:
    logits = np.array([[1000.0, 1000.0, -1000.0], [0.0, np.log(2), np.log(5)]], np.float32)
    found = softmax(logits)
    assert found.dtype == np.float64
    assert found[0].tolist() == [0.5, 0.5, 0.0]
    assert found[1] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-7)


def test_a_bin_holds_what_was_that_sure() -> None:
    scores = Scores(2)
    probabilities = np.array([[0.61, 0.39], [0.63, 0.37], [0.62, 0.38], [0.01, 0.99], [1.0, 0.0]])
    scores.add(np.array([0, 1, 0, 1, 0]), probabilities)
    first, last = scores.reliability()  # bins without images are left out
    assert first["up_to"] == pytest.approx(10 / NUM_BINS)
    assert (first["images"], last["images"]) == (3, 2)
    assert first["accuracy"] == pytest.approx(2 / 3)
    assert first["confidence"] == pytest.approx(0.62)
    assert (last["up_to"], last["accuracy"]) == (1.0, 1.0)
    assert last["confidence"] == pytest.approx(0.995)
    # Its distance from the diagonal, weighed by images, is the calibration error.
    error = sum(one["images"] * abs(one["accuracy"] - one["confidence"]) for one in (first, last))
    assert scores.overall()["ece"] == pytest.approx(error / 5)


def test_all_of_it_as_data() -> None:
    scores = Scores(3)
    scores.add(np.array([0, 1, 1]), np.eye(3)[[0, 0, 1]])
    found = scores.to_dict(["a", "b", "c"])
    assert found["per_class"] == [
        {"class": "a", "images": 1, "recall": 1.0, "precision": 0.5, "f1": pytest.approx(2 / 3)},
        {"class": "b", "images": 2, "recall": 0.5, "precision": 1.0, "f1": pytest.approx(2 / 3)},
        {"class": "c", "images": 0, "recall": None, "precision": None, "f1": None},
    ]
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert found["without_images"] == ["c"]
    assert found["labels"] == ["a", "b", "c"]
    assert found["balanced_accuracy"] == 0.75
    with pytest.raises(ValueError, match="zip"):
        scores.to_dict(["a", "b"])

"""Samples of sorted data: whatever looks at a part of the images looks at all classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from d2nas.data.subsample import spread_sample
from pipeline.gate import parity
from pipeline.gate.comparison import PRECISION_LIMITS, compare, judge_parity
from pipeline.gate.parity import check_parity, sample_of

NUM_CLASSES = 10
SORTED = np.repeat(np.arange(NUM_CLASSES), 100)


def test_any_start_of_a_sample_holds_as_many_classes_as_it_can() -> None:
    chosen = spread_sample(1000, 64, purpose="p", labels=SORTED.tolist())
    assert len(set(chosen)) == 64
    for count in range(1, 65):
        assert len(set(SORTED[chosen[:count]])) == min(count, NUM_CLASSES)
        assert spread_sample(1000, count, purpose="p", labels=SORTED.tolist()) == chosen[:count]


def test_a_sample_depends_on_seed_and_purpose_and_is_from_everywhere() -> None:
    chosen = spread_sample(1000, 64, purpose="p")
    assert chosen == spread_sample(1000, 64, purpose="p")
    assert chosen != spread_sample(1000, 64, purpose="q")
    assert chosen != spread_sample(1000, 64, purpose="p", seed=1)
    assert min(chosen) < 100
    assert max(chosen) >= 900


def test_small_classes_and_few_images_are_taken_whole() -> None:
    labels = [0] * 50 + [1, 1, 2]
    chosen = spread_sample(53, 10, purpose="p", labels=labels)
    assert {50, 51, 52} <= set(chosen)
    assert sorted(spread_sample(53, 100, purpose="p", labels=labels)) == list(range(53))
    assert spread_sample(0, 8, purpose="p", labels=[]) == []
    with pytest.raises(ValueError, match="a label for each"):
        spread_sample(3, 2, purpose="p", labels=[0])


def sure(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answer each image, which holds its class, with nearly the same logits as all of that class:
    a good network.
    """
    flat = images.reshape(len(images), -1)
    return np.eye(NUM_CLASSES, dtype=np.float32)[flat[:, 0].astype(int)] * 9 + flat[:, 1:] * 0.001


def images_of(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Images [N, 1, 1, 11] that hold their class and small noise."""
    noise = np.random.default_rng(0).standard_normal((len(labels), NUM_CLASSES))
    return np.concatenate([labels[:, None], noise], 1).astype(np.float32)[:, None, None]


class Half:
    """The model in half precision."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return sure(images).astype(np.float16).astype(np.float32)

    def check_provider(self) -> None:
        pass


def test_a_good_network_passes_in_half_precision_on_sorted_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = PRECISION_LIMITS["fp16"]
    images = images_of(SORTED)
    assert check_parity(sure(images), Half(), images, limits=limits, labels=SORTED).passed
    # The first images are of one class, and say nothing.
    first = images[:64]
    assert judge_parity(compare(sure(first), Half().run(first)), limits)[0] == "inconclusive"
    # Control: looked at as they come, the same good network is refused.
    monkeypatch.setattr(parity, "sample_of", lambda n, labels, count=64: list(range(min(n, count))))
    report = check_parity(sure(images), Half(), images, limits=limits, labels=SORTED)
    assert report.verdict == "inconclusive"
    assert "hardly vary" in report.reasons[0]


def test_the_order_of_the_images_decides_no_verdict() -> None:
    limits = PRECISION_LIMITS["fp16"]
    for seed in range(3):
        labels = np.random.default_rng(seed).permutation(SORTED)
        images = images_of(labels)
        assert check_parity(sure(images), Half(), images, limits=limits, labels=labels).passed
        assert set(labels[sample_of(len(labels), labels, 10)]) == set(range(NUM_CLASSES))


def test_the_limits_of_half_precision_tell_measured_networks_from_their_faulty_copies() -> None:
    file = Path(__file__).parents[3] / "benchmarks" / "fp16_parity.json"
    limits = PRECISION_LIMITS["fp16"]
    blind = 0
    for row in json.loads(file.read_text())["rows"]:
        found, faulty = row["fp16"]["sampled_64"], row["fp16"]["faulty_copies"].values()
        assert found["relative_l2"] <= limits.relative_l2 / 2
        assert found["top1_agreement"] >= limits.top1_agreement
        told_apart = min(copy["relative_l2"] for copy in faulty) > limits.relative_l2
        assert told_apart == (found["spread"] >= limits.spread)
        assert (row["epochs"] > 0) == told_apart
        blind += not told_apart
    assert blind >= 4  # control: of untrained networks a faulty copy is not told from rounding

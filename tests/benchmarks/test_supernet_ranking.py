"""How a supernet's losses rank cells: the arithmetic, where the answer is known."""

import random
import statistics

import pytest

from benchmarks.supernet_ranking import correlations, standardized


def test_rank_correlations_are_of_the_last_look_and_of_all() -> None:
    alone = [0.1, 0.2, 0.3, 0.4]
    looks = [{"loss": [1.0, 2.0, 3.0, 4.0]}, {"loss": [4.0, 3.0, 1.0, 2.0]}]
    assert correlations(looks[:1], alone)["loss"] == 1.0
    found = correlations(looks, alone)
    assert found["loss"] == -0.8
    assert found["cells"] == 4
    assert found["mean_prediction_loss"] == 2.5


def test_each_look_counts_as_much_as_any_other_and_their_noise_averages_out() -> None:
    numbers = random.Random(0)
    alone = [numbers.gauss(0, 1) for _ in range(300)]

    def look(scale: float) -> dict[str, list[float]]:
        return {"loss": [scale * (loss + numbers.gauss(0, 2)) for loss in alone]}

    looks = [look(10.0 if index == 0 else 0.1) for index in range(16)]
    found = correlations(looks, alone)
    assert found["loss"] < 0.6
    assert found["loss, all looks"] > 0.8
    # Control: unscaled, the one large look drowns the others.
    summed = [sum(of_cell) for of_cell in zip(*(one["loss"] for one in looks), strict=True)]
    assert statistics.correlation(summed, alone) < 0.6


def test_standardized_values_have_mean_0_and_deviation_1() -> None:
    found = standardized([3.0, 5.0, 10.0])
    assert statistics.fmean(found) == pytest.approx(0.0)
    assert statistics.stdev(found) == pytest.approx(1.0)

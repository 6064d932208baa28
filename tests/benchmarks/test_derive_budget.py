"""The simulation of a budget: where the answer is known."""

import random
import statistics
from typing import Any

import pytest

from benchmarks.derive_budget import (
    ENOUGH,
    known_reliability,
    modelled,
    replayed,
    report,
    without_neighbours,
)
from d2nas.train.halving import schedule


def mean_of(draws: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(draw[name] for draw in draws)


def test_without_noise_the_best_is_found_and_with_nothing_else_a_random_one() -> None:
    numbers = random.Random(0)
    plan = schedule(12)
    exact = [modelled(plan, 1.0, 0.9, numbers) for _ in range(400)]
    assert mean_of(exact, "best_of_n") == pytest.approx(1.63, abs=0.15)  # of 12 normal numbers
    assert mean_of(exact, "without_neighbours") == pytest.approx(1.49, abs=0.15)  # of 9
    blind = [modelled(plan, 1e-9, 0.9, numbers) for _ in range(400)]
    assert abs(mean_of(blind, "halving")) < 0.15
    assert abs(mean_of(blind, "best_of_n")) < 0.15


def test_more_seeds_choose_better_than_one_from_a_large_budget() -> None:
    numbers = random.Random(0)
    draws = [modelled(schedule(48), 0.45, 0.94, numbers) for _ in range(600)]
    assert mean_of(draws, "halving") > mean_of(draws, "best_of_n") + 0.1


def test_a_schedule_without_neighbours_has_as_many_trainings() -> None:
    for budget in (6, 12, 48):
        plan = without_neighbours(schedule(budget))
        assert plan.neighbours == 0
        assert plan.num_trainings == budget


def test_a_chosen_cell_is_worth_what_unseen_seeds_say() -> None:
    numbers = random.Random(0)
    plan = schedule(12)
    noise = [[numbers.gauss(0, 1) for _ in range(10)] for _ in range(500)]
    draws = [replayed(plan, noise, numbers) for _ in range(400)]
    assert abs(mean_of(draws, "halving")) < 0.2
    assert abs(mean_of(draws, "best_of_n")) < 0.2
    # Control: by the seeds that chose them cells of nothing but noise look good.
    flattered = [[of[0], of[1], of[0]] for of in noise]
    draws = [replayed(plan, flattered, numbers) for _ in range(400)]
    assert mean_of(draws, "best_of_n") > 1.0
    # And true effects are found.
    cells = [[float(cell % 50)] * 3 for cell in range(200)]
    draws = [replayed(plan, cells, numbers) for _ in range(400)]
    assert mean_of(draws, "halving") > 10


def rows_of(num_cells: int, num_seeds: int) -> list[dict[str, Any]]:
    numbers = random.Random(0)
    rows = []
    for cell in range(num_cells):
        effect = numbers.gauss(0, 3)
        rows += [
            {
                "origin": "random",
                "digest": str(cell),
                "seed": seed,
                "calibrated_loss": effect + numbers.gauss(0, 1),
            }
            for seed in range(num_seeds)
        ]
    return rows


def test_a_reliability_is_the_yardsticks_once_it_has_enough_cells_of_two_seeds() -> None:
    found = {
        count: known_reliability([[0.0, 1.0], *[[float(c), c + 0.1] for c in range(count - 1)]])
        for count in (ENOUGH - 1, ENOUGH)
    }
    assert found[ENOUGH - 1][1] == "ranking.json"
    assert 0.2 < found[ENOUGH - 1][0] < 0.8
    assert found[ENOUGH][1] == "yardstick.jsonl"
    assert found[ENOUGH][0] > 0.9


def test_trainings_are_replayed_where_there_are_seeds_for_it() -> None:
    one = report(rows_of(40, 1), repeats=20, likeness=0.94)
    assert "simulation" in one["what"]
    assert [row["budget"] for row in one["rows"]] == [6, 12, 24, 48]
    assert not any("replayed" in row for row in one["rows"])
    three = report(rows_of(40, 3), repeats=20, likeness=0.94)
    assert ["replayed" in row for row in three["rows"]] == [True, True, False, False]
    assert three["rows"][1]["replayed"]["cells"] == 40

"""The comparison of all methods: none left out, and arithmetic where the answer is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparison
from benchmarks.comparison import EPOCH_STEPS, PLANS, SEARCHED_BEFORE, searched
from benchmarks.yardstick import random_genotype
from d2nas.config.registry import search_methods


def test_every_method_is_compared_with_logits_that_can_move_equally_far() -> None:
    assert {*PLANS, *SEARCHED_BEFORE.values(), "random"} == {*search_methods.names()}
    for method, plan in PLANS.items():
        search = plan.config(method, 1, "data").search
        steps = EPOCH_STEPS * (search.epochs - search.warmup_epochs)
        assert search.epochs == plan.epochs
        if method not in ("snas", "zarts"):
            assert search.arch_lr * steps == pytest.approx(comparison.DISTANCE)


def test_a_methods_cells_are_those_of_the_earlier_study_or_of_the_comparison(
    tmp_path: Path,
) -> None:
    before = searched(tmp_path / "none.jsonl")
    numbers = {name: sum(row["method"] == name for row in before) for name in PLANS}
    assert not any(numbers.values())
    assert sum(row["method"] == "d2nas" for row in before) == 8
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"method": "snas", "seed": 2}) + "\n")
    assert len(searched(path)) == len(before) + 1


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [random_genotype(seed) for seed in range(8)]

    def rows() -> list[dict[str, Any]]:
        losses = [[0.9, 1.0], [1.0, 1.1], [0.8, 0.8], [0.6, 0.8], [1.0, 1.0], [1.1, 1.1]]
        return [
            {
                "digest": cells[index].digest,
                "origin": "random" if index < 2 else "found",
                "seed": seed,
                "calibrated_loss": loss,
            }
            for index, of in enumerate(losses)
            for seed, loss in enumerate(of)
        ]

    def found() -> list[dict[str, Any]]:
        methods = ["d2nas", "d2nas", "snas", "snas", "rsws"]
        return [
            {"method": method, "seed": seed, "genotype": cells[seed + 2].to_dict()}
            for seed, method in enumerate(methods)
        ]

    monkeypatch.setattr(comparison, "read_rows", rows)
    monkeypatch.setattr(comparison, "searched", found)


@pytest.mark.usefixtures("made_up")
def test_a_cell_counts_by_the_mean_of_its_trainings() -> None:
    report = comparison.report()
    assert report["random"] == {"n": 4, "mean": 1.0, "sd": 0.0816}
    assert report["d2nas"]["sd_above_random"] == [2.45, 3.67]
    assert report["snas"]["mean"] == -0.61
    # Variances of 0.75 each, of two cells.
    assert report["snas"]["difference"] == [3.67, 0.87]
    assert [*report] == ["random", "d2nas", "snas"]  # the last cell is not trained yet


@pytest.mark.usefixtures("made_up")
def test_each_found_cell_is_trained_from_two_seeds() -> None:
    waiting = [(cell.name, seed) for cell, seed in comparison.trainings()]
    assert waiting == [("comparison/rsws/4", 0), ("comparison/rsws/4", 1)]

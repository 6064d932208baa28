"""Studies: what the numbers of their rows say together."""

from typing import Any

import pytest

from pipeline.study.grid import Copied
from pipeline.study.report import (
    COLUMNS,
    copied_rows,
    correlation_line,
    networks,
    percentile,
    rank_correlations,
    settings_lines,
    summarise,
    table_rows,
)

SHAPE = {
    "num_cells": 4,
    "init_channels": 8,
    "epochs": 3,
    "warmup_epochs": 0,
    "batch_size": 64,
    "estimator": "score",
    "draws": 2,
    "weight_optimizer": "sgd",
    "weight_lr": 0.05,
    "arch_lr": 3e-4,
    "lr": 0.1,
}


def row(method: str, accuracy: float | None, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A made row: what a report looks at."""
    made = {
        "variant": "base",
        "method": method,
        "space": "S0",
        "data": "digits",
        "seed": seed,
        "accuracy": accuracy,
        "calibrated_loss": None if accuracy is None else 1 - accuracy,
        "genotype_digest": f"{method}-{seed}",
        "params": 1000 + seed,
        "macs": 50_000,
        "parameterless_normal": seed,
        "passes": 20,
        "search_seconds": 1.5,
        "device": "cpu",
        "evaluation": "held-out",
        "images": 5000,
        "settings": {"search": SHAPE, "retrain": SHAPE, "train_images": 10_000, "trainings": 1},
        "setting": "a",
        "error": None if accuracy is not None else "broken",
    }
    return made | values


def test_means_spreads_and_percentiles_by_hand():
    rows = [
        row("d2nas", 0.5, 0),
        row("random", 0.25, 0),
        row("d2nas", 0.75, 1),
        row("random", 0.625, 1),
        row("d2nas", None, 2, params=None),
        row("random", 0.75, 2),
        row("random", 0.5, 3),
    ]
    d2nas, random = summarise(rows)
    assert (d2nas["method"], d2nas["n"], d2nas["failed"]) == ("d2nas", 2, 1)
    assert d2nas["error"] == 37.5
    assert d2nas["error_sd"] == pytest.approx(312.5**0.5)  # 12.5 off each, one degree
    assert d2nas["parameterless_normal"] == 0.5
    assert d2nas["params"] == 1000.5
    assert d2nas["search_seconds"] == 1.5
    # The mean 0.625 is above two of four and ties with one.
    assert d2nas["percentile"] == 62.5
    # The made losses are what is left to 1: as good, the other way round.
    assert (d2nas["loss"], d2nas["loss_percentile"]) == (0.375, 62.5)
    assert d2nas["loss_sd"] == pytest.approx(312.5**0.5 / 100)
    assert d2nas["num_random"] == 4
    assert (random["n"], random["failed"], random["percentile"]) == (4, 0, None)
    assert random["error"] == 46.875


def cells_of(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table's lines by column."""
    return [dict(zip(COLUMNS, cells, strict=True)) for cells in table_rows(summarise(rows))]


def test_size_and_parameterless_operations_have_a_spread_and_the_best_network_a_line():
    rows = [row("d2nas", 0.5, 0), row("d2nas", 0.75, 1, params=3001), row("random", 0.9, 2)]
    mean, best, random = cells_of(rows)
    assert mean["params"] == "2,000 +- 1,415"  # 1000 and 3001: 2001 / sqrt(2)
    assert (mean["MACs"], mean["num"]) == ("50,000 +- 0", "0.5 +- 0.7")
    assert best["method"] == "d2nas, best of 2"
    assert [best[name] for name in ("error %", "num", "params", "n")] == [
        "25.00",
        "1",
        "3,001",
        "1",
    ]
    assert random["method"] == "random"
    # Neither one network nor random ones nor trainings of a given cell have a best of a search.
    given = [row("given", 0.5, seed, genotype_name="A") for seed in (0, 1)]
    chosen_from = [row("gdas", 0.5), *given, row("random", 0.5), row("random", 0.6, 1)]
    assert [cells["method"] for cells in cells_of(chosen_from)] == ["gdas", "given A", "random"]


def test_days_are_of_gpus_alone():
    times = {"search_seconds": 43_200.0}
    one, other, mixed, drawn = (
        cells_of(rows)[0]["GPU-days"]
        for rows in (
            [row("d2nas", 0.9, device="cuda", **times)],
            [row("d2nas", 0.9, device="cpu", **times)],
            [row("d2nas", 0.9, seed, device=name, **times) for seed, name in enumerate(GPU_CPU)],
            [row("random", 0.9, device="cuda", passes=0, **times)],
        )
    )
    assert (one, other, mixed, drawn) == ("0.50", "", "", "")


GPU_CPU = ("cuda", "cpu")


def test_a_percentile_among_few_random_cells_is_not_shown():
    rows = [row("d2nas", 0.9), *(row("random", seed / 20, seed) for seed in range(9))]
    assert cells_of(rows)[0]["percentile"] == "too few (9 random)"
    assert summarise(rows)[0]["percentile"] == 100.0
    rows.append(row("random", 0.95, 9))
    assert cells_of(rows)[0]["percentile"] == "90 (by loss 90) of 10 random"


def test_recipes_and_stand_ins_are_rows_of_their_own():
    rows = [row("d2nas", 0.9, recipe=recipe) for recipe in ("paper", "recommended")]
    assert [cells["method"] for cells in cells_of(rows)] == [
        "d2nas, as written",
        "d2nas, recommended",
    ]
    rows = [row("d2nas", 0.9, stands_for=data) for data in ("cifar10", "svhn")]
    rows += [row("random", 0.8, stands_for="svhn")]
    assert [cells["data"] for cells in cells_of(rows)] == [
        "digits for cifar10",
        *["digits for svhn"] * 2,
    ]
    assert [line["num_random"] for line in summarise(rows)] == [0, 1, 1]


def test_copied_figures_are_shown_as_they_were_printed():
    row_ = Copied(method="X", error="2.6 +- 0.1", params="3.3 M", source="a paper")
    other = row_.model_copy(update={"data": "svhn"})
    assert [cells[0] for cells in copied_rows([row_, other], "cifar10")] == ["cifar10", "svhn"]
    assert copied_rows([row_], "cifar10")[0][2:] == (
        *("X", "2.6 +- 0.1", "", "3.3 M", "", "", "a paper"),
    )


def test_random_cells_count_only_where_data_space_and_setting_are_the_same():
    rows = [
        row("d2nas", 0.9),
        row("random", 0.8, variant="other"),
        row("random", 0.7, variant="long", setting="b"),
        row("random", 0.7, space="S1"),
        row("random", 0.7, data="cifar10"),
        row("random", None),
    ]
    line = summarise(rows)[0]
    assert (line["method"], line["percentile"], line["num_random"]) == ("d2nas", 100.0, 1)


def test_a_random_cell_that_two_variants_trained_counts_once():
    rows = [row("d2nas", 0.5)]
    rows += [row("random", 0.25 + seed / 4, seed) for seed in range(2)]
    rows += [row("random", 0.75, seed, variant="other") for seed in range(2)]
    assert summarise(rows)[0]["num_random"] == 2


def test_a_network_counts_once_with_the_mean_of_its_trainings():
    rows = [row("d2nas", 0.5, training=0), row("d2nas", 0.75, training=1)]
    rows += [row("random", 0.25 + 0.5 * training, 0, training=training) for training in (0, 1)]
    rows += [row("random", 0.75, 1, training=training) for training in (0, 1)]
    d2nas, random = summarise(rows)
    assert (d2nas["n"], d2nas["error"], d2nas["error_sd"]) == (1, 37.5, None)
    assert d2nas["training_sd"] == pytest.approx(12.5 * 2**0.5)
    # Random networks: means 0.5 and 0.75; 0.625 lies between them.
    assert (d2nas["percentile"], d2nas["num_random"], random["n"]) == (50.0, 2, 2)
    # 0.25 and 0.75 of the first (variance 0.125), nothing between the second's: pooled 0.0625.
    assert random["training_sd"] == pytest.approx(25.0)
    assert random["error_sd"] == pytest.approx(12.5 * 2**0.5)


def test_a_network_with_a_failed_training_is_a_failed_network():
    rows = [row("d2nas", 0.5, training=0), row("d2nas", None, training=1)]
    (line,) = summarise(rows)
    assert (line["n"], line["failed"], line["error"], line["training_sd"]) == (0, 1, None, None)
    (found,) = networks(rows)
    assert (found["accuracy"], found["error"], found["accuracies"]) == (None, "broken", [0.5])


def test_one_value_has_no_spread_and_none_has_no_mean():
    (one,) = summarise([row("d2nas", 0.9)])
    assert one["error"] == pytest.approx(10)
    assert (one["error_sd"], one["percentile"]) == (None, None)
    (none,) = summarise([row("d2nas", None)])
    assert (none["n"], none["failed"], none["error"], none["params"]) == (0, 1, None, None)
    assert table_rows([none])[0][6] == ""


def test_an_unknown_search_time_is_not_averaged_away():
    (line,) = summarise([row("d2nas", 0.9), row("d2nas", 0.9, 1, search_seconds=None)])
    assert line["search_seconds"] is None


def test_all_methods_of_a_space_stand_together():
    rows = [
        row("d2nas", 0.9),
        row("d2nas", 0.9, space="S1"),
        row("random", 0.9),
        row("random", 0.9, space="S1"),
    ]
    order = [(line["space"], line["method"]) for line in summarise(rows)]
    assert order == [("S0", "d2nas"), ("S0", "random"), ("S1", "d2nas"), ("S1", "random")]


def test_percentiles_by_hand():
    assert percentile(0.5, [0.1, 0.5, 0.5, 0.9]) == 50.0
    assert percentile(0.05, [0.1, 0.5]) == 0.0
    assert percentile(0.95, [0.1, 0.5]) == 100.0
    assert percentile(0.5, []) is None


def both(ones: list[float], others: list[float], **values: Any) -> list[dict[str, Any]]:
    rows = [row("random", value, seed) for seed, value in enumerate(ones)]
    return rows + [
        row("random", value, seed, variant="long") | values for seed, value in enumerate(others)
    ]


ONES = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([1, 2, 3, 4, 90], 1.0),
        ([5, 4, 3, 2, 1], -1.0),
        ([2, 1, 3, 4, 5], 0.9),  # 1 - 6 * (1 + 1) / (5 * 24)
        ([2, 4, 1, 5, 3], 0.3),  # 1 - 6 * (1 + 4 + 4 + 1 + 4) / (5 * 24)
        ([7, 7, 7, 7, 7], None),
    ],
)
def test_rank_correlation_by_hand(others, expected):
    found, _ = rank_correlations(both(ONES, [value / 100 for value in others]))
    assert (found["variants"], found["data"], found["n"]) == (("base", "long"), "digits", 5)
    if expected is None:
        assert found["spearman"] is None
        assert "undefined" in correlation_line(found)
    else:
        assert found["spearman"] == pytest.approx(expected)
        assert f"{expected:.2f} over 5 genotypes" in correlation_line(found)


def test_rank_correlation_needs_five_equal_genotypes_of_equal_cells():
    assert rank_correlations(both(ONES[:4], ONES[:4])) == []
    assert rank_correlations(both(ONES, ONES, genotype_digest="another")) == []
    assert rank_correlations(both(ONES, ONES, space="S1")) == []
    assert rank_correlations(both(ONES, ONES, method="d2nas")) == []
    assert rank_correlations(both(ONES, ONES, data="cifar10")) == []
    failed = both(ONES, ONES)
    failed[7] |= {"accuracy": None, "calibrated_loss": None, "error": "broken"}
    assert rank_correlations(failed) == []


def test_rank_correlation_is_of_the_means_of_the_trainings():
    pairs = both(ONES, ONES)
    # Second trainings that turn the order of the first ones round, and further.
    again = [{**r, "training": 1, "accuracy": 1 - 2 * r["accuracy"]} for r in pairs[:5]]
    found, _ = rank_correlations([*pairs, *again])
    assert (found["n"], found["spearman"]) == (5, pytest.approx(-1.0))


def test_each_measure_ranks_for_itself():
    rows = both(ONES, ONES)
    for row_, loss in zip(rows[5:], (0.5, 0.1, 0.4, 0.2, 0.3), strict=True):
        row_["calibrated_loss"] = loss
    by_accuracy, by_loss = rank_correlations(rows)
    assert (by_accuracy["measure"], by_loss["measure"]) == ("accuracy", "calibrated_loss")
    assert by_accuracy["spearman"] == pytest.approx(1.0)
    assert by_loss["spearman"] != by_accuracy["spearman"]
    assert "by calibrated loss: " in correlation_line(by_loss)


def test_a_loss_that_some_network_lacks_is_not_averaged():
    rows = [row("d2nas", 0.5, 0), row("d2nas", 0.75, 1, calibrated_loss=None), row("random", 0.5)]
    line = summarise(rows)[0]
    assert (line["loss"], line["loss_sd"], line["loss_percentile"]) == (None, None, None)
    assert line["error"] == 37.5


def test_the_line_under_a_table_says_how_often_each_network_was_trained():
    rows = [row("random", 0.8)]
    assert "trainings" not in settings_lines(rows)[0]
    rows[0]["settings"] = {**rows[0]["settings"], "trainings": 3}
    assert "mean of 3 trainings each" in settings_lines(rows)[0]


def test_the_lines_under_a_table_name_what_was_trained_on_what_it_was_measured_and_each_search():
    other = {**SHAPE, "epochs": 9}
    rows = [row("d2nas", 0.9), row("random", 0.8), row("entangled", 0.9)]
    rows.append(row("gdas", 0.9))
    rows[-1]["settings"] = {**rows[-1]["settings"], "search": other}
    training, ours, rival = settings_lines(rows)
    for words in (
        "4 cells x 8 channels, 3 epochs, batch 64",
        "10,000 training images",
        "5,000 held-out images, not the test images",
    ):
        assert words in training
    assert ours.startswith("d2nas, entangled: searched 4 cells x 8 channels, 3 epochs")
    assert ours.endswith("sgd lr 0.05, arch lr 0.0003, score of 2 draws")
    assert rival.startswith("gdas: searched 4 cells x 8 channels, 9 epochs")
    assert rival.endswith("arch lr 0.0003")
    training, *_ = settings_lines([row("d2nas", 0.9, evaluation="test", images=10_000)])
    assert "10,000 test images" in training
    assert "held-out" not in training

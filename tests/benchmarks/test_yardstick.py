"""The yardstick of the reduced task: which cells it trains, in which order, and its arithmetic."""

import hashlib
import random
from collections import Counter
from typing import Any

import pytest

from benchmarks.yardstick import (
    SEEDS,
    cells_of,
    cross_validated,
    first_cells,
    random_genotype,
    reliability,
    todo,
)
from d2nas.genotype import Genotype, neighbour
from d2nas.spaces import SPACES


def row(genotype: Genotype, seed: int, loss: float = 0.5) -> dict[str, Any]:
    return {"digest": genotype.digest, "seed": seed, "calibrated_loss": loss}


def test_all_are_trained_once_before_neighbours_follow_and_then_the_next_seed() -> None:
    first = first_cells()
    assert Counter(cell.origin for cell in first) == {"random": 116, "found": 40, "published": 6}
    rows = [row(cell.genotype, SEEDS[0], index) for index, cell in enumerate(first)]
    assert {seed for _, seed in todo(rows[:-1])} == {SEEDS[0]}
    assert [cell for cell, _ in todo(rows[:-1])] == first[-1:]
    cells = cells_of(rows)
    assert len({cell.genotype for cell in cells}) == len(cells) == 202
    neighbours = [cell for cell, seed in todo(rows) if seed == SEEDS[0]]
    assert {cell.origin for cell in neighbours} == {"neighbour"}
    assert {cell.name.rpartition("/")[0] for cell in neighbours} == {c.name for c in first[:10]}
    rows += [row(cell.genotype, SEEDS[0], 1000) for cell in neighbours]
    assert [*todo(rows)] == [(cell, SEEDS[1]) for cell in cells]


def test_neighbours_are_those_that_were_trained() -> None:
    genotype = random_genotype(0)
    numbers = random.Random(genotype.digest)
    made = [neighbour(genotype, SPACES["S0"], numbers).digest for _ in range(50)]
    assert made[0].startswith("0e3ce3e52ce0")
    assert hashlib.sha256("".join(made).encode()).hexdigest().startswith("ba9c7f30a7de7e80")


def test_reliability_is_the_part_of_variance_between_cells() -> None:
    # Two seeds 0.2 apart: variance 0.02 within. Means 1, 2, 3: variance 1, of which 0.01 is noise.
    single, of_two = reliability([[0.9, 1.1], [1.9, 2.1], [2.9, 3.1], [7.0]])
    assert single == pytest.approx(0.99 / 1.01)
    assert of_two == pytest.approx(2 * single / (1 + single))
    assert reliability([[0.0, 1.0], [1.0, 0.0]]) == (0.0, 0.0)


def test_a_cell_is_predicted_by_others_alone() -> None:
    genotypes = [random_genotype(seed) for seed in range(60)]
    losses = [float(sum("conv" in name for name, _ in g.normal)) for g in genotypes]
    found = cross_validated(genotypes, losses, ridge=1.0)
    errors = [abs(one - other) for one, other in zip(found, losses, strict=True)]
    assert max(errors) < 0.5
    # Control: noise is not learned from a fold's own cells.
    noise = [random.Random(seed).random() for seed in range(60)]
    found = cross_validated(genotypes, noise, ridge=1.0)
    assert sum((a - b) ** 2 for a, b in zip(found, noise, strict=True)) > 60 / 12

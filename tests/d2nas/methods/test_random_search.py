"""Random search: every operation and every pair of edges with an equal chance."""

import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from d2nas import SPACES
from d2nas.methods.random_search import RandomSearch
from d2nas.nn import sampling
from d2nas.nn.sampling import choosable
from d2nas.randomness import generator
from d2nas.spaces import CELL_TYPES, node_edges

NUM_DRAWS = 2000


def z_scores(counts: Counter[Any], outcomes: list[Any]) -> list[float]:
    """How far each count is from an equal share, in standard deviations."""
    total, p = sum(counts.values()), 1 / len(outcomes)
    assert set(counts) <= set(outcomes)
    return [(counts[key] - total * p) / (total * p * (1 - p)) ** 0.5 for key in outcomes]


@pytest.fixture
def quick_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute a space's masks once, and not for each of thousands of searches."""
    monkeypatch.setattr("d2nas.nn.sampling.choosable", functools.cache(choosable))


def worst_z(space: str, num_draws: int = NUM_DRAWS) -> float:
    """The largest |z| of any operation on any edge, and of any pair of edges of any node."""
    operations: dict[tuple[str, int], Counter[str]] = {}
    pairs: dict[tuple[str, int], Counter[tuple[int, ...]]] = {}
    for seed in range(num_draws):
        genotype = RandomSearch(SPACES[space], generator(seed, "architecture-logits")).derive()
        for cell, node in itertools.product(CELL_TYPES, range(4)):
            chosen = genotype.cell(cell)[2 * node : 2 * node + 2]
            pairs.setdefault((cell, node), Counter())[tuple(s for _, s in chosen)] += 1
            for operation, source in chosen:
                row = node_edges(14)[node].start + source
                operations.setdefault((cell, row), Counter())[operation] += 1
    scores = []
    for (cell, row), counts in operations.items():
        allowed = [op for op in SPACES[space].candidates(cell)[row] if op != "none"]
        scores += z_scores(counts, allowed)
    for (_, node), counted in pairs.items():
        if node:  # node 2 has one pair
            scores += z_scores(counted, [*itertools.combinations(range(node + 2), 2)])
    return max(abs(score) for score in scores)


@pytest.mark.usefixtures("quick_masks")
@pytest.mark.parametrize("space", SPACES)
def test_random_search_is_uniform(space: str) -> None:
    assert worst_z(space) < 4.5


@pytest.mark.usefixtures("quick_masks")
@pytest.mark.parametrize("part", ["ops", "edges"])
def test_control_a_slight_preference_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampling.draw_noise

    def slanted(num_columns: int, numbers: torch.Generator) -> Any:
        noise = real(num_columns, numbers)
        getattr(noise, part)[..., -1] += 0.6
        return noise

    monkeypatch.setattr(sampling, "draw_noise", slanted)
    assert worst_z("S2", 1000) > 6

"""The most probable cell within a budget: exact, against all cells of small spaces."""

import itertools
import random

import pytest
import torch
from cell_costs import POOLS, SMALL, cells_of, costs_of
from searches import spread_logits

from d2nas.config.registry import search_methods
from d2nas.costs import CellCosts
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype, places_of, uniform
from d2nas.methods import within_budget
from d2nas.methods.derivation import derive_genotype, draw_of
from d2nas.methods.within_budget import all_within, best_within, cheapest
from d2nas.nn.probability import log_probability
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, SPACES

D2NAS = search_methods.find("d2nas")


def test_it_is_the_best_of_all_cells() -> None:
    for seed in range(2):
        logits, costs = spread_logits(SMALL, seed), costs_of(SMALL, seed)
        plain = uniform(SMALL, random.Random(0))
        base = log_probability(logits, draw_of(plain, SMALL))
        known = {}
        for cell, other in itertools.permutations(CELL_TYPES):
            known[cell] = [
                (
                    costs.of(genotype) - costs.of(plain),
                    log_probability(logits, draw_of(genotype, SMALL)) - base,
                )
                for pairs in cells_of(SMALL, cell)
                for genotype in [Genotype(**{cell: pairs, other: plain.cell(other)})]
            ]
        all_costs = sorted(
            costs.of(plain) + one[0] + two[0]
            for one, two in itertools.product(known["normal"], known["reduce"])
        )
        full = costs.of(derive_genotype(logits, SMALL))
        for limit in (
            all_costs[0],
            all_costs[40],
            *(all_costs[0] + part * (full - all_costs[0]) for part in (0.3, 0.6, 0.95)),
        ):
            best = max(
                base + one[1] + two[1]
                for one, two in itertools.product(known["normal"], known["reduce"])
                if costs.of(plain) + one[0] + two[0] <= limit + 1e-9
            )
            found = best_within(D2NAS, logits, costs, limit + 1e-9)
            assert costs.of(found) <= limit + 1e-9
            assert log_probability(logits, draw_of(found, SMALL)) == pytest.approx(best)
        assert costs.of(cheapest(costs)) == pytest.approx(all_costs[0])
        with pytest.raises(ConfigError, match="the cheapest of the space takes"):
            best_within(D2NAS, logits, costs, all_costs[0] - 1e-6)


def test_the_most_probable_cell_is_kept_where_it_fits() -> None:
    for seed in range(2):
        logits, costs = spread_logits(SPACES["S0"], seed), costs_of(SPACES["S0"], seed)
        derived = derive_genotype(logits, logits.space)
        assert best_within(D2NAS, logits, costs, costs.of(derived)) == derived
        other = best_within(D2NAS, logits, costs, 0.999999 * costs.of(derived))
        assert other != derived


@pytest.mark.parametrize("space", ["S0", "S2"])
def test_many_limits_at_once_are_each_as_alone(space: str) -> None:
    logits, costs = spread_logits(SPACES[space], 3), costs_of(SPACES[space], 3)
    full, least = costs.of(derive_genotype(logits, logits.space)), costs.of(cheapest(costs))
    limits = [least + part * (full - least) + 1e-9 for part in (0.0, 0.9, 0.3, 1.0, 2.0, 0.6)]
    found = all_within(D2NAS, logits, costs, limits)
    assert found == [best_within(D2NAS, logits, costs, limit) for limit in limits]
    assert len({*found}) == 5  # two of the limits are none
    with pytest.raises(ConfigError, match="the cheapest of the space takes"):
        all_within(D2NAS, logits, costs, [full, 0.9 * least])


def test_poolings_of_one_state_cost_once() -> None:
    """All edges pool for nothing but the first one's price; control: alone each of them is dear."""
    space = SPACES["S0"]
    price = {"max_pool_3x3": 1.0}
    operations = {
        cell: [[price.get(name, 5.0) for name in names] for names in space.candidates(cell)]
        for cell in CELL_TYPES
    }
    merged = CellCosts(space, 0.0, operations, POOLS)
    alone = CellCosts(space, 0.0, operations)
    # Two states pooled in each cell, whose poolings all four nodes add.
    assert merged.of(cheapest(merged)) == 4.0
    assert alone.of(cheapest(alone)) == 16.0
    assert alone.of(cheapest(merged)) == 16.0


@pytest.mark.parametrize("space", ["S1", "S2", "S4"])
def test_other_spaces_and_ever_tighter_budgets(space: str) -> None:
    logits, costs = spread_logits(SPACES[space], 7), costs_of(SPACES[space], 7, ())
    full, least = costs.of(derive_genotype(logits, logits.space)), costs.of(cheapest(costs))
    last = float("inf")
    for part in (0.999, 0.8, 0.6, 0.4, 0.2, 0.0):
        limit = least + part * (full - least) + 1e-9
        found = best_within(D2NAS, logits, costs, limit)
        assert costs.of(found) <= limit
        value = log_probability(logits, draw_of(found, logits.space))
        assert value <= last + 1e-9
        last = value


def test_control_a_greedy_repair_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cheapest cell of all would give up is told apart from what the budget needs."""
    logits, costs = spread_logits(SMALL, 1), costs_of(SMALL, 1)
    full = costs.of(derive_genotype(logits, SMALL))
    limit = full - 0.2
    found = best_within(D2NAS, logits, costs, limit)
    greedy = cheapest(costs)
    assert costs.of(greedy) <= limit
    assert log_probability(logits, draw_of(found, SMALL)) > log_probability(
        logits, draw_of(greedy, SMALL)
    )
    # With fronts that keep the cheapest alone, the answer is that one.
    merged = within_budget._merged

    def first_alone(parts: object, room: float) -> object:
        front = merged(parts, room)  # type: ignore[arg-type]
        return within_budget._Front(front.costs[:1], front.scores[:1], front.options[:1])

    monkeypatch.setattr(within_budget, "_merged", first_alone)
    worse = best_within(D2NAS, logits, costs, limit)
    assert log_probability(logits, draw_of(worse, SMALL)) < log_probability(
        logits, draw_of(found, SMALL)
    )


@torch.no_grad()
def darts_score(genotype: Genotype, logits: ArchLogits) -> float:
    """Sum of the logarithms of the weights of its edges' operations, by hand."""
    total = 0.0
    for cell in CELL_TYPES:
        for edge, column in places_of(genotype, logits.space, cell):
            row = logits.ops(cell)[edge, : len(logits.space.candidates(cell)[edge])]
            total += float(row.double().log_softmax(0)[column] + logits.edges(cell)[edge])
    return total


@pytest.mark.parametrize("method", ["darts", "pc-darts-4"])
def test_by_the_rule_of_darts_it_is_the_best_of_all_cells_too(method: str) -> None:
    logits, costs = spread_logits(SMALL, 5), costs_of(SMALL, 5)
    kind = search_methods.find(method)
    assert kind.keeps_limits
    known = [
        (costs.of(genotype), darts_score(genotype, logits))
        for genotype in map(
            Genotype,
            *zip(*itertools.product(*(cells_of(SMALL, cell) for cell in CELL_TYPES)), strict=True),
        )
    ]
    full = costs.of(kind.derive_from(logits))
    assert darts_score(kind.derive_from(logits), logits) == pytest.approx(
        max(one[1] for one in known)
    )
    least = min(one[0] for one in known)
    for part in (0.2, 0.5, 0.9):
        limit = least + part * (full - least)
        found = best_within(kind, logits, costs, limit)
        assert costs.of(found) <= limit
        best = max(score for cost, score in known if cost <= limit)
        assert darts_score(found, logits) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_a_limit_of_what_the_cheapest_cell_costs_is_kept(seed: int) -> None:
    """However its cost is added up."""
    costs = costs_of(SMALL, seed)
    limit = costs.of(cheapest(costs))
    found = best_within(D2NAS, spread_logits(SMALL, seed), costs, limit)
    assert costs.of(found) == pytest.approx(limit)
    with pytest.raises(ConfigError, match="the cheapest of the space takes"):
        best_within(D2NAS, spread_logits(SMALL, seed), costs, 0.999999 * limit)

"""Expected cost of a distribution of cells, against all cells of a small space."""

import itertools
import random

import pytest
import torch
from cell_costs import POOLS, SMALL, cells_of, costs_of
from searches import spread_logits

from d2nas.costs import CellCosts
from d2nas.genotype import Genotype, uniform
from d2nas.methods.derivation import draw_of
from d2nas.nn.expected_cost import ExpectedCost
from d2nas.nn.probability import log_probability
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, SPACES


def enumerated(logits: ArchLogits, costs: CellCosts) -> float:
    """Sum of probability times cost over all cells of each type, beside one cell of the other."""
    plain = uniform(SMALL, random.Random(0))
    total = costs.of(plain)
    for cell, other in itertools.permutations(CELL_TYPES):
        weights, found = [], []
        for pairs in cells_of(SMALL, cell):
            genotype = Genotype(**{cell: pairs, other: plain.cell(other)})
            weights.append(log_probability(logits, draw_of(genotype, SMALL)))
            found.append(costs.of(genotype) - costs.of(plain))
        p = torch.tensor(weights, dtype=torch.float64).softmax(dim=0)
        total += float(p @ torch.tensor(found, dtype=torch.float64))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mean_over_all_cells(seed: int) -> None:
    logits, costs = spread_logits(SMALL, seed), costs_of(SMALL, seed)
    assert float(ExpectedCost(costs)(logits).detach()) == pytest.approx(
        enumerated(logits, costs), rel=1e-9
    )
    # The control: poolings that would cost on every edge are another sum.
    alone = CellCosts(SMALL, costs.base, costs.operations)
    assert float(ExpectedCost(alone)(logits).detach()) > 1.001 * enumerated(logits, costs)
    assert float(ExpectedCost(alone)(logits).detach()) == pytest.approx(enumerated(logits, alone))


def test_its_gradient_is_that_of_the_mean() -> None:
    logits, costs = spread_logits(SMALL, 1).double(), costs_of(SMALL, 1)
    torch.autograd.backward(ExpectedCost(costs)(logits))
    for parameter in logits.parameters():
        gradient = parameter.grad
        assert gradient is not None
        for index in range(0, parameter.numel(), 3):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[index] += step
                    ends.append(float(ExpectedCost(costs)(logits)))
                    parameter.view(-1)[index] -= step
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(gradient.view(-1)[index]) == pytest.approx(slope, abs=1e-7)


def test_none_is_in_no_network_and_costs_nothing() -> None:
    """With ``none`` among the candidates the others' probabilities add up to 1 without it."""
    plain, searched = SPACES["S0"], SPACES["S0"].with_none()
    bare = costs_of(plain, 3)
    logits = spread_logits(plain, 3)
    with_none = ArchLogits(searched)
    prices: dict[str, list[list[float]]] = {cell: [] for cell in CELL_TYPES}
    with torch.no_grad():
        for cell in CELL_TYPES:
            with_none.edges(cell).copy_(logits.edges(cell))
            for edge, names in enumerate(searched.candidates(cell)):
                own = plain.candidates(cell)[edge]
                row = bare.operations[cell][edge]
                prices[cell].append(
                    [0.0 if name == "none" else row[own.index(name)] for name in names]
                )
                for column, name in enumerate(names):
                    with_none.ops(cell)[edge, column] = (
                        9.0 if name == "none" else logits.ops(cell)[edge, own.index(name)]
                    )
    found = float(ExpectedCost(CellCosts(searched, bare.base, prices, POOLS))(with_none).detach())
    assert found == pytest.approx(float(ExpectedCost(bare)(logits).detach()), rel=1e-6)

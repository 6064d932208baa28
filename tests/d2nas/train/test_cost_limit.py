"""Limits on the expected cost of what is searched, and its weight."""

from dataclasses import replace

import pytest
import torch
from cell_costs import costs_of
from searches import (
    CHEAP,
    continued,
    finish,
    run_with_states,
    same_end,
    search_by,
    spread_logits,
)

from d2nas.costs import CellCosts
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from d2nas.methods.within_budget import cheapest
from d2nas.nn.expected_cost import ExpectedCost
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, SPACES
from d2nas.train.cost_limit import CostLimit
from d2nas.train.search import Search

S0 = SPACES["S0"]
COSTS = costs_of(S0, 1)
SMALL_COSTS = costs_of(CHEAP, 1)
SMALL_MACS = replace(SMALL_COSTS, quantity="macs")
WITHIN = ("search.warmup_epochs=0", "search.epochs=8", "search.arch_lr=0.05")
WEIGHT = "search.latency_weight=1"
TABLE = "run.latency_table=unread.json"


def expected(logits: ArchLogits, costs: CellCosts) -> float:
    with torch.no_grad():
        return float(ExpectedCost(costs)(logits))


def priced(logits: ArchLogits, costs: CellCosts, limit: float) -> tuple[float, float]:
    """The price, and the expected cost with it; the logits are afterwards what they were."""
    within = CostLimit(ExpectedCost(costs), limit, edges=True)
    kept = {name: value.clone() for name, value in logits.state_dict().items()}
    price = within.price(logits)
    with within.priced(logits, price):
        found = expected(logits, costs)
    assert all(torch.equal(value, kept[name]) for name, value in logits.state_dict().items())
    return price, found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_the_price_is_the_least_that_keeps_the_limit(seed: int, scale: float) -> None:
    logits = spread_logits(S0, seed, scale=scale)
    free, least = expected(logits, COSTS), COSTS.of(cheapest(COSTS))
    last = 0.0
    for share in (1.5, 1.0, 0.9, 0.6, 0.3, 0.1):
        limit = least + share * (free - least)
        price, found = priced(logits, COSTS, limit)
        if share >= 1.0:
            assert (price, found) == (0.0, free)
        else:
            assert found == pytest.approx(limit, rel=1e-4)
            assert price > last
            last = price
            # The control: a little less does not keep it.
            within = CostLimit(ExpectedCost(COSTS), limit, edges=True)
            with within.priced(logits, 0.99 * price):
                assert expected(logits, COSTS) > (1 + 1e-6) * limit


def test_what_costs_alike_keeps_its_order_and_what_is_dearer_loses() -> None:
    costs = CellCosts(S0, 1.0, COSTS.operations, ())
    for cell in CELL_TYPES:
        assert len({len(row) for row in costs.operations[cell]}) == 1
    logits = spread_logits(S0, 1)
    before = logits.normal_ops.detach().clone()
    within = CostLimit(ExpectedCost(costs), 0.8 * expected(logits, costs), edges=True)
    price = within.price(logits)
    with within.priced(logits, price):
        taken = before - logits.normal_ops.detach()
    dear = torch.tensor(costs.operations["normal"])
    torch.testing.assert_close(taken, (price * dear).float(), rtol=1e-3, atol=1e-5)


def test_it_is_the_nearest_distribution_of_that_cost() -> None:
    """Given the edges: of operations on one edge no other distribution of the same mean cost has a
    smaller divergence from the learned one.
    """
    logits = spread_logits(S0, 2)
    within = CostLimit(ExpectedCost(COSTS), 0.7 * expected(logits, COSTS), edges=True)
    learned = logits.normal_ops[0].detach().double().softmax(0)
    with within.priced(logits, within.price(logits)):
        found = logits.normal_ops[0].detach().double().softmax(0)
    cost = torch.tensor(COSTS.operations["normal"][0], dtype=torch.float64)
    numbers = torch.Generator().manual_seed(0)
    own = float((found * (found / learned).log()).sum())
    assert own > 0.01
    for _ in range(50):
        # Directions that change neither the sum nor the mean cost.
        step = torch.randn(len(cost), generator=numbers, dtype=torch.float64)
        basis, _ = torch.linalg.qr(torch.stack([torch.ones_like(cost), cost], dim=1))
        step -= basis @ (basis.T @ step)
        other = found + 0.3 * float(found.min()) * step / step.abs().max()
        assert float((other * (other / learned).log()).sum()) > own - 1e-9


def searched(method: str, *overrides: str, costs: CellCosts | None = None) -> Search:
    return search_by(method, *WITHIN, *overrides, space=CHEAP, costs=costs)


def costs_for(method: str, quantity: str = "latency_ms") -> CellCosts:
    """Costs of the space that a method searches."""
    space = searched(method).logits.space
    own = costs_of(space, 1)
    rows = {
        cell: [
            [0.0 if name == "none" else price for name, price in zip(names, row, strict=True)]
            for names, row in zip(space.candidates(cell), own.operations[cell], strict=True)
        ]
        for cell in CELL_TYPES
    }
    return CellCosts(space, own.base, rows, own.merged, quantity)


@pytest.mark.parametrize("method", ["d2nas", "entangled", "gdas", "darts", "pc-darts-4"])
def test_searches_end_within_the_limit(method: str) -> None:
    costs = costs_for(method)
    start = expected(searched(method).logits, costs)
    limit = 0.93 * start
    free, keys = finish(searched(method)), (f"search.max_latency_ms={limit}", TABLE)
    assert expected(free.logits, costs) > 1.02 * limit  # the control
    found = finish(searched(method, *keys, costs=costs))
    for row in found.metrics:
        assert row["expected_latency_ms"] == pytest.approx(limit, rel=1e-4)
        assert row["price"] > 0.0
        assert row["derived_latency_ms"] == costs.of(Genotype.from_dict(row["genotype"])) <= limit
    assert found.metrics[-1]["genotype"] == found.derive().to_dict()
    if not found.method.learns_edges:
        assert all(not found.logits.edges(cell).any() for cell in CELL_TYPES)


def test_a_limit_is_resumed_to_the_last_bit() -> None:
    costs = costs_for("d2nas", "macs")
    start = expected(searched("d2nas").logits, costs)

    def limited() -> Search:
        return searched("d2nas", f"search.max_macs={0.9 * start}", costs=costs)

    whole = limited()
    states = run_with_states(whole)
    prices = [row["price"] for row in whole.metrics]
    assert len({*prices}) == len(prices)
    for step in (3, 9):
        assert same_end(whole, continued(limited(), states[step]))
    # Same draws, but not within a limit: the control.
    assert not same_end(whole, finish(searched("d2nas")))


def test_the_worth_that_is_learned_is_not_mixed_with_the_price() -> None:
    """The same gradients move the logits equally far, whatever the limit."""
    costs = costs_for("d2nas", "macs")
    start = expected(searched("d2nas").logits, costs)
    for keys, given in (((), None), ((f"search.max_macs={0.9 * start}",), costs)):
        search = searched("d2nas", "search.arch_weight_decay=0.0", *keys, costs=given)
        before = search.logits.normal_ops.detach().clone()
        search.arch_optimizer.zero_grad()
        for parameter in search.logits.parameters():
            parameter.grad = torch.ones_like(parameter)
        search.move_logits()
        step = search.logits.normal_ops.detach() - before
        torch.testing.assert_close(step, torch.full_like(step, -0.05))


@pytest.mark.parametrize("method", ["d2nas", "darts"])
def test_a_weight_makes_what_is_found_cheaper(method: str) -> None:
    costs = costs_for(method)
    ends = [
        expected(finish(searched(method, *keys, costs=given)).logits, costs)
        for keys, given in (
            ((), None),
            (("search.latency_weight=0.05", TABLE), costs),
            (("search.latency_weight=5.0", TABLE), costs),
        )
    ]
    assert ends[0] > ends[1] > ends[2]


@pytest.mark.parametrize(
    ("said", "method", "keys", "costs"),
    [
        ("needs run.latency_table", "d2nas", ("search.max_latency_ms=3",), SMALL_COSTS),
        ("only one limit", "d2nas", ("search.max_macs=3", "search.max_params=3"), SMALL_COSTS),
        (
            "give one of them",
            "d2nas",
            ("search.max_macs=3", "search.latency_weight=1", TABLE),
            COSTS,
        ),
        ("search.max_macs is not supported for snas", "snas", ("search.max_macs=3",), SMALL_COSTS),
        ("needs the macs of cells", "d2nas", ("search.max_macs=3",), None),
        ("needs the macs of cells", "d2nas", ("search.max_macs=3",), SMALL_COSTS),
        (
            "no cell keeps search.max_latency_ms=1",
            "d2nas",
            ("search.max_latency_ms=1", TABLE),
            SMALL_COSTS,
        ),
        ("are none of", "darts", ("search.max_latency_ms=3", TABLE), SMALL_COSTS),
    ],
)
def test_contradictions_are_told(
    said: str, method: str, keys: tuple[str, ...], costs: CellCosts | None
) -> None:
    with pytest.raises(ConfigError, match=said):
        searched(method, *keys, costs=costs)

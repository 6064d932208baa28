"""Limits on the expected cost of what is searched, and its weight."""

import math

import pytest
import torch
from cell_costs import costs_of
from searches import CHEAP, continued, final_state, finish, run_with_states, same_end, search_by

from d2nas.costs import CellCosts
from d2nas.errors import ConfigError
from d2nas.nn.expected_cost import ExpectedCost
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, SPACES
from d2nas.train.cost_limit import CostLimit
from d2nas.train.search import Search

S0 = SPACES["S0"]
COSTS = costs_of(S0, 1)
SMALL_COSTS = costs_of(CHEAP, 1)
WITHIN = ("search.warmup_epochs=0", "search.epochs=8", "search.arch_lr=0.05")
WEIGHT = "search.latency_weight=1"
TABLE = "run.latency_table=unread.json"


def expected(logits: ArchLogits, costs: CellCosts) -> float:
    with torch.no_grad():
        return float(ExpectedCost(costs)(logits))


def uniform_logits() -> ArchLogits:
    return ArchLogits(S0, generator=torch.Generator().manual_seed(0))


START = expected(uniform_logits(), COSTS)


def moved(*, limit: float | None, noise: float, pull: float, steps: int = 400) -> list[float]:
    """Expected costs after each update by noise and by a pull towards what costs more."""
    logits, numbers = uniform_logits(), torch.Generator().manual_seed(0)
    learned = list(logits.parameters())
    optimizer = torch.optim.Adam(learned, lr=0.01, betas=(0.5, 0.999))
    within = (
        None if limit is None else CostLimit(ExpectedCost(COSTS), limit, steps=steps, largest=0.01)
    )
    found = []
    for _ in range(steps):
        gradients = torch.autograd.grad(ExpectedCost(COSTS)(logits).log(), learned)
        for parameter, gradient in zip(learned, gradients, strict=True):
            draw = torch.randn(parameter.shape, generator=numbers)
            parameter.grad = noise * draw - pull * gradient
        before = None if within is None else within.logarithm(logits)
        optimizer.step()
        if within is not None and before is not None:
            within.correct(logits, learned, before)
        found.append(expected(logits, COSTS))
    return found


@pytest.mark.parametrize(("noise", "pull"), [(0.0, 1.0), (0.02, 1.0), (0.3, 3.0)])
@pytest.mark.parametrize("share", [0.85, 1.03])
def test_the_expected_cost_comes_to_the_limit_and_stays(
    noise: float, pull: float, share: float
) -> None:
    limit = share * START
    free = moved(limit=None, noise=noise, pull=pull)
    held = moved(limit=limit, noise=noise, pull=pull)
    assert free[-1] > 1.02 * limit  # the control: without the limit it rises
    assert held[-1] == pytest.approx(limit, rel=0.005)
    assert max(held) < 1.02 * max(limit, START)
    if share < 1.0 and noise:  # what is too much is e times smaller after each tenth
        excess = [math.log(cost / limit) for cost in (held[20], held[60], held[100])]
        assert excess[1] / excess[0] == pytest.approx(1 / math.e, rel=0.3)
        assert excess[2] / excess[1] == pytest.approx(1 / math.e, rel=0.3)


def test_below_the_limit_updates_are_left_alone() -> None:
    changes = {"noise": 0.02, "pull": 0.3, "steps": 50}
    assert moved(limit=10.0 * START, **changes) == moved(limit=None, **changes)


def test_noise_alone_does_not_push_the_cost_away_from_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What goes up and down is left alone on average. The control: an update at a time, the limit
    stops all that go up, and the cost falls far below it.
    """
    held = moved(limit=START, noise=1.0, pull=0.0, steps=1000)
    monkeypatch.setattr("d2nas.train.cost_limit.WINDOWS", 1e9)
    stopped = moved(limit=START, noise=1.0, pull=0.0, steps=1000)
    assert START - held[-1] < 0.3 * (START - stopped[-1])


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
    assert expected(found.logits, costs) < 1.01 * limit
    told = [row["expected_latency_ms"] for row in found.metrics]
    assert told[0] > told[-1] == pytest.approx(expected(found.logits, costs))
    assert found.metrics[-1]["derived_latency_ms"] == costs.of(found.method.derive())
    if not found.method.learns_edges:
        assert all(not found.logits.edges(cell).any() for cell in CELL_TYPES)


def test_a_limit_is_resumed_to_the_last_bit() -> None:
    costs = costs_for("d2nas", "macs")
    start = expected(searched("d2nas").logits, costs)

    def limited() -> Search:
        return searched("d2nas", f"search.max_macs={0.9 * start}", costs=costs)

    whole = limited()
    states = run_with_states(whole)
    assert "cost_limit.drift" in final_state(whole)
    assert float(final_state(whole)["cost_limit.drift"]) != 0.0
    for step in (3, 9):
        assert same_end(whole, continued(limited(), states[step]))


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
        ("are none of", "darts", ("search.max_latency_ms=3", TABLE), SMALL_COSTS),
    ],
)
def test_contradictions_are_told(
    said: str, method: str, keys: tuple[str, ...], costs: CellCosts | None
) -> None:
    with pytest.raises(ConfigError, match=said):
        searched(method, *keys, costs=costs)

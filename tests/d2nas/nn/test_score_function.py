"""The score function: against gradients from all sub-networks of a small space, enumerated."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from searches import spread_logits
from torch import Tensor

from d2nas.nn import score_function
from d2nas.nn.probability import log_probabilities, node_pairs, pair_log_probabilities
from d2nas.nn.sampling import ArchLogits, CellDraw, Draw, sample
from d2nas.nn.score_function import (
    _Systematic,
    add_gradients,
    advantages,
    groups,
    sample_evenly,
    with_even_operations,
)
from d2nas.spaces import SearchSpace

NAMES = ("skip_connect", "max_pool_3x3", "avg_pool_3x3")
# Three, two and one candidates: 180 pairs of edges, up to 3 * 3 * 2 choices on them.
EDGES = (NAMES,) + (NAMES[:1],) * 3 + (NAMES[:2],) + (NAMES[:1],) * 6 + (NAMES,) + (NAMES[:1],) * 2
SPACE = SearchSpace("tiny", EDGES, EDGES)
DRAWS, REPEATS = 4, 1000


def all_cells() -> list[CellDraw]:
    """Every cell of the space."""
    cells = []
    for pairs in itertools.product(*node_pairs(14)):
        edges = tuple(itertools.chain(*pairs))
        columns = (range(len(EDGES[edge])) for edge in edges)
        cells += [CellDraw(edges, operations, None) for operations in itertools.product(*columns)]
    return cells


CELLS = all_cells()
_NUMBERS = torch.Generator().manual_seed(1)
# A common part, what each choice is worth, and what only their combination is.
_WORTH = torch.randn(len(EDGES), len(NAMES), generator=_NUMBERS)
LOSSES = {
    (cell.edges, cell.operations): 2.0
    + float(_WORTH[list(cell.edges), list(cell.operations)].sum())
    + 0.3 * float(torch.randn((), generator=_NUMBERS))
    for cell in CELLS
}


def loss_of(cell: CellDraw) -> float:
    return LOSSES[cell.edges, cell.operations]


def exact_gradients(logits: ArchLogits, *, edges: bool = True) -> list[Tensor]:
    """The gradient of the expected loss: of operations and edges of the normal cell."""
    draws = [Draw(cell, cell) for cell in CELLS]
    log_p = log_probabilities(logits, draws, cell_type="normal")
    of_operations = log_probabilities(logits, draws, cell_type="normal", edges=False)
    p = (
        log_p.exp()
        if edges
        else log_p.detach().exp() * (of_operations - of_operations.detach()).exp()
    )
    expected = (p * torch.tensor([loss_of(cell) for cell in CELLS])).sum()
    parameters = [logits.normal_ops, logits.normal_edges]
    found = torch.autograd.grad(expected, parameters, allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


def test_probabilities_of_all_cells_sum_to_one() -> None:
    logits = spread_logits(SPACE)
    draws = [Draw(cell, cell) for cell in CELLS]
    total = log_probabilities(logits, draws, cell_type="normal").exp().sum()
    assert float(total.detach()) == pytest.approx(1.0, rel=1e-6)


def test_pairs_are_as_probable_as_they_are_sampled() -> None:
    logits, numbers, count = spread_logits(SPACE), torch.Generator().manual_seed(2), 4000
    seen: list[Counter[tuple[int, ...]]] = [Counter() for _ in node_pairs(14)]
    for _ in range(count):
        edges = sample(logits, 1.0, numbers).normal.edges
        for node, own in enumerate(seen):
            own[edges[2 * node : 2 * node + 2]] += 1
    probabilities = pair_log_probabilities(logits.edges("normal")).exp().tolist()
    for pair, p in zip(itertools.chain(*node_pairs(14)), probabilities, strict=True):
        error = math.sqrt(p * (1 - p) / count) + 1e-9
        assert abs(sum(own[pair] for own in seen) / count - p) < 4.5 * error


def test_a_choice_that_is_nearly_certain_has_finite_probabilities() -> None:
    logits = ArchLogits(SPACE)
    with torch.no_grad():
        logits.normal_edges[5] = 60.0  # of five predecessors
    log_p = pair_log_probabilities(logits.edges("normal")).detach()
    assert log_p.isfinite().all()
    of_nodes = log_p.exp().split([len(pairs) for pairs in node_pairs(14)])
    assert [float(p.sum()) for p in of_nodes] == pytest.approx([1.0] * len(of_nodes))


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_systematic_draws_are_even_and_each_as_probable(count: int) -> None:
    p = torch.tensor([0.0, 0.45, 0.05, 0.0, 0.5])
    systematic, repeats = _Systematic(torch.Generator().manual_seed(3)), 3000
    first = Counter[int]()
    for _ in range(repeats):
        drawn = systematic.draw(p.tolist(), count)
        for index, probability in enumerate(p.tolist()):
            low = math.floor(count * probability - 1e-6)
            assert low <= drawn.count(index) <= math.ceil(count * probability + 1e-6)
        first[drawn[0]] += 1
    assert first[0] == first[3] == 0
    for index, probability in enumerate(p.tolist()):
        error = math.sqrt(probability * (1 - probability) / repeats) + 1e-9
        assert abs(first[index] / repeats - probability) < 4.5 * error


def test_a_group_sees_every_operation_of_an_edge_as_evenly_as_it_can() -> None:
    logits = ArchLogits(SPACE)
    draws = sample_evenly(logits, 6, torch.Generator().manual_seed(0))
    # Node 0 has one pair of edges: the first edge, with three operations, is in every draw.
    columns = Counter(draw.normal.operations[draw.normal.edges.index(0)] for draw in draws)
    p = logits.normal_ops[0].detach().softmax(dim=0)
    assert all(abs(columns[index] - 6 * float(p[index])) <= 1 for index in range(3))
    assert Counter(draw.normal.edges[2:4] for draw in draws) == dict.fromkeys(node_pairs(14)[1], 2)
    assert len({draw.normal.operations for draw in draws}) > 1


def estimates(logits: ArchLogits, *, edges: bool, sampler: "Sampler") -> list[Tensor]:
    """One estimate a row: of operations and of edges of the normal cell."""
    numbers = torch.Generator().manual_seed(4)
    rows: list[list[Tensor]] = [[], []]
    parameters = [logits.normal_ops, logits.normal_edges]
    for _ in range(REPEATS):
        draws = sampler(logits, numbers)
        losses = torch.tensor([loss_of(draw.normal) for draw in draws])
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        add_gradients(logits, draws, losses, ["normal"], edges=edges)
        for row, parameter in zip(rows, parameters, strict=True):
            assert parameter.grad is not None
            row.append(parameter.grad.flatten())
    return [torch.stack(row) for row in rows]


Sampler = Callable[[ArchLogits, torch.Generator], Sequence[Draw]]


def even(logits: ArchLogits, numbers: torch.Generator) -> list[Draw]:
    return [d for group in groups(DRAWS) for d in sample_evenly(logits, len(group), numbers)]


def independent(logits: ArchLogits, numbers: torch.Generator) -> list[Draw]:
    return [sample(logits, 1.0, numbers) for _ in range(DRAWS)]


def even_operations(logits: ArchLogits, numbers: torch.Generator) -> list[Draw]:
    drawn = independent(logits, numbers)
    return [
        draw
        for group in groups(DRAWS)
        for draw in with_even_operations(logits, drawn[group.start : group.stop], numbers)
    ]


def distances(sampler: Sampler, *, edges: bool = True) -> tuple[float, float]:
    """Distance of the mean estimate from the exact gradient, in standard errors: the largest of
    all logits; and along the exact gradient, where a baseline's bias lies.
    """
    logits = spread_logits(SPACE)
    exact = torch.cat([part.flatten() for part in exact_gradients(logits, edges=edges)]).double()
    found = torch.cat(estimates(logits, edges=edges, sampler=sampler), dim=1).double()
    error = found.std(dim=0) / math.sqrt(REPEATS)
    # Where there is nothing to choose the gradient is 0, up to rounding.
    worst = ((found.mean(dim=0) - exact).abs() / (error + 1e-6)).max()
    along = found @ exact / (exact @ exact)
    return float(worst), float((along.mean() - 1.0) / (along.std() / math.sqrt(REPEATS)))


@pytest.mark.parametrize(
    ("sampler", "edges"),
    [(even, True), (independent, True), (even_operations, False)],
    ids=["score", "independent", "mixed"],
)
def test_the_mean_estimate_is_the_enumerated_gradient(sampler: Sampler, edges: bool) -> None:
    worst, along = distances(sampler, edges=edges)
    assert worst < 4.5
    assert abs(along) < 4.5


def of_the_own_group(losses: Tensor) -> Tensor:
    found = losses.clone()
    for group in groups(len(losses)):
        own = losses[group.start : group.stop]
        found[group.start : group.stop] -= (own.sum() - own) / (len(own) - 1)
    return found


@pytest.mark.parametrize(
    ("sampler", "wrong"),
    [(even, of_the_own_group), (independent, lambda losses: losses - losses.mean())],
    ids=["that of draws that depend on it", "the draw's own loss among others"],
)
def test_control_a_baseline_that_depends_on_the_draw_is_biased(
    monkeypatch: pytest.MonkeyPatch, sampler: Sampler, wrong: Callable[[Tensor], Tensor]
) -> None:
    monkeypatch.setattr(score_function, "advantages", wrong)
    _, along = distances(sampler)
    assert abs(along) > 6.0


def test_the_baseline_of_a_group_is_the_mean_of_the_other() -> None:
    found = advantages(torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0]))
    assert found.tolist() == [-14.0, -13.0, -9.0, 7.0, 17.0]


def test_even_draws_vary_less_than_independent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.REPEATS", 400)
    variances = [
        sum(
            float(rows.var(dim=0).sum())
            for rows in estimates(spread_logits(SPACE), edges=True, sampler=sampler)
        )
        for sampler in (even, independent)
    ]
    assert variances[0] < 0.95 * variances[1]

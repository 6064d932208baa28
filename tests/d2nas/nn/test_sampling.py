"""Sampling: the distribution of edges and operations, and the gradient of every logit."""

import itertools
from collections import Counter

import pytest
import torch
from differences import central_difference
from searches import spread_logits
from torch.nn import functional as F

from d2nas import SPACES, ArchLogits, Genotype, Supernet, derive_genotype, sample
from d2nas.errors import ConfigError, NonFiniteError
from d2nas.nn.operations import initialize
from d2nas.nn.sampling import (
    CellDraw,
    Draw,
    choice_probabilities,
    choosable,
    draw_noise,
    sample_cell,
)
from d2nas.spaces import CELL_TYPES, EDGES, SearchSpace, node_edges

TINY = SearchSpace.from_dict(
    {"name": "tiny", "normal": ["skip_connect", "max_pool_3x3", "dil_conv_3x3"]}
)


def exact_edge_marginals(edges_E: torch.Tensor) -> list[float]:
    """P(edge is drawn) = p1 + sum over the others i of p_i p1 / (1 - p_i), per node."""
    marginals: list[float] = []
    for rows in node_edges(14):
        p = edges_E[rows.start : rows.stop].softmax(0).tolist()
        for j in range(len(p)):
            others = (p[i] * p[j] / (1 - p[i]) for i in range(len(p)) if i != j)
            marginals.append(p[j] + sum(others))
    return marginals


def z_scores(counts: list[int], probabilities: list[float], n: int) -> list[float]:
    return [
        (count - n * p) / max(1e-12, n * p * (1 - p)) ** 0.5
        for count, p in zip(counts, probabilities, strict=True)
        if 0 < p < 1
    ]


def empirical(logits: ArchLogits, n: int) -> tuple[list[int], list[Counter[int]]]:
    edges = [0] * len(EDGES)
    operations = [Counter[int]() for _ in EDGES]
    numbers = torch.Generator().manual_seed(7)
    for _ in range(n):
        draw = sample(logits, 1.0, numbers).normal
        for edge, operation in zip(draw.edges, draw.operations, strict=True):
            edges[edge] += 1
            operations[edge][operation] += 1
    return edges, operations


def test_edge_and_operation_marginals_are_the_exact_ones() -> None:
    n = 4000
    logits = spread_logits(SPACES["S0"])
    counts, operations = empirical(logits, n)
    marginals = exact_edge_marginals(logits.normal_edges.detach())
    assert sum(marginals) == pytest.approx(8)
    assert counts[:2] == [n, n]  # node 2 has no choice
    assert max(abs(z) for z in z_scores(counts[2:], marginals[2:], n)) < 4.5
    for edge, counter in enumerate(operations):
        p = logits.normal_ops[edge].softmax(0).tolist()
        drawn = [counter[column] for column in range(len(p))]
        assert max(abs(z) for z in z_scores(drawn, p, counts[edge])) < 4.5


def test_control_the_marginal_test_sees_a_wrong_sampler() -> None:
    """Drawing the two most probable of independent Bernoulli-like scores is not Gumbel top-2:
    with twice the noise the counts leave the exact formula by far.
    """
    n = 4000
    logits = spread_logits(SPACES["S0"])
    with torch.no_grad():
        logits.normal_edges.mul_(0.5)  # as if the noise were doubled
    counts, _ = empirical(logits, n)
    with torch.no_grad():
        logits.normal_edges.mul_(2)
    marginals = exact_edge_marginals(logits.normal_edges.detach())
    assert max(abs(z) for z in z_scores(counts[2:], marginals[2:], n)) > 10


def test_temperature_does_not_change_what_is_drawn() -> None:
    logits = spread_logits(SPACES["S0"])
    draws = [sample(logits, tau, torch.Generator().manual_seed(3)) for tau in (10.0, 0.1)]
    assert draws[0].normal.edges == draws[1].normal.edges
    assert draws[0].reduce.operations == draws[1].reduce.operations


def test_a_draw_depends_on_its_generator_alone() -> None:
    logits = ArchLogits(SPACES["S1"])
    before = torch.random.get_rng_state()
    first, again, other = (
        sample(logits, 1.0, torch.Generator().manual_seed(seed)).normal for seed in (1, 1, 2)
    )
    assert (first.edges, first.operations) == (again.edges, again.operations)
    assert (first.edges, first.operations) != (other.edges, other.operations)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", sorted(SPACES))
def test_draws_hold_two_edges_per_node_and_never_none(name: str) -> None:
    space = SPACES[name]
    logits = ArchLogits(space)
    numbers = torch.Generator().manual_seed(0)
    for _, cell_type in itertools.product(range(50), CELL_TYPES):
        draw = sample(logits, 1.0, numbers).cell(cell_type)
        assert [EDGES[edge][1] for edge in draw.edges] == [2, 2, 3, 3, 4, 4, 5, 5]
        assert len(set(draw.edges)) == 8
        for edge, column in zip(draw.edges, draw.operations, strict=True):
            assert space.candidates(cell_type)[edge][column] != "none"


def losses_of_branches(
    supernet: Supernet, draw: Draw, inputs: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """The sum of the branches' losses, each on given backbone features, written out plainly."""
    first, losses = 0, []
    for border, head, (previous, current) in zip(
        supernet.borders, supernet.heads, inputs, strict=True
    ):
        for cell in supernet.cells[first:border]:
            previous, current = current, cell(previous, current, draw.cell(cell.cell_type))
        losses.append(F.cross_entropy(head(current.mean((2, 3))), LABELS))
        first = border
    return torch.stack(losses).sum()


LABELS = torch.arange(3)


@pytest.mark.parametrize("branch_length", [1, 2, 4])
@pytest.mark.parametrize("edge_gate_scale", [1.0, 2.0])
def test_gradient_of_every_logit_is_that_of_the_relaxed_loss(
    branch_length: int, edge_gate_scale: float
) -> None:
    """Central differences of L(hard + soft(logits) - soft(logits0)), noise and sampled set fixed.

    The relaxed loss is written here with plain tensors: it shares no line with the gates'
    hand-written backward. What the backbone hands to a branch is fixed too: no gradient crosses.
    """
    tau = 2.0
    supernet = Supernet(
        TINY, num_cells=4, init_channels=2, num_classes=3, branch_length=branch_length
    ).double()
    initialize(supernet, torch.Generator().manual_seed(1))
    logits = spread_logits(TINY).double()
    images = torch.randn(
        3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    noise = {
        cell: draw_noise(torch.empty(14, 3), torch.Generator().manual_seed(5 + i))
        for i, cell in enumerate(CELL_TYPES)
    }
    cells = {
        cell: sample_cell(logits, cell, tau, noise[cell], edge_gate_scale=edge_gate_scale)
        for cell in CELL_TYPES
    }
    inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for position in (0, *supernet.borders[:-1]):
        supernet.cells[position].register_forward_pre_hook(
            lambda _, arguments: inputs.append((arguments[0].detach(), arguments[1].detach()))
        )
    for branch in supernet.branches(images, Draw(cells["normal"], cells["reduce"])):
        F.cross_entropy(branch.logits, LABELS).backward()
    backbone = list(inputs)

    def soft(cell: str) -> tuple[torch.Tensor, torch.Tensor]:
        mask = choosable(TINY, cell)
        return choice_probabilities(logits.ops(cell), logits.edges(cell), mask, noise[cell], tau)

    with torch.no_grad():
        start = {cell: [tensor.clone() for tensor in soft(cell)] for cell in CELL_TYPES}

    def relaxed_loss() -> float:
        draws = []
        for cell in CELL_TYPES:
            rows, columns = (list(c) for c in (cells[cell].edges, cells[cell].operations))
            ops_EO, edges_E = soft(cell)
            op_gates = 1 + (ops_EO - start[cell][0])[rows, columns]
            edge_gates = 1 + edge_gate_scale * (edges_E - start[cell][1])[rows]
            draws.append(CellDraw(cells[cell].edges, cells[cell].operations, op_gates * edge_gates))
        return float(losses_of_branches(supernet, Draw(*draws), backbone))

    checked = moved = 0
    for parameter in logits.parameters():
        for index, gradient in enumerate(parameter.grad.view(-1).tolist()):
            numeric = central_difference(relaxed_loss, parameter, index)
            assert gradient == pytest.approx(numeric, rel=2e-5, abs=1e-8)
            checked += 1
            moved += abs(numeric) > 1e-6
    assert checked == 2 * (14 * 3 + 14)
    assert moved > 60  # 2 x 8 edges x 3 operations, and the edges of nodes with a choice


def test_a_gate_is_one_and_reaches_only_its_own_edge_and_node() -> None:
    logits = spread_logits(SPACES["S0"])
    draw = sample(logits, 1.0, torch.Generator().manual_seed(0)).normal
    assert torch.equal(draw.gates, torch.ones(8))
    draw.gates[2].backward()
    edge = draw.edges[2]
    touched = logits.normal_ops.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [edge]
    assert logits.normal_edges.grad.nonzero().flatten().tolist() == list(node_edges(14)[1])
    assert float(logits.normal_edges.grad.sum()) == pytest.approx(0, abs=1e-6)


def test_masked_columns_get_no_gradient() -> None:
    logits = spread_logits(SPACES["S3"])
    sample(logits, 1.0, torch.Generator().manual_seed(0)).normal.gates.sum().backward()
    assert torch.count_nonzero(logits.normal_ops.grad[:, 0]) == 0  # none
    assert torch.count_nonzero(logits.normal_ops.grad[:, 1:]) > 0


def test_logits_are_registered_in_the_documented_order() -> None:
    logits = ArchLogits(SPACES["S0"])
    names = ["normal_ops", "reduce_ops", "normal_edges", "reduce_edges"]
    assert [name for name, _ in logits.named_parameters()] == names
    assert [tuple(p.shape) for p in logits.parameters()] == [(14, 7), (14, 7), (14,), (14,)]


def test_derivation_keeps_the_two_best_edges_and_the_best_operations() -> None:
    space = SPACES["S0"]
    logits = spread_logits(space, seed=4)
    genotype = derive_genotype(logits, space)
    for cell_type in CELL_TYPES:
        pairs = genotype.cell(cell_type)
        for node, rows in enumerate(node_edges(14)):
            kept = {source for _, source in pairs[2 * node : 2 * node + 2]}
            ranked = sorted(rows, key=lambda row: -logits.edges(cell_type)[row].item())
            assert kept == {EDGES[row][0] for row in ranked[:2]}
            for operation, source in pairs[2 * node : 2 * node + 2]:
                row = rows.start + source
                best = int(logits.ops(cell_type)[row].argmax())
                assert operation == space.candidates(cell_type)[row][best]


def test_derivation_breaks_ties_by_position() -> None:
    space = SPACES["S0"]
    logits = ArchLogits(space)
    with torch.no_grad():
        for parameter in logits.parameters():
            parameter.zero_()
    genotype = derive_genotype(logits, space)
    assert genotype.normal == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4


def test_derivation_never_keeps_none_and_refuses_what_is_not_finite() -> None:
    space = SPACES["S3"]
    logits = ArchLogits(space)
    with torch.no_grad():
        logits.normal_ops[:, 0] = 100.0
    operations = {operation for operation, _ in derive_genotype(logits, space).normal}
    assert "none" not in operations
    with torch.no_grad():
        logits.reduce_edges[3] = float("nan")
    with pytest.raises(NonFiniteError, match="reduce_edges"):
        derive_genotype(logits, space)
    with pytest.raises(ConfigError, match="S3"):
        derive_genotype(logits, SPACES["S0"])


def test_the_derived_genotype_is_a_genotype_in_every_space() -> None:
    for name, space in SPACES.items():
        genotype = derive_genotype(spread_logits(space), space)
        assert Genotype.from_json(genotype.to_json()) == genotype, name

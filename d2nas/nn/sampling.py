"""Architecture logits and the sampling of sub-networks from them.

Per cell type: two edges per node by Gumbel top-2, one operation per edge by Gumbel argmax, with
straight-through gradients (the paper's section 4, equal to ROME v2, arXiv 2011.11233, section 3.3).

Shape letters: E edges (14 in a cell of four nodes), O = operation columns, S = sampled edges, two
of each node.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces import (
    CELL_TYPES,
    EDGES_PER_NODE,
    NODE_COUNTS,
    SearchSpace,
    edges_of,
    node_edges,
)


def _same_node(num_edges: int) -> Tensor:
    edges = range(num_edges)
    return torch.tensor(
        [[float(e in rows) for e in edges] for rows in node_edges(num_edges) for _ in rows]
    )


# Made with the module: what the first step of a process made would count as memory of that step.
_SAME_NODE = {len(edges_of(nodes)): _same_node(len(edges_of(nodes))) for nodes in NODE_COUNTS}


def same_node(num_edges: int) -> Tensor:
    """Return (E, E): 1 where two edges enter the same node."""
    return _SAME_NODE[num_edges]


class ArchLogits(nn.Module):
    """The architecture parameters of a space, in this order: ``normal_ops``, ``reduce_ops``
    (edges x columns), ``normal_edges``, ``reduce_edges`` (edges).

    Start: operations 1e-3 x N(0, 1), as DARTS's code; edges 0, so that no edge is ahead before
    anything was learned (ours; for methods without edge logits they stay there). They stay on the
    CPU whatever device computes: a few hundred numbers, and which operations run is decided on
    the host.
    """

    def __init__(self, space: SearchSpace, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.space = space
        shapes = {
            **{f"{cell}_ops": (len(space.normal), space.num_columns(cell)) for cell in CELL_TYPES},
            **{f"{cell}_edges": (len(space.normal),) for cell in CELL_TYPES},
        }
        for name, shape in shapes.items():
            start = torch.zeros(shape)
            if name.endswith("_ops"):
                start = 1e-3 * torch.randn(shape, generator=generator)
            self.register_parameter(name, nn.Parameter(start))
        self._choosable = {
            (cell_type, none_too): choosable(space, cell_type, none_too=none_too)
            for cell_type in CELL_TYPES
            for none_too in (False, True)
        }

    def ops(self, cell_type: str) -> Tensor:
        """Return the operation logits (E, O) of ``"normal"`` or ``"reduce"``."""
        parameter: Tensor = getattr(self, f"{cell_type}_ops")
        return parameter

    def edges(self, cell_type: str) -> Tensor:
        """Return the edge logits (E,) of ``"normal"`` or ``"reduce"``."""
        parameter: Tensor = getattr(self, f"{cell_type}_edges")
        return parameter

    def choosable(self, cell_type: str, *, none_too: bool = False) -> Tensor:
        """Return the mask (E, O) of columns that may be chosen, see the function of this name."""
        return self._choosable[cell_type, none_too]

    def entropy(self, cell_type: str, *, none_too: bool = False) -> tuple[float, float]:
        """Return the mean entropies, in nats, of the operation choices (per edge) and of the edge
        choices (per node), both without noise and at temperature 1. ``none_too``: for a method
        that weighs or samples ``none`` as well.
        """
        with torch.no_grad():
            ops_EO, edges_E = choice_probabilities(
                self.ops(cell_type),
                self.edges(cell_type),
                self.choosable(cell_type, none_too=none_too),
            )
            per_edge = -torch.xlogy(ops_EO, ops_EO).sum(1).mean()
            all_edges = -torch.xlogy(edges_E, edges_E).sum() / len(self.space.nodes)
        return float(per_edge), float(all_edges)


@dataclass(frozen=True, slots=True)
class CellDraw:
    """One sampled cell.

    ``edges``: rows of the space's ``edges``, two per node, ascending. ``operations``: the column
    chosen on each. ``gates``: (S,) tensor of ones whose gradient reaches the logits straight
    through the sampling, or None where no architecture gradient is wanted.
    """

    edges: tuple[int, ...]
    operations: tuple[int, ...]
    gates: Tensor | None
    are_ones: bool = field(default=False, init=False)
    """Whether the gates are known to be ones, so that nothing has to be multiplied. Not to be set
    by hand: a copy with other gates does not keep it."""

    @classmethod
    def of_ones(
        cls, edges: tuple[int, ...], operations: tuple[int, ...], gates: Tensor | None
    ) -> "CellDraw":
        """Return a draw whose gates hold ones; what they hold is not looked at."""
        draw = cls(edges, operations, gates)
        object.__setattr__(draw, "are_ones", True)
        return draw


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled sub-network: all normal cells share one draw, all reduction cells another."""

    normal: CellDraw
    reduce: CellDraw

    def cell(self, cell_type: str) -> CellDraw:
        """Return the draw of ``"normal"`` or ``"reduce"``."""
        return self.normal if cell_type == "normal" else self.reduce

    def with_gates(self, normal: Tensor | None, reduce: Tensor | None) -> "Draw":
        """Return the same sub-network with other gates that hold ones, or without (None)."""
        return Draw(
            CellDraw.of_ones(self.normal.edges, self.normal.operations, normal),
            CellDraw.of_ones(self.reduce.edges, self.reduce.operations, reduce),
        )


@dataclass(frozen=True, slots=True)
class GumbelNoise:
    """The Gumbel(0, 1) noise of one cell draw: ``ops`` (E, O) and ``edges`` (E,), float64."""

    ops: Tensor
    edges: Tensor


def choosable(space: SearchSpace, cell_type: str, *, none_too: bool = False) -> Tensor:
    """Return the mask (E, O) of columns that may be sampled or derived.

    Excluded: columns past an edge's last candidate, and ``none``, which would break the in-degree
    of two (ROME 3.3; in S3 this leaves S2's operations), unless ``none_too``, as in GDAS.
    """
    edges = space.candidates(cell_type)
    mask = torch.zeros(len(edges), space.num_columns(cell_type), dtype=torch.bool)
    for row, operations in enumerate(edges):
        for column, operation in enumerate(operations):
            mask[row, column] = none_too or operation != "none"
    return mask


def draw_noise(ops_EO: Tensor, generator: torch.Generator) -> GumbelNoise:
    """Draw the noise of a cell with such operation logits: minus the logarithm of exponential
    samples.
    """
    num_edges, num_columns = ops_EO.shape
    exponential = torch.empty(num_edges, num_columns + 1, dtype=torch.float64)
    exponential.exponential_(generator=generator)
    gumbel = -exponential.clamp_min(torch.finfo(torch.float64).tiny).log()
    return GumbelNoise(ops=gumbel[:, :-1], edges=gumbel[:, -1])


def choice_probabilities(
    ops_EO: Tensor,
    edges_E: Tensor,
    choosable_EO: Tensor,
    noise: GumbelNoise | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the soft choices: operations (E, O), softmaxed per edge, and edges (E,), softmaxed
    over each node's predecessors (the paper's Eq. 7-8, ROME 3.3).

    With noise n this is softmax((log p + n) / temperature); the normaliser of log p cancels.
    Differentiable in both logits.
    """
    if noise is not None:
        ops_EO = (ops_EO + noise.ops.to(ops_EO.dtype)) / temperature
        edges_E = (edges_E + noise.edges.to(edges_E.dtype)) / temperature
    soft_EO = ops_EO.masked_fill(~choosable_EO, -torch.inf).softmax(dim=1)
    by_node = node_edges(len(edges_E))
    soft_E = torch.cat([edges_E[rows.start : rows.stop].softmax(dim=0) for rows in by_node])
    return soft_EO, soft_E


class _StraightThrough(torch.autograd.Function):
    """Gates of value 1 (hard edge choice times hard operation choice) whose backward is that of
    the soft choices, which differ from the hard ones by a constant in the forward.

    Written by hand for two reasons: eight numbers need no graph, and a branch's backward frees
    the graph it went through, while the next branch still needs this one. ``soften`` gives the
    soft choices with their graph, for second derivatives.
    """

    # Of one edge, with s = softmax((logits + noise) / temperature) and o the operation drawn, the
    # gate is hard(o) + s[o] - constant(s[o]): 1 in the forward, and in the backward
    #
    #     d gate / d logits[j] = s[o] * ([j = o] - s[j]) / temperature
    #
    # which with the gate's gradient g gives w - s * sum(w) for w = g * onehot(o) * s, a row of the
    # softmax's Jacobian. The edge's own choice enters the same way: its softmax runs over the
    # predecessors of one node, two of which are drawn, so that the sum is over both. The product
    # of both hard choices is 1 times 1: each factor's gradient is g, unscaled.

    @staticmethod
    def forward(
        ctx: Any,
        ops_EO: Tensor,
        edges_E: Tensor,
        soft_EO: Tensor,
        soft_E: Tensor,
        sampled: tuple[Tensor, Tensor],
        temperature: float,
        factors: tuple[float, float],
        soften: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.logits, ctx.soften = (ops_EO, edges_E), soften
        ctx.soft_EO, ctx.soft_E, ctx.sampled = soft_EO, soft_E, sampled
        ctx.temperature, ctx.factors = temperature, factors
        return ops_EO.new_ones(len(sampled[0]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_S,) = gradients
        if torch.is_grad_enabled():
            return _StraightThrough._with_graph(ctx, gradient_S)
        rows, columns = ctx.sampled
        ops_scale, edges_scale = (factor / ctx.temperature for factor in ctx.factors)
        soft_EO, soft_E = ctx.soft_EO, ctx.soft_E
        hard_EO = torch.zeros_like(soft_EO)
        hard_EO[rows, columns] = gradient_S
        hard_E = torch.zeros_like(soft_E)
        hard_E[rows] = gradient_S
        weighted_EO = soft_EO * hard_EO
        ops_EO = weighted_EO - soft_EO * weighted_EO.sum(dim=1, keepdim=True)
        weighted_E = soft_E * hard_E
        edges_E = weighted_E - soft_E * (same_node(len(soft_E)).to(soft_E.dtype) @ weighted_E)
        return ops_EO * ops_scale, edges_E * edges_scale, *[None] * 6

    @staticmethod
    def _with_graph(ctx: Any, gradient_S: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate what the gates stand for, (1 + soft - constant) times its like."""
        soft_EO, soft_E = ctx.soften()
        if not (torch.equal(soft_EO, ctx.soft_EO) and torch.equal(soft_E, ctx.soft_E)):
            raise RuntimeError(
                "the logits have changed since the draw: its second derivative is not known\n"
                "hint: differentiate twice before the logits are updated"
            )
        rows, columns = ctx.sampled
        ops_factor, edges_factor = ctx.factors
        ops_S = 1.0 + ops_factor * (soft_EO - ctx.soft_EO)[rows, columns]
        edges_S = 1.0 + edges_factor * (soft_E - ctx.soft_E)[rows]
        wanted = [logits for logits in ctx.logits if logits.requires_grad]
        found = iter(torch.autograd.grad(ops_S * edges_S, wanted, gradient_S, create_graph=True))
        both = (next(found) if logits.requires_grad else None for logits in ctx.logits)
        return *both, *[None] * 6


def sample_cell(
    logits: ArchLogits,
    cell_type: str,
    temperature: float,
    noise: GumbelNoise,
    *,
    edge_gate_scale: float = 1.0,
    operation_gate_scale: float = 1.0,
) -> CellDraw:
    """Draw one cell with the given noise.

    The two edges with the largest perturbed probability enter each node: equal to drawing two
    different ones in turn without replacement. Edges that were not drawn have no output, so their
    gate's gradient is taken as 0 (ours; the paper is silent). ``edge_gate_scale`` multiplies the
    soft edge choices in the backward: they sum to 1 while two gates are open (ours);
    ``operation_gate_scale`` the soft operations (0: the gates' gradient is of the edges alone).
    """
    ops_EO, edges_E = logits.ops(cell_type), logits.edges(cell_type)
    mask_EO = logits.choosable(cell_type)
    soften = partial(choice_probabilities, ops_EO, edges_E, mask_EO, noise, temperature)
    with torch.no_grad():
        soft_EO, soft_E = soften()
        perturbed_E = edges_E + noise.edges.to(edges_E.dtype)
        perturbed_EO = (ops_EO + noise.ops.to(ops_EO.dtype)).masked_fill(~mask_EO, -torch.inf)
        strength, columns = perturbed_E.tolist(), perturbed_EO.argmax(dim=1).tolist()
    edges = tuple(
        edge
        for rows in node_edges(len(strength))
        for edge in sorted(sorted(rows, key=lambda row: -strength[row])[:EDGES_PER_NODE])
    )
    operations = tuple(columns[edge] for edge in edges)
    gates: Tensor = _StraightThrough.apply(
        ops_EO,
        edges_E,
        soft_EO,
        soft_E,
        (torch.tensor(edges), torch.tensor(operations)),
        temperature,
        (operation_gate_scale, edge_gate_scale),
        soften,
    )
    return CellDraw.of_ones(edges, operations, gates)


def sample(
    logits: ArchLogits,
    tau: float,
    generator: torch.Generator,
    *,
    edge_gate_scale: float = 1.0,
    operation_gate_scale: float = 1.0,
) -> Draw:
    """Draw one sub-network at temperature ``tau`` (> 0): edges and operations of both cell types.

    All randomness comes from ``generator`` (CPU). The temperature shapes the gradient; which edges
    and operations are drawn does not depend on it.
    """
    cells = (
        sample_cell(
            logits,
            cell_type,
            tau,
            draw_noise(logits.ops(cell_type), generator),
            edge_gate_scale=edge_gate_scale,
            operation_gate_scale=operation_gate_scale,
        )
        for cell_type in CELL_TYPES
    )
    return Draw(*cells)


def sample_operations(logits: ArchLogits, tau: float, generator: torch.Generator) -> Draw:
    """Draw an operation for *every* edge of both cell types, ``none`` among them: GDAS's sampling
    (arXiv 1910.04465, Eq. 4-6). The gates' gradients reach the operation logits alone.
    """
    cells = []
    for cell_type in CELL_TYPES:
        ops_EO, edges_E = logits.ops(cell_type), logits.edges(cell_type)
        mask_EO = logits.choosable(cell_type, none_too=True)
        noise = draw_noise(ops_EO, generator)
        soften = partial(choice_probabilities, ops_EO, edges_E, mask_EO, noise, tau)
        with torch.no_grad():
            soft_EO, soft_E = soften()
            operations = soft_EO.argmax(dim=1)
        edges = torch.arange(len(operations))
        gates: Tensor = _StraightThrough.apply(
            ops_EO, edges_E, soft_EO, soft_E, (edges, operations), tau, (1.0, 0.0), soften
        )
        rows = tuple(edges.tolist()), tuple(operations.tolist())
        cells.append(CellDraw.of_ones(*rows, gates))
    return Draw(*cells)

"""The disentangled supernet: a backbone that only carries features forward, and branch cells, the
only part that is updated.

From the paper: normal cells (here "backbone", since "normal" already means "not a reduction cell")
and branch cells, of which only the latter are updated during the search (its Figure 1 and section
3). The paper gives no equation; what follows is this project's reading of it:

- At position i the sampled cell is a *branch cell*: evaluated on detached backbone features
  h[i-2], h[i-1], with gradient, up to a light head (global mean, linear) and a loss of its own.
- The *backbone cell* at i is the same evaluation seen forward-only: h[i] is its output, detached.
- Exactly one branch is alive at a time, so activation memory does not grow with depth.

``branch_length`` cells form one branch; with ``branch_length=num_cells`` this is ROME's entangled
single-path supernet. Only the sampled edges of a cell, two per node, are ever computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..spaces import NUM_INPUTS, SearchSpace, node_edges
from .operations import (
    CellPlan,
    build_candidate,
    build_depthwise_unit,
    build_stem,
    plan_cells,
    preprocess_inputs,
)
from .recomputation import RECOMPUTE, recomputed
from .sampling import CellDraw, Draw

BRANCH_HEADS = ("linear", "separable")
HEAD_SIZE = 8
"""Pixels that a separable branch head sees at most: it stays small beside a cell."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Result of one branch: the position of its last cell, and its logits (N, classes)."""

    position: int
    logits: Tensor


SharedInputs = dict[tuple[int, int], Tensor]
"""By (cell, which of its inputs): what comes from the stem, brought to the cell's width."""


class _GatedSum(torch.autograd.Function):
    """The sum of ``terms``, each times its gate: ``gates[first]`` and those that follow.

    Where the gates ``are_ones``, nothing is multiplied.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, first: int, are_ones: bool, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(gates, *terms)
        ctx.first, ctx.are_ones = first, are_ones
        own = gates[first : first + len(terms)]
        if not are_ones:
            terms = tuple(term * gate for term, gate in zip(terms, own, strict=True))
        return reduce(torch.add, terms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        gates, *terms = ctx.saved_tensors
        own = gates[ctx.first : ctx.first + len(terms)]
        products = None
        if ctx.needs_input_grad[0]:
            products = torch.zeros_like(gates)
            sums = [(gradient * term).sum(dtype=gates.dtype) for term in terms]
            products[ctx.first : ctx.first + len(terms)] = torch.stack(sums)
        # A second derivative sees the gates, whatever they hold.
        whole = ctx.are_ones and not torch.is_grad_enabled()
        return (
            products,
            None,
            None,
            *(
                None if not need else gradient if whole else gradient * gate
                for need, gate in zip(ctx.needs_input_grad[3:], own, strict=True)
            ),
        )


def _gated(block: nn.Module, x_NCHW: Tensor, gates: Tensor, index: int, are_ones: bool) -> Tensor:
    output: Tensor = _GatedSum.apply(gates, index, are_ones, block(x_NCHW))
    return output


class SuperCell(nn.Module):
    """A cell that holds every candidate of every edge and runs the sampled ones."""

    def __init__(self, space: SearchSpace, plan: CellPlan, *, recompute: str) -> None:
        super().__init__()
        self.cell_type = plan.cell_type
        self.recompute = recompute
        self.preprocess0, self.preprocess1 = preprocess_inputs(plan, affine=False)
        self.candidates = nn.ModuleList(
            nn.ModuleList(
                build_candidate(operation, plan.channels, plan.stride(source))
                for operation in operations
            )
            for (source, _), operations in zip(
                space.edges, space.candidates(plan.cell_type), strict=True
            )
        )

    def forward(
        self,
        input0: Tensor,
        input1: Tensor,
        draw: CellDraw,
        prepared: tuple[bool, bool] = (False, False),
    ) -> Tensor:
        """Return the concatenated nodes, (N, nodes x C, H, W).

        ``prepared`` says which input has been through the cell's preprocessing already. Any number
        of sampled edges may enter a node, from one on.
        """
        states = [
            given if ready else self._block(preprocess, given)
            for preprocess, given, ready in zip(
                (self.preprocess0, self.preprocess1), (input0, input1), prepared, strict=True
            )
        ]
        return self.run_edges(states, draw)

    def run_edges(self, states: list[Tensor], draw: CellDraw) -> Tensor:
        """Return the same from both preprocessed inputs; ``states`` is emptied, so that these are
        gone before the nodes are concatenated, and the nodes after, if nobody else has them.
        """
        operations = dict(zip(draw.edges, draw.operations, strict=True))
        gates = draw.gates
        if gates is not None and gates.device != states[0].device:
            gates = gates.to(states[0].device)
        first = 0
        for rows in node_edges(len(self.candidates)):
            edges = [edge for edge in rows if edge in operations]
            blocks = [self.candidates[edge][operations[edge]] for edge in edges]  # type: ignore[index]
            sources = [states[edge - rows.start] for edge in edges]
            if gates is None:
                states.append(reduce(torch.add, map(self._block, blocks, sources)))
            elif self.recompute == "op":
                # The gate belongs to what is computed again: its gradient needs the output.
                terms = [
                    recomputed(_gated, block, x, gates, first + index, draw.are_ones, parts=[block])
                    for index, (block, x) in enumerate(zip(blocks, sources, strict=True))
                ]
                states.append(reduce(torch.add, terms))
            else:
                terms = list(map(self._block, blocks, sources))
                states.append(_GatedSum.apply(gates, first, draw.are_ones, *terms))
            first += len(edges)
        del states[:NUM_INPUTS]
        output = torch.cat(states, dim=1)
        states.clear()
        return output

    def parts(self, draw: CellDraw) -> list[nn.Module]:
        """Return the modules that a draw runs."""
        pairs = zip(draw.edges, draw.operations, strict=True)
        candidates = [self.candidates[edge][column] for edge, column in pairs]  # type: ignore[index]
        return [self.preprocess0, self.preprocess1, *candidates]

    def _block(self, block: nn.Module, x_NCHW: Tensor) -> Tensor:
        output: Tensor = recomputed(block, x_NCHW) if self.recompute == "op" else block(x_NCHW)
        return output


class _GlobalMean(torch.autograd.Function):
    """The global mean (N, C) of maps, computed and returned in ``dtype``.

    What flows back is one number per image and channel, seen through a view: no map is made of it.
    """

    @staticmethod
    def forward(ctx: Any, features_NCHW: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = features_NCHW.shape, features_NCHW.dtype
        return features_NCHW.mean((2, 3), dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        height, width = ctx.shape[2:]
        shares = (gradients[0] / (height * width)).to(ctx.dtype)
        return shares[:, :, None, None].expand(ctx.shape), None


def _head_body(branch_head: str, width: int) -> nn.Module:
    """Return what stands between a branch's last cell, of ``width`` channels, and its pooling."""
    if branch_head == "linear":
        return nn.Identity()
    return nn.Sequential(
        _AtMost(HEAD_SIZE), build_depthwise_unit(width, kernel=3, stride=1, dilation=1, affine=True)
    )


class _AtMost(nn.Module):
    """Average pooling down to ``size`` pixels in height and width; smaller maps stay."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, C, min(H, size), min(W, size))."""
        height, width = (min(extent, self.size) for extent in x_NCHW.shape[2:])
        return F.adaptive_avg_pool2d(x_NCHW, (height, width))


class Supernet(nn.Module):
    """All sub-networks of a space, sharing their weights. It holds no architecture logits.

    ``branch_length``: cells per branch, 1 to ``num_cells``; gradients flow inside a branch, never
    across. The stem belongs to the first branch; a shorter branch, if any, comes last.
    ``recompute``: what the backward pass computes again in place of being kept: ``"none"``,
    ``"cell"`` or ``"op"``. ``branch_head``: ``"linear"`` on pooled features, or ``"separable"``, a
    depthwise-separable unit on at most 8 x 8 pixels before it (all but the last branch). Batch
    norm: no affine parameters inside cells (DARTS's search network).
    Raises ``ConfigError`` for sizes that cannot be built.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        num_cells: int = 8,
        init_channels: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        stem: str = "cifar",
        branch_length: int = 1,
        recompute: str = "none",
        branch_head: str = "linear",
    ) -> None:
        super().__init__()
        if branch_head not in BRANCH_HEADS:
            raise ConfigError(
                f"unknown branch_head {branch_head!r}", hint="known: " + ", ".join(BRANCH_HEADS)
            )
        if not 1 <= branch_length <= num_cells:
            raise ConfigError(f"branch_length={branch_length} is not in 1..{num_cells}")
        if recompute not in RECOMPUTE:
            raise ConfigError(
                f"unknown recompute {recompute!r}", hint="known: " + ", ".join(RECOMPUTE)
            )
        self.space = space
        self.recompute = recompute
        # 3 x the cell width for both stems, as DARTS's and PC-DARTS's search networks.
        width = 3 * init_channels
        self.stem = build_stem(stem, in_channels, width)
        num_nodes = len(space.nodes)
        outputs = {"normal": num_nodes, "reduce": num_nodes}
        plans = plan_cells(num_cells, init_channels, stem=stem, stem_width=width, outputs=outputs)
        self.cells = nn.ModuleList(SuperCell(space, plan, recompute=recompute) for plan in plans)
        self.cell_types = sorted({plan.cell_type for plan in plans})
        self.borders = (*range(branch_length, num_cells, branch_length), num_cells)
        widths = [num_nodes * plans[border - 1].channels for border in self.borders]
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)
        # The last branch's logits are the network's prediction: its head is the network's.
        self.head_bodies = nn.ModuleList(
            _head_body(branch_head if border < num_cells else "linear", width)
            for border, width in zip(self.borders, widths, strict=True)
        )

    @torch.no_grad()
    def share(self, x: Tensor) -> SharedInputs:
        """Compute once, for all draws on normalised images ``x`` (N, C, H, W), what does not
        depend on the draw: the stem, and the preprocessing of its output.

        For draws that ask for no gradient of the weights: nothing flows back into it. Where the
        weights learn, keeping the stem's graph for all draws would cost more memory than a
        branch saves.
        """
        first, second = self.stem(x)
        cells = [cell for cell in self.cells if isinstance(cell, SuperCell)]
        shared = {(0, 0): cells[0].preprocess0(first), (0, 1): cells[0].preprocess1(second)}
        if len(cells) > 1:
            shared[1, 0] = cells[1].preprocess0(second)
        return shared

    def branches(self, x: Tensor | SharedInputs, draw: Draw) -> Iterator[Branch]:
        """Run the sub-network ``draw`` on normalised images ``x`` (N, C, H, W), or on what
        ``share`` made of them, branch by branch.

        Compute a branch's loss and run its backward before taking the next branch: its graph is
        then freed and only two detached feature maps live on. Branch losses add. The last
        branch's logits are the sub-network's prediction.
        """
        prepared, carried = (dict(x), []) if isinstance(x, dict) else ({}, self._run_stem(x))
        first = 0
        for number, border in enumerate(self.borders):
            for position in range(first, border):
                carried = [*carried, self._run_cell(position, prepared, carried, draw)][-2:]
            yield Branch(border - 1, self._head(number, carried[-1]))
            carried = [features.detach() for features in carried]
            first = border

    def _head(self, number: int, features_NCHW: Tensor) -> Tensor:
        body, head = self.head_bodies[number], self.heads[number]
        assert isinstance(head, nn.Linear)
        logits: Tensor = head(_GlobalMean.apply(body(features_NCHW), head.weight.dtype))
        return logits

    def _run_cell(
        self,
        position: int,
        prepared: dict[tuple[int, int], Tensor],
        carried: list[Tensor],
        draw: Draw,
    ) -> Tensor:
        cell = self.cells[position]
        assert isinstance(cell, SuperCell)
        ready = ((position, 0) in prepared, (position, 1) in prepared)
        # The last two outputs; fewer at the start where the stem's have been prepared.
        offset = len(carried) - 2
        arguments = [
            prepared.pop((position, which)) if ready[which] else carried[offset + which]
            for which in (0, 1)
        ]
        cell_draw = draw.cell(cell.cell_type)
        if self.recompute != "cell":
            output: Tensor = cell(*arguments, cell_draw, ready)
            return output
        output = recomputed(cell, *arguments, cell_draw, ready, parts=cell.parts(cell_draw))
        return output

    def _run_stem(self, x: Tensor) -> list[Tensor]:
        return [*(self.stem(x) if self.recompute == "none" else recomputed(self.stem, x))]

    def forward(self, x: Tensor, draw: Draw) -> Tensor:
        """Return the prediction of the sub-network ``draw``, logits (N, classes)."""
        if not torch.is_grad_enabled():
            return self.branch_predictions(self.share(x), draw)[-1]
        logits = x
        for branch in self.branches(x, draw):
            logits = branch.logits
        return logits

    @torch.no_grad()
    def branch_predictions(self, shared: SharedInputs, draw: Draw) -> list[Tensor]:
        """Return the logits of each branch of the sub-network ``draw``, (N, classes), on what
        ``share`` made of the images; the last are its prediction.

        The same numbers as those of ``branches``, with less alive: what later cells read of a
        cell's output, an input of a quarter of its width each, is made at once, and the output is
        gone.
        """
        prepared, found = dict(shared), list[Tensor]()
        for position, cell in enumerate(self.cells):
            assert isinstance(cell, SuperCell)
            states = [prepared.pop((position, which)) for which in (0, 1)]
            output = cell.run_edges(states, draw.cell(cell.cell_type))
            if position + 1 in self.borders:
                found.append(self._head(len(found), output))
            readers = [
                (reader, which, getattr(self.cells[reader], f"preprocess{which}"))
                for which, reader in ((1, position + 1), (0, position + 2))
                if reader < len(self.cells)
            ]
            if readers:
                output.relu_()  # both begin with it, and nobody else reads the output
                for reader, which, preprocess in readers:
                    prepared[reader, which] = preprocess.forward_only(output, rectified=True)
            del output
        return found

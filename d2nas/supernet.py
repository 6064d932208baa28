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
single-path supernet. Only the eight sampled edges of a cell are ever computed.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import ConfigError
from .ops import CellPlan, Noise, build_candidate, build_stem, plan_cells, preprocess_inputs
from .sampling import CellDraw, Draw
from .spaces import EDGES, EDGES_PER_NODE, NODES, SearchSpace

RECOMPUTE = ("none", "cell", "op")


@dataclass(frozen=True, slots=True)
class Branch:
    """What one branch yields: the position of its last cell, and its logits (N, classes)."""

    position: int
    logits: Tensor


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module, noise_states: dict[Noise, Tensor]) -> Iterator[None]:
    """Compute again without counting the batch twice and with the noise of the first time."""
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    later = {noise: _generator(noise).get_state() for noise in noise_states}
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    for noise, state in noise_states.items():
        _generator(noise).set_state(state)
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
        for noise, state in later.items():
            _generator(noise).set_state(state)


def _generator(noise: Noise) -> torch.Generator:
    assert noise.generator is not None  # callers hold only those with one
    return noise.generator


def _recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Run ``module``, keep only its inputs, and run it again in the backward pass."""
    if not torch.is_grad_enabled():
        return module(*inputs)
    noise_states = {
        child: child.generator.get_state()
        for child in module.modules()
        if isinstance(child, Noise) and child.generator is not None
    }
    return checkpoint(
        module,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (
            contextlib.nullcontext(),
            _frozen_statistics(module, noise_states),
        ),
    )


class SuperCell(nn.Module):
    """A cell that holds every candidate of every edge and runs the sampled ones."""

    def __init__(self, space: SearchSpace, plan: CellPlan, *, recompute: str) -> None:
        super().__init__()
        self.cell_type = plan.cell_type
        self.recompute = recompute
        self.preprocess0, self.preprocess1 = preprocess_inputs(plan, affine=False)
        self.candidates = nn.ModuleList(
            nn.ModuleList(
                build_candidate(operation, plan.channels, plan.stride(EDGES[edge][0]))
                for operation in operations
            )
            for edge, operations in enumerate(space.candidates(plan.cell_type))
        )

    def forward(self, input0: Tensor, input1: Tensor, draw: CellDraw) -> Tensor:
        """Return the concatenated nodes, (N, 4C, H, W)."""
        states = [self._block(self.preprocess0, input0), self._block(self.preprocess1, input1)]
        gates = None if draw.gates is None else draw.gates.to(input1.device)
        for first in range(0, EDGES_PER_NODE * len(NODES), EDGES_PER_NODE):
            terms = []
            for index in range(first, first + EDGES_PER_NODE):
                edge = draw.edges[index]
                operation = self.candidates[edge][draw.operations[index]]  # type: ignore[index]
                term = self._block(operation, states[EDGES[edge][0]])
                terms.append(term if gates is None else term * gates[index])
            states.append(terms[0] + terms[1])
        return torch.cat(states[-len(NODES) :], dim=1)

    def _block(self, block: nn.Module, x_NCHW: Tensor) -> Tensor:
        output: Tensor = _recomputed(block, x_NCHW) if self.recompute == "op" else block(x_NCHW)
        return output


class Supernet(nn.Module):
    """All sub-networks of a space, sharing their weights. It holds no architecture logits.

    ``branch_length``: cells per branch, 1 to ``num_cells``; gradients flow inside a branch, never
    across. The stem belongs to the first branch; a shorter branch, if any, comes last.
    ``recompute``: what the backward pass computes again in place of being kept: ``"none"``,
    ``"cell"`` or ``"op"``. Batch norm: no affine parameters inside cells (DARTS's search network).
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
    ) -> None:
        super().__init__()
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
        outputs = {"normal": len(NODES), "reduce": len(NODES)}
        plans = plan_cells(num_cells, init_channels, stem=stem, stem_width=width, outputs=outputs)
        self.cells = nn.ModuleList(SuperCell(space, plan, recompute=recompute) for plan in plans)
        self.borders = (*range(branch_length, num_cells, branch_length), num_cells)
        self.heads = nn.ModuleList(
            nn.Linear(len(NODES) * plans[border - 1].channels, num_classes)
            for border in self.borders
        )

    def branches(self, x: Tensor, draw: Draw) -> Iterator[Branch]:
        """Run the sub-network ``draw`` on normalised images ``x`` (N, C, H, W), branch by branch.

        Compute a branch's loss and run its backward before taking the next branch: its graph is
        then freed and only two detached feature maps live on. Branch losses add. The last
        branch's logits are the sub-network's prediction.
        """
        previous, current = self.stem(x)
        first = 0
        for border, head in zip(self.borders, self.heads, strict=True):
            for cell in list(self.cells)[first:border]:
                assert isinstance(cell, SuperCell)
                cell_draw = draw.cell(cell.cell_type)
                if self.recompute == "cell":
                    output = _recomputed(cell, previous, current, cell_draw)
                else:
                    output = cell(previous, current, cell_draw)
                previous, current = current, output
            yield Branch(border - 1, head(current.mean((2, 3))))
            previous, current, output = previous.detach(), current.detach(), None
            first = border

    def forward(self, x: Tensor, draw: Draw) -> Tensor:
        """Return the prediction of the sub-network ``draw``, logits (N, classes)."""
        logits = x
        for branch in self.branches(x, draw):
            logits = branch.logits
        return logits

"""Score-function estimator: what *replacing* an edge or an operation does to the expected loss.

The straight-through gradient (``sampling``) is that of *scaling* what was sampled, by its gate:
cheap per draw, and biased for the choice of an operation. The score function (Williams 1992,
REINFORCE) has no bias and needs forward passes only:

    d E[L] / d logits = E[(L - b) * d log p(sub-network) / d logits]

for any baseline b that does not depend on the sub-network. Its price is variance. What can be had
for nothing against it, both ours:

- *Even draws.* The draws of a group are not independent: each of them is distributed as one of
  ``sampling.sample``, but together they see the pairs of edges of each node, and the operations of
  each edge, as evenly as the probabilities allow (systematic sampling in random order). The sum of
  their scores is then nearly zero, whatever the loss has in common.
- *A baseline from the other group.* Within a group one draw tells what the others are, so that
  their losses are no baseline. Two groups are independent of each other: the mean loss of one is
  the baseline of the other, which is leave-one-out for groups.

Shape letters: O = operation columns, K draws.
"""

import itertools
from bisect import bisect_right
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..spaces import CELL_TYPES
from .probability import (
    log_probabilities,
    node_pairs,
    operation_log_probabilities,
    pair_log_probabilities,
)
from .sampling import ArchLogits, CellDraw, Draw


class _Systematic:
    """Systematic sampling; all randomness from ``generator``. In Python: a few numbers each."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def draw(self, probabilities: Sequence[float], count: int) -> list[int]:
        """Return ``count`` indices in random order, each drawn by ``probabilities`` (sum 1),
        together even: index i comes floor or ceil of ``count * probabilities[i]`` times.
        """
        start, *keys = torch.rand(
            count + 1, generator=self._generator, dtype=torch.float64
        ).tolist()
        # Equally spaced points with a common random start, through the cumulated probabilities:
        # the first index whose sum lies above the point. One without probability is never it.
        cumulated = [*itertools.accumulate(probabilities)]
        found = [
            bisect_right(cumulated, (start + index) / count * cumulated[-1])
            for index in range(count)
        ]
        order = sorted(range(count), key=keys.__getitem__)
        return [found[index] for index in order]


@torch.no_grad()
def sample_evenly(logits: ArchLogits, count: int, generator: torch.Generator) -> list[Draw]:
    """Draw a group of ``count`` sub-networks, without gates: alone as ``sample``, together even."""
    systematic, edges_of = _Systematic(generator), dict[str, list[tuple[int, ...]]]()
    for cell_type in CELL_TYPES:
        probabilities = iter(pair_log_probabilities(logits.edges(cell_type)).exp().tolist())
        chosen = []
        for pairs in node_pairs(len(logits.edges(cell_type))):
            own = [*itertools.islice(probabilities, len(pairs))]
            chosen.append([pairs[index] for index in systematic.draw(own, count)])
        edges_of[cell_type] = [
            tuple(itertools.chain(*of_one)) for of_one in zip(*chosen, strict=True)
        ]
    without_operations = [
        Draw(CellDraw(normal, (), None), CellDraw(reduce, (), None))
        for normal, reduce in zip(edges_of["normal"], edges_of["reduce"], strict=True)
    ]
    return with_even_operations(logits, without_operations, generator)


@torch.no_grad()
def with_even_operations(
    logits: ArchLogits, draws: Sequence[Draw], generator: torch.Generator
) -> list[Draw]:
    """Return the draws of a group with the same edges and gates and other operations: alone by
    their probabilities, and even over the draws that have the edge.
    """
    systematic, cells = _Systematic(generator), dict[str, list[CellDraw]]()
    for cell_type in CELL_TYPES:
        own = [draw.cell(cell_type) for draw in draws]
        columns: list[dict[int, int]] = [{} for _ in own]
        probabilities_EO = operation_log_probabilities(logits, cell_type).exp().tolist()
        for edge, probabilities in enumerate(probabilities_EO):
            having = [
                column for column, cell in zip(columns, own, strict=True) if edge in cell.edges
            ]
            if having:
                drawn = systematic.draw(probabilities, len(having))
                for column, operation in zip(having, drawn, strict=True):
                    column[edge] = operation
        cells[cell_type] = [
            CellDraw.of_ones(cell.edges, tuple(column[edge] for edge in cell.edges), cell.gates)
            for cell, column in zip(own, columns, strict=True)
        ]
    return [Draw(*pair) for pair in zip(cells["normal"], cells["reduce"], strict=True)]


def groups(count: int) -> tuple[range, range]:
    """Return the two groups of ``count`` draws (2 or more) of one half of a step."""
    middle = (count + 1) // 2
    return range(middle), range(middle, count)


def advantages(losses_K: Tensor) -> Tensor:
    """Return each draw's loss less its baseline: the mean loss of the other of both ``groups``."""
    first, second = groups(len(losses_K))
    baselines_K = torch.empty_like(losses_K)
    baselines_K[: first.stop] = losses_K[second.start :].mean()
    baselines_K[second.start :] = losses_K[: first.stop].mean()
    return losses_K - baselines_K


def add_gradients(
    logits: ArchLogits,
    draws: Sequence[Draw],
    losses_K: Tensor,
    cell_types: Collection[str],
    *,
    edges: bool = True,
) -> None:
    """Add to the logits' gradients the estimate from the losses (K,) of the draws of both
    ``groups``.

    ``cell_types``: those that the network has; of others the loss says nothing. ``edges`` as in
    ``log_probabilities``.
    """
    weights_K = advantages(losses_K.double()) / len(draws)
    for cell_type in cell_types:
        log_p_K = log_probabilities(logits, draws, cell_type=cell_type, edges=edges)
        (log_p_K * weights_K).sum().backward()  # type: ignore[no-untyped-call]

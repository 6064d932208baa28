"""Few-shot NAS (Zhao et al., arXiv 2006.06863): one supernet, then one for each part of the space.

Our reading for cells, as there is no search code for this space. The first half of the epochs
trains one supernet on uniformly drawn sub-networks. Then one edge is split: the operations of the
normal cell's first edge, from its first input to its first node, which every cell has, so that each
cell lies in exactly one part. Each part's supernet begins with the weights of the first one (the
paper's weight transfer) and with their momentum, is trained on sub-networks of its part alone in an
equal share of the other epochs, with a learning rate that starts anew, and is then searched by
SPOS's evolution. The
best cell of all parts is derived, and its supernet kept. Where epochs are fewer than operations,
neighbouring operations share a part; a search of one epoch has no parts.
"""

import dataclasses
import itertools
import random

import torch
from torch import nn

from ..genotype import choices
from ..spaces import SearchSpace
from .base import EpochEnd, Sizes, register_method
from .derivation import write_genotype
from .spos import BATCHES, Plan, Spos, evolve

EDGE = 0
"""Row of the normal cell's edge that is split."""
NEVER = -1e9
"""Logit of an operation outside of a part."""
_ONE_SHOT, _BEST = range(2)  # states that are kept


def parts_of(space: SearchSpace, epochs: int) -> list[tuple[str, ...]]:
    """Return the operations of the split edge in each part; no more parts than epochs."""
    names = choices(space, "normal", *space.edges[EDGE])
    count = min(len(names), epochs)
    bounds = [len(names) * part // count for part in range(count + 1)] if count else []
    return [tuple(names[first:end]) for first, end in itertools.pairwise(bounds)]


def stage_starts(epochs: int, space: SearchSpace) -> list[int]:
    """Return the first epoch of the one supernet and of each part's, and the number of epochs."""
    parts, rest = parts_of(space, epochs // 2), epochs // 2
    count = max(1, len(parts))
    return [0, *(epochs - rest + rest * part // count for part in range(len(parts))), epochs]


class _Lowest(nn.Module):
    """What every checkpoint holds: the lowest score so far, error and loss."""

    score: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # Finite, as every checkpoint is, and above all: an error is at most 1.
        self.register_buffer("score", torch.full((2,), 2.0, dtype=torch.float64))


@register_method("few-shot")
class FewShot(Spos):
    """Few-shot NAS (arXiv 2006.06863) on cells, our reading: a supernet for each part of them."""

    kept_states = 2
    memory: _Lowest

    def __init__(
        self, space: SearchSpace, sizes: Sizes, generator: torch.Generator, *, recompute: str
    ) -> None:
        super().__init__(space, sizes, generator, recompute=recompute)
        self.memory = _Lowest()

    def schedule(self, epoch: int, epochs: int) -> tuple[int, int]:
        """Return the epoch in its stage, and of how many."""
        starts = stage_starts(epochs, self.logits.space)
        stage = max(number for number, start in enumerate(starts[:-1]) if start <= epoch)
        return epoch - starts[stage], starts[stage + 1] - starts[stage]

    def close_epoch(self, end: EpochEnd) -> int:
        """After a stage search its part, and begin the next one with the one supernet's weights."""
        starts, space = stage_starts(end.epochs, self.logits.space), self.logits.space
        following = end.epoch + 1
        if following not in starts:
            return following
        parts, stage = parts_of(space, end.epochs // 2), starts.index(following)
        if parts and stage == 1:
            end.keep(_ONE_SHOT)
        else:
            part = restricted(space, parts[stage - 2]) if parts else space
            numbers = random.Random(end.draws(0).initial_seed())
            plan = self._plan(end.epochs * end.steps, parts)
            scores = evolve(plan, part, numbers, lambda cell: self.judged(cell, end))
            best = min(scores, key=scores.__getitem__)
            score = torch.tensor(scores[best], dtype=torch.float64)
            write_genotype(self.logits, best)
            if tuple(score.tolist()) < tuple(self.memory.score.tolist()):
                self.memory.score.copy_(score)
                end.keep(_BEST)
        if end.is_last:
            end.bring_back(_BEST)
        else:
            end.bring_back(_ONE_SHOT)
            self._sample_only(parts[stage - 1])
        return following

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return how many cells are run on how many batches, forward alone."""
        parts = parts_of(self.logits.space, epochs // 2)
        searched = stage_starts(epochs, self.logits.space)[2 if parts else 1 :]
        if epoch + 1 not in searched:
            return 0
        plan = self._plan(epochs * steps, parts)
        return plan.population * plan.generations * 2 * min(BATCHES, steps)

    @staticmethod
    def _plan(steps: int, parts: list[tuple[str, ...]]) -> Plan:
        """Return a part's share of the evolution that follows so many steps."""
        return Plan.after(steps // max(1, len(parts)))

    @torch.no_grad()
    def _sample_only(self, names: tuple[str, ...]) -> None:
        candidates = self.logits.space.normal[EDGE]
        others = [column for column, name in enumerate(candidates) if name not in names]
        self.logits.ops("normal")[EDGE, others] = NEVER


def restricted(space: SearchSpace, names: tuple[str, ...]) -> SearchSpace:
    """Return the part of a space that has these operations on the split edge."""
    normal = [*space.normal]
    normal[EDGE] = names
    return dataclasses.replace(space, normal=tuple(normal))

"""Random search with weight sharing (Li and Talwalkar, arXiv 1902.07638).

The supernet's weights are trained on one uniformly drawn sub-network per step; then random
sub-networks are compared with these weights: each on ten batches of the architecture half, the ten
most accurate on a whole epoch of them. No logits are learned; in the end they are written so that
they derive to the best.

As the published code for this space, apart from three things (ours): a thousand sub-networks are
compared after as many steps as its 50 epochs have on CIFAR-10, in proportion after others (there a
thousand in any case); batch norm uses each batch's own statistics, as the running ones mix all
sub-networks; ``none`` is never drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..nn.sampling import Draw
from .base import EpochEnd, register_method
from .derivation import genotype_of, write_genotype
from .passes import measure
from .uniform_paths import UniformPaths

PUBLISHED_STEPS = 19_500
"""Whole batches of 64 in the 50 epochs of half of CIFAR-10."""
PUBLISHED_CANDIDATES = 1_000
FINALISTS = 10
"""Sub-networks that are compared on a whole epoch of the architecture half."""
BATCHES = 10
"""Batches on which all are compared."""


def num_candidates(steps: int) -> int:
    """Return how many sub-networks are compared after a training of ``steps``."""
    return max(FINALISTS, round(PUBLISHED_CANDIDATES * steps / PUBLISHED_STEPS))


@register_method("rsws")
class RandomWithSharing(UniformPaths):
    """Random search with weight sharing (arXiv 1902.07638): weights alone, then the best draw."""

    recipe: Mapping[str, Any] = {"weight_lr": 0.025}

    def close_epoch(self, end: EpochEnd) -> int:
        """After the last epoch compare random sub-networks and write the best into the logits."""
        if end.is_last:
            count = num_candidates(end.epochs * end.steps)
            draws = [self.sample(1.0, end.draws(index + 1)) for index in range(count)]
            finalists = self._ranked(end, draws, min(BATCHES, end.steps))[:FINALISTS]
            best = self._ranked(end, finalists, end.steps)[0]
            write_genotype(self.logits, genotype_of(best, self.logits.space))
        return end.epoch + 1

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return how many sub-networks are run on how many batches, forward alone."""
        if epoch + 1 < epochs:
            return 0
        return num_candidates(epochs * steps) * min(BATCHES, steps) + FINALISTS * steps

    def _ranked(self, end: EpochEnd, draws: Sequence[Draw], num_batches: int) -> list[Draw]:
        """Return the draws, the most accurate first; of equal ones that of the smaller loss."""
        totals = torch.zeros(len(draws), 2, dtype=torch.float64)  # errors, losses
        for index in range(num_batches):
            batch = end.arch_batch(index)
            noises = [end.draws(0) for _ in draws]  # the same for all
            for place, prediction in enumerate(self.predictions(batch, draws, noises)):
                loss, accuracy = measure(prediction[-1], batch.labels, batch.weights)
                totals[place] += torch.stack([1.0 - accuracy, loss.double()]).cpu()
        order = sorted(range(len(draws)), key=lambda place: tuple(totals[place].tolist()))
        return [draws[place] for place in order]

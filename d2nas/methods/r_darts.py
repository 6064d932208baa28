"""R-DARTS (Zela et al., arXiv 1909.09656): stops, or starts again with more decay, on sharp minima.

The largest eigenvalue of the validation loss's Hessian in the operation logits grows before DARTS
degenerates (section 4). Here are the two uses that section 4.3 and 5.3 make of it: ``r-darts-es``
returns the genotype of before the growth, ``r-darts-ada`` goes back to there and multiplies the
weight decay. Rules and constants are those of the published code (automl/RobustDARTS). Both are
DARTS of second order, as all published runs. The other two remedies, plain settings here as there:
``search.weight_decay`` (L2: 3e-4 times 1, 3, 9, 27 or 81) and ``search.drop_path`` (0, 0.2, 0.4 or
0.6).

Told apart from the published code:

- Drop-path there comes with cutout whose probability rises likewise; here ``search.cutout`` is a
  setting of its own. The three looks at the training batch drop the same paths.
- The image batch of a look is the last one of the epoch's architecture steps.
- Of ADA's published faults none is followed: there the eigenvalues seen before a roll-back go on
  counting after it, so that it can roll back again at once, and the step looked ahead keeps the
  old decay. Here a roll-back forgets what came after the epoch that it goes back to, and the new
  decay holds for both.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..nn.operations import set_noise_generator
from ..nn.sampling import ArchLogits
from ..spaces import CELL_TYPES, SearchSpace
from .base import EpochEnd, Sizes, register_method
from .curvature import largest_eigenvalue, num_operation_logits, operation_hessian
from .darts import DartsSecondOrder
from .passes import frozen, weighted_loss

LOOK_EVERY = 2
"""Epochs from one look at the eigenvalue to the next; the last epoch has one, too."""
WINDOW = 5
"""Looks that are averaged: the last ones, so that the mean belongs to the epoch in their middle."""
BACK = 4
"""A mean is compared with that of so many looks before."""
GROWTH = 1.3
"""The ratio of the two above which the eigenvalue counts as grown."""
FIRST_EPOCH = 10
"""The earliest epoch that is gone back to."""
SPAN = LOOK_EVERY * (WINDOW // 2 + BACK)
"""Epochs from the one that is gone back to, to the one that finds so."""
DECAY_FACTOR = 10.0
"""ADA's factor on the weight decay, at each roll-back."""
LARGEST_DECAY = 0.03
"""The weight decay near which neither stops nor rolls back (``is_largest_decay``)."""


def has_look(epoch: int, epochs: int) -> bool:
    """Return whether the eigenvalue is looked at after an epoch."""
    return epoch % LOOK_EVERY == 0 or epoch + 1 == epochs


def local_averages(eigenvalues: Sequence[float]) -> list[float]:
    """Return the mean of each look from the third on and the up to four before it."""
    return [
        sum(window) / len(window)
        for end in range(WINDOW // 2 + 1, len(eigenvalues) + 1)
        if (window := eigenvalues[max(0, end - WINDOW) : end])
    ]


def epoch_before_growth(eigenvalues: Sequence[float], epoch: int) -> int | None:
    """Return the epoch to go back to where the eigenvalue has grown, None where it has not.

    ``eigenvalues``: those of the looks up to ``epoch``, an even one.
    """
    if epoch - SPAN < FIRST_EPOCH:
        return None
    averages = local_averages(eigenvalues)
    before, now = averages[-1 - BACK], averages[-1]
    # As IEEE's quotient, which is infinite above a mean of 0, and for 0 / 0 no number.
    grown = now / before > GROWTH if before else now > 0.0
    return epoch - SPAN if grown else None


def is_largest_decay(weight_decay: float) -> bool:
    """Return whether a weight decay is one at which the published code no longer stops: its
    logarithm and that of ``LARGEST_DECAY`` have a quotient of 1.0, rounded to one digit.
    """
    if weight_decay <= 0.0 or weight_decay == 1.0:
        return False
    return round(math.log(LARGEST_DECAY) / math.log(weight_decay), 1) == 1.0


class _Looks(nn.Module):
    """The eigenvalue of each look, NaN-free zeros for those to come."""

    eigenvalues: Tensor

    def __init__(self, epochs: int) -> None:
        super().__init__()
        count = sum(has_look(epoch, epochs) for epoch in range(epochs))
        self.register_buffer("eigenvalues", torch.zeros(count, dtype=torch.float64))


class _LooksAndLogits(_Looks):
    """And the operation logits at each look."""

    def __init__(self, epochs: int, logits: ArchLogits) -> None:
        super().__init__(epochs)
        for cell in CELL_TYPES:
            shape = (len(self.eigenvalues), *logits.ops(cell).shape)
            self.register_buffer(cell, torch.zeros(shape))

    def of(self, cell: str) -> Tensor:
        """Return the logits (looks, E, O) of ``"normal"`` or ``"reduce"``."""
        found: Tensor = getattr(self, cell)
        return found


class _LooksAndRollbacks(_Looks):
    """And how often the search was rolled back."""

    rollbacks: Tensor

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs)
        self.register_buffer("rollbacks", torch.zeros((), dtype=torch.int64))


@register_method("r-darts-es")
class RDartsEarlyStopping(DartsSecondOrder):
    """R-DARTS (arXiv 1909.09656), early stopping: the genotype of before the eigenvalue grew."""

    revision = 2  # 1: ES stopped at any weight decay, ADA rolled back up to 0.03
    memory: _Looks

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        epochs: int = 50,
        arch_weight_decay: float = 1e-3,
        weight_decay: float = 3e-4,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.arch_weight_decay, self.given_decay = arch_weight_decay, weight_decay
        self.memory = self.start_memory(epochs)
        self._eigenvalue: float | None = None

    def start_memory(self, epochs: int) -> _Looks:
        """Return what is remembered, before the first epoch."""
        return _LooksAndLogits(epochs, self.logits)

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {
            **super().options(config),
            "epochs": config.epochs,
            "arch_weight_decay": config.arch_weight_decay,
            "weight_decay": config.weight_decay,
        }

    def close_epoch(self, end: EpochEnd) -> int:
        """Look at the eigenvalue every second epoch; go back from where it has grown."""
        self._eigenvalue = None
        if not has_look(end.epoch, end.epochs):
            return end.epoch + 1
        self._eigenvalue = self.eigenvalue(end)
        look = -(-end.epoch // LOOK_EVERY)
        self.memory.eigenvalues[look] = self._eigenvalue
        self.remember(end, look)
        if end.is_last:
            return end.epoch + 1
        epoch = epoch_before_growth(self.memory.eigenvalues[: look + 1].tolist(), end.epoch)
        if epoch is None or is_largest_decay(self.weight_decay(self.given_decay)):
            return end.epoch + 1
        return self.go_back(end, epoch)

    def eigenvalue(self, end: EpochEnd) -> float:
        """Return the largest eigenvalue of the Hessian of the validation loss of one batch.

        As in the published code with the logits' weight decay in it, which adds itself.
        """
        with frozen(self.weights):
            hessian = operation_hessian(self.supernet, self.logits, self.validation_loss(end))
        return largest_eigenvalue(hessian) + self.arch_weight_decay

    def validation_loss(self, end: EpochEnd) -> Callable[[], Tensor]:
        """Return the loss that the Hessian is of: that of one batch, the epoch's last."""
        batch = end.arch_batch(end.steps - 1)

        def loss() -> Tensor:
            set_noise_generator(self._noises, end.draws(0))
            return weighted_loss(self.predict(batch, end), batch.labels, batch.weights)

        return loss

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return one for the gradient and one for each row of the Hessian."""
        return 1 + num_operation_logits(self.logits) if has_look(epoch, epochs) else 0

    def remember(self, end: EpochEnd, look: int) -> None:
        """Keep what ``go_back`` needs: the logits of each look."""
        assert isinstance(self.memory, _LooksAndLogits)
        for cell in CELL_TYPES:
            self.memory.of(cell)[look] = self.logits.ops(cell).detach()

    @torch.no_grad()
    def go_back(self, end: EpochEnd, epoch: int) -> int:
        """End the search with the logits of ``epoch``; return the epoch that comes next: none."""
        assert isinstance(self.memory, _LooksAndLogits)
        for cell in CELL_TYPES:
            self.logits.ops(cell).copy_(self.memory.of(cell)[epoch // LOOK_EVERY])
        return end.epochs

    def describe(self) -> dict[str, Any]:
        """Return the epoch's eigenvalue, None where it was not looked at."""
        return {"eigenvalue": self._eigenvalue}


@register_method("r-darts-ada")
class RDartsAda(RDartsEarlyStopping):
    """R-DARTS (arXiv 1909.09656), adaptive: back to before the eigenvalue grew, with more decay.

    It keeps seven states of weights, momentum and logits, on the device and in every checkpoint.
    """

    kept_states = SPAN // LOOK_EVERY + 1
    memory: _LooksAndRollbacks

    def start_memory(self, epochs: int) -> _LooksAndRollbacks:
        """Return what is remembered, before the first epoch."""
        return _LooksAndRollbacks(epochs)

    def remember(self, end: EpochEnd, look: int) -> None:
        """Keep the state at each look, the oldest one's in turn."""
        end.keep(look % self.kept_states)

    def go_back(self, end: EpochEnd, epoch: int) -> int:
        """Bring back the state of ``epoch`` and go on from there."""
        end.bring_back(epoch // LOOK_EVERY % self.kept_states)
        self.memory.rollbacks += 1
        return epoch + 1

    def weight_decay(self, given: float) -> float:
        """Return ``given``, ten times as much for each roll-back."""
        for _ in range(int(self.memory.rollbacks)):
            given *= DECAY_FACTOR
        return given

    def describe(self) -> dict[str, Any]:
        """Return the eigenvalue as ``r-darts-es``, and the weight decay of the epochs to come."""
        return {**super().describe(), "weight_decay": self.weight_decay(self.given_decay)}

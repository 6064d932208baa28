"""Schedules as pure functions of the step or epoch: there is no scheduler state to save."""

import math


def cosine(progress: float, start: float, end: float) -> float:
    """Return the cosine schedule from ``start`` (progress 0) to ``end`` (progress 1).

    DARTS's learning rate: progress is epoch / epochs, so that epoch 0 runs at ``start``.
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float, start: float, end: float) -> float:
    """Return the linear schedule from ``start`` (progress 0) to ``end`` (progress 1)."""
    return start + (end - start) * progress


def temperature(epoch: int, epochs: int, start: float, end: float) -> float:
    """Return the Gumbel-softmax temperature of an epoch: linear, reaching ``end`` in the last one.

    GDAS's schedule (arXiv 1910.04465); the D2NAS paper only says that the temperature falls.
    """
    return start if epochs == 1 else linear(epoch / (epochs - 1), start, end)


def warmup_cosine(step: int, steps: int, warmup_steps: int, start: float, end: float) -> float:
    """Return the learning rate of a step: a linear rise over ``warmup_steps``, then cosine."""
    if step < warmup_steps:
        return start * (step + 1) / warmup_steps
    return cosine((step - warmup_steps) / max(1, steps - warmup_steps), start, end)

"""Schedules as pure functions of the step or epoch: there is no scheduler state to save."""

import math

_SLOW_EPOCHS = 5


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


def linear_by_epoch(epoch: int, epochs: int, warmup_epochs: int, start: float) -> float:
    """Return PC-DARTS's learning rate on ImageNet (its code): by epoch, linear from ``start``.

    It would reach 0 five epochs before the end; these fall more slowly, from the last value above
    0 on. A training of five epochs or fewer is one straight line. The warm-up rises in steps of an
    epoch, on top.
    """
    left = epochs - epoch
    if epochs <= _SLOW_EPOCHS:
        rate = start * left / epochs
    elif left > _SLOW_EPOCHS:
        rate = start * (left - _SLOW_EPOCHS) / (epochs - _SLOW_EPOCHS)
    else:
        rate = start * left / ((epochs - _SLOW_EPOCHS) * _SLOW_EPOCHS)
    return rate * min(1.0, (epoch + 1) / warmup_epochs) if warmup_epochs else rate

"""Derivatives by numbers, to hold gradients against."""

from collections.abc import Callable

import torch


@torch.no_grad()
def central_difference(
    function: Callable[[], float], parameter: torch.Tensor, index: int, step: float = 1e-5
) -> float:
    """The slope of ``function`` along one element of ``parameter``, which is put back."""
    flat = parameter.view(-1)
    value = float(flat[index])
    ends = []
    for sign in (1, -1):
        flat[index] = value + sign * step
        ends.append(function())
    flat[index] = value
    return (ends[0] - ends[1]) / (2 * step)

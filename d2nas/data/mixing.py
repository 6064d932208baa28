"""Mixup and cutmix: images and classes of a batch mixed with one another."""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import send


class Mixture(NamedTuple):
    """Mixed images (N, C, H, W): each is by ``share`` of its own class, else of that of the image
    whose number is in ``partners`` (N,).
    """

    images: Tensor
    partners: Tensor
    share: float


def mix(inputs_NCHW: Tensor, *, mixup: float, cutmix: float, generator: torch.Generator) -> Mixture:
    """Mix each image with another of the batch, by one share drawn from Beta(a, a).

    ``mixup`` (arXiv 1710.09412) adds them, ``cutmix`` (arXiv 1905.04899) puts a rectangle of the
    other into it; each is its ``a``, 0 for never; where both are above 0 a coin decides.
    """
    number = int(torch.randint(2**62, (), generator=generator))
    draws = random.Random(number)
    partners_N = send(torch.randperm(len(inputs_NCHW), generator=generator), inputs_NCHW.device)
    cuts = cutmix > 0.0 and (mixup == 0.0 or draws.random() < 0.5)
    alpha = cutmix if cuts else mixup
    share = draws.betavariate(alpha, alpha)
    others_NCHW = inputs_NCHW[partners_N]
    if not cuts:
        mixed = inputs_NCHW.lerp(others_NCHW, 1.0 - share)
        return Mixture(mixed, partners_N, share)
    height, width = inputs_NCHW.shape[2:]
    side = (1.0 - share) ** 0.5
    row, column = draws.randrange(height), draws.randrange(width)
    top, bottom = (_clamped(row + sign * int(height * side) // 2, height) for sign in (-1, 1))
    left, right = (_clamped(column + sign * int(width * side) // 2, width) for sign in (-1, 1))
    mixed = inputs_NCHW.clone()
    mixed[:, :, top:bottom, left:right] = others_NCHW[:, :, top:bottom, left:right]
    cut = (bottom - top) * (right - left) / (height * width)
    return Mixture(mixed, partners_N, 1.0 - cut)


def _clamped(value: int, most: int) -> int:
    return min(max(value, 0), most)

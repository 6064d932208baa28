"""TrivialAugment (arXiv 2103.10158) of batches, by torchvision's operations on their device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..devices import send
from .augmentation import Part

LEVELS = 31
"""Strengths of an operation, evenly from none to its range."""
TRANSLATION = 32 / 224
"""Largest shift as a part of the side: 32 pixels where images are ImageNet's, as published."""

Operation = Callable[[Tensor, float], Tensor]
"""Changes uint8 images N x C x H x W by a strength in -1 to 1."""


def _sheared(axis: int) -> Operation:
    def change(images: Tensor, strength: float) -> Tensor:
        degrees = math.degrees(math.atan(0.99 * strength))
        shear = [degrees, 0.0] if axis == 0 else [0.0, degrees]
        changed: Tensor = F.affine(images, 0.0, [0, 0], 1.0, shear, center=[0.0, 0.0])
        return changed

    return change


def _moved(axis: int) -> Operation:
    def change(images: Tensor, strength: float) -> Tensor:
        pixels = int(strength * TRANSLATION * images.shape[-1])
        move = [pixels, 0] if axis == 0 else [0, pixels]
        changed: Tensor = F.affine(images, 0.0, move, 1.0, [0.0, 0.0])
        return changed

    return change


def _posterized(images: Tensor, strength: float) -> Tensor:
    changed: Tensor = F.posterize(images, 8 - round(6 * abs(strength)))
    return changed


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, _: images,
    "shear-x": _sheared(0),
    "shear-y": _sheared(1),
    "translate-x": _moved(0),
    "translate-y": _moved(1),
    "rotate": lambda images, s: F.rotate(images, 135.0 * s),
    "brightness": lambda images, s: F.adjust_brightness(images, 1.0 + 0.99 * s),
    "color": lambda images, s: F.adjust_saturation(images, 1.0 + 0.99 * s),
    "contrast": lambda images, s: F.adjust_contrast(images, 1.0 + 0.99 * s),
    "sharpness": lambda images, s: F.adjust_sharpness(images, 1.0 + 0.99 * s),
    "posterize": _posterized,
    "solarize": lambda images, s: F.solarize(images, 255.0 * (1.0 - abs(s))),
    "auto-contrast": lambda images, _: F.autocontrast(images),
    "equalize": lambda images, _: F.equalize(images),
}
"""TrivialAugment's wide space (arXiv 2103.10158), strengths by name."""


def trivial_augment(
    images_NCHW: Tensor, *, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Change each image by one operation of the wide space, drawn evenly (TrivialAugment).

    uint8 in, uint8 out. The strength, and its sign, is drawn once for the images of a batch that
    drew the same operation, so that each operation runs once: published is one for each image.
    """
    part = part or Part(len(images_NCHW), slice(None))
    drawn_N = torch.randint(len(OPERATIONS), (part.num_whole,), generator=generator)[part.own]
    strengths = torch.randint(LEVELS, (len(OPERATIONS),), generator=generator) / (LEVELS - 1)
    signs = 2 * torch.randint(2, (len(OPERATIONS),), generator=generator) - 1
    changed_NCHW = images_NCHW.clone()
    for index, (operation, strength) in enumerate(
        zip(OPERATIONS.values(), (strengths * signs).tolist(), strict=True)
    ):
        (own,) = torch.nonzero(drawn_N == index, as_tuple=True)
        if len(own):
            chosen = send(own, images_NCHW.device)
            changed_NCHW[chosen] = operation(images_NCHW[chosen], strength)
    return changed_NCHW

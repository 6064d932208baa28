"""Knowledge distillation: a trained teacher's probabilities beside the labels in a loss.

Hinton et al., arXiv 1503.02531.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.batches import Batches, channels_last
from ..devices import send
from .loop import EVALUATION_BATCH

Teacher = Callable[[Tensor], Tensor]
"""Logits (N, classes), float32, in the order of the data set's classes, of images (N, C, H, W) that
are normalised as for the network in training; on the device of the images."""

MAX_KEPT_BYTES = 256 * 2**20
"""Of answers that are kept; with more of them every batch is answered anew."""


def soft_losses(logits_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """Return for each image (N,) T^2 KL(teacher || network) of the softmax of logits / T.

    T^2, so that the gradient keeps its size when the temperature T changes (section 2).
    """
    own = F.log_softmax(logits_NC / temperature, dim=1)
    wanted = F.log_softmax(teacher_NC / temperature, dim=1)
    divergences_NC = F.kl_div(own, wanted, reduction="none", log_target=True)
    return temperature**2 * divergences_NC.sum(dim=1)


class Answers:
    """A teacher's logits for the batches of a training.

    Where a step's images are the data set's as they are, every image is answered once, in batches
    of the set's order: what a step sees then does not depend on where the training was continued.
    """

    def __init__(
        self, teacher: Teacher, batches: Batches, num_classes: int, *, mixes: bool
    ) -> None:
        self._teacher, self._batches = teacher, batches
        num_bytes = 4 * num_classes * len(batches.images)
        alone = batches.order.ranks.size == 1  # else each rank would answer all images
        self._keeps = alone and not (mixes or batches.augments) and num_bytes <= MAX_KEPT_BYTES
        self._kept: Tensor | None = None

    def of(self, step: int, images_NCHW: Tensor) -> Tensor:
        """Return the logits (N, classes) of a step's images. May raise what
        ``Batches.stalled`` raises, and what the teacher does.
        """
        if not self._keeps:
            return self._ask(images_NCHW)
        if self._kept is None:
            self._kept = self._all()
        return self._kept[send(self._batches.order.indices(step), self._kept.device)]

    def _all(self) -> Tensor:
        images, began, parts = self._batches.images, time.monotonic(), []
        for start in range(0, len(images), EVALUATION_BATCH):
            pixels = images.pixels(slice(start, start + EVALUATION_BATCH))
            parts.append(self._ask(channels_last(self._batches.normalizer(pixels))))
            self._batches.stalled(time.monotonic() - began)
        return torch.cat(parts)

    def _ask(self, images_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return self._teacher(images_NCHW)

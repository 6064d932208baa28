"""Weights of classes in a loss, so that rare classes count for more than their images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import ClassWeights


def class_weights(kind: ClassWeights, counts: Sequence[int]) -> Tensor | None:
    """Return the weight of each class, float32 (classes,), for ``counts`` of training images; None
    for ``none``.

    ``balanced``: 1 / n_c, so that every class adds as much to the loss; ``sqrt``: its square root,
    between that and no weights. The mean over the training images is 1, so that learning rate and
    weight decay keep their meaning. A class without images has weight 0.
    """
    if kind == "none":
        return None
    counts_C = torch.tensor(counts, dtype=torch.float64)
    weights_C = counts_C.clamp(min=1.0).pow(-1.0 if kind == "balanced" else -0.5)
    weights_C = weights_C * (counts_C > 0)
    mean = (weights_C * counts_C).sum() / counts_C.sum()
    return (weights_C / mean).float()

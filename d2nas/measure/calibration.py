"""Calibration: the loss at the temperature that suits a network best.

Accuracy counts answers, and few of them differ between two good networks. The cross-entropy uses
every image's margin, but that of a network that knows its training images by heart says mostly how
much too sure it is. One number, the temperature (Guo et al., arXiv 1706.04599, 4.2), takes that
out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_STEPS = 60
_LARGEST = 1e3


def calibrated_loss(
    logits_NC: Tensor, labels_N: Tensor, weights_N: Tensor | None = None
) -> tuple[float, float]:
    """Return the smallest mean cross-entropy (nats) of ``logits / temperature``, and the latter;
    with ``weights_N`` of images of a weighted mean.

    Fitted on these very images, which one number for all of them hardly exploits: it describes the
    logits, and is no recipe for serving. Temperatures from 1/1000 to 1000 are looked at.
    """
    losses, temperatures = calibrated_losses(logits_NC[None], labels_N, weights_N)
    return float(losses[0]), float(temperatures[0])


def calibrated_losses(
    logits_KNC: Tensor, labels_N: Tensor, weights_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``calibrated_loss`` of K networks on the same images: losses and temperatures, (K,),
    float64; with ``weights_N`` of images these of weighted means.

    The loss is convex in the inverse temperature, whose best value bisection finds.
    """
    logits_KNC = logits_KNC.double()
    labels_KN = labels_N.expand(logits_KNC.shape[:2])
    given_KN = logits_KNC.gather(2, labels_KN[..., None]).squeeze(2)
    low_K = logits_KNC.new_full(logits_KNC.shape[:1], 1.0 / _LARGEST)
    high_K = torch.full_like(low_K, _LARGEST)
    for _ in range(_STEPS):
        middle_K = (low_K * high_K).sqrt()
        # The derivative of the mean cross-entropy by the inverse temperature.
        probabilities_KNC = F.softmax(logits_KNC * middle_K[:, None, None], dim=2)
        expected_KN = (probabilities_KNC * logits_KNC).sum(dim=2)
        too_high_K = _means(expected_KN - given_KN, weights_N) > 0
        high_K = torch.where(too_high_K, middle_K, high_K)
        low_K = torch.where(too_high_K, low_K, middle_K)
    inverse_K = (low_K * high_K).sqrt()
    losses_K = cross_entropies(logits_KNC * inverse_K[:, None, None], labels_N, weights_N)
    return losses_K, 1.0 / inverse_K


def cross_entropies(
    logits_KNC: Tensor, labels_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropies (nats) of K networks on the same images, (K,), each image's
    times its weight.
    """
    labels_KN = labels_N.expand(logits_KNC.shape[:2])
    losses_KN = F.cross_entropy(logits_KNC.transpose(1, 2), labels_KN, reduction="none")
    return _means(losses_KN, weights_N)


def _means(values_KN: Tensor, weights_N: Tensor | None) -> Tensor:
    return (values_KN if weights_N is None else values_KN * weights_N).mean(dim=1)

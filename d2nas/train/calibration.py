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


def calibrated_loss(logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Return the smallest mean cross-entropy (nats) of ``logits / temperature``, and the latter.

    Fitted on these very images, which one number for all of them hardly exploits: it describes the
    logits, and is no recipe for serving. Temperatures from 1/1000 to 1000 are looked at. The loss
    is convex in the inverse temperature, whose best value bisection finds.
    """
    logits_NC = logits_NC.double()
    low, high = 1.0 / _LARGEST, _LARGEST
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        if _slope(logits_NC, labels_N, middle) > 0:
            high = middle
        else:
            low = middle
    inverse = (low * high) ** 0.5
    return float(F.cross_entropy(logits_NC * inverse, labels_N)), 1.0 / inverse


def _slope(logits_NC: Tensor, labels_N: Tensor, inverse: float) -> float:
    """Return the derivative of the mean cross-entropy by the inverse temperature."""
    probabilities_NC = F.softmax(logits_NC * inverse, dim=1)
    expected_N = (probabilities_NC * logits_NC).sum(dim=1)
    given_N = logits_NC.gather(1, labels_N[:, None]).squeeze(1)
    return float(torch.mean(expected_N - given_N))

"""The loss at the best temperature: by hand, and what it does not depend on."""

import math

import pytest
import torch
from torch.nn import functional as F

from d2nas.measure.calibration import calibrated_loss


def made(num: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (num,), generator=draw)
    return torch.randn(num, 5, generator=draw) + 2.0 * F.one_hot(labels, 5), labels


def test_two_classes_by_hand() -> None:
    """Three of four right with a margin of 8: the best probability of the answer is 3/4."""
    logits = torch.tensor([[8.0, 0.0]] * 4)
    labels = torch.tensor([0, 0, 0, 1])
    loss, temperature = calibrated_loss(logits, labels)
    assert loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert temperature == pytest.approx(8.0 / math.log(3.0))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_how_sure_a_network_is_changes_nothing(scale: float) -> None:
    logits, labels = made()
    loss, temperature = calibrated_loss(logits, labels)
    scaled_loss, scaled_temperature = calibrated_loss(logits * scale, labels)
    assert scaled_loss == pytest.approx(loss, rel=1e-6)
    assert scaled_temperature == pytest.approx(scale * temperature, rel=1e-6)
    # Control: of the plain loss that is not true.
    if scale != 1.0:
        assert float(F.cross_entropy(logits * scale, labels)) > 1.05 * loss


def test_no_other_temperature_is_better() -> None:
    logits, labels = made()
    loss, temperature = calibrated_loss(logits, labels)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = float(F.cross_entropy(logits.double() / (temperature * factor), labels))
        assert other > loss


def test_answers_that_are_all_right_or_all_wrong_stay_finite() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    right, cold = calibrated_loss(logits, torch.tensor([0, 1]))
    assert right < 1e-6
    assert cold == pytest.approx(1e-3)
    wrong, hot = calibrated_loss(logits, torch.tensor([1, 0]))
    assert wrong == pytest.approx(math.log(3.0), rel=1e-2)
    assert hot == pytest.approx(1e3)

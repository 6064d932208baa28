"""SmoothDARTS (Chen and Hsieh, arXiv 2002.05283): weights trained under perturbed mixtures.

The architecture half is DARTS's of first order. In the weight half the mixture's weights, the
softmax of the logits, are moved inside a box of a radius that grows by epoch, and brought back to
the simplex: by random noise (``sdarts-rs``, Eq. 7) or against the loss (``sdarts-adv``, Eq. 8).
Weights so trained do well around the mixture, and so, is the hope, at its discretization.

As the published code (xiangning-chen/SmoothDARTS): the radius is 0.03 in the first of 50 epochs and
0.2946 in the last; the projection does not go back into the box; gradients are taken in the
mixture's weights, shared by all cells of a type; the adversary sees batch norm's running
statistics, which lag behind the weights at first. S0 is searched without ``none``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..nn.mixed_supernet import MixtureWeights, mixture_weights
from ..nn.operations import set_noise_generator
from ..spaces import CELL_TYPES
from .base import Batch, Measured, StepContext, register_method
from .darts import Darts
from .passes import frozen, measure, weighted_loss

SMALLEST_RADIUS, LARGEST_RADIUS = 0.03, 0.3
"""Of the box of perturbations, at the beginning and in the limit."""
ATTACK_STEPS = 7
"""Steps of the adversary."""


def radius(epoch: int, epochs: int) -> float:
    """Return the box's radius in an epoch, counted from 0: linear."""
    return SMALLEST_RADIUS + (LARGEST_RADIUS - SMALLEST_RADIUS) * epoch / epochs


def onto_simplex(weights_EO: Tensor, exists_EO: Tensor) -> Tensor:
    """Return weights (E, O) made a distribution on each edge.

    Each is clamped to [0, 1]; where none is left, the largest becomes 1; then they are divided by
    their sum. Columns without a candidate, where ``exists_EO`` is false, weigh 0.
    """
    masked_EO = weights_EO.masked_fill(~exists_EO, -torch.inf)
    clamped_EO = masked_EO.clamp(0.0, 1.0)
    largest_EO = torch.zeros_like(clamped_EO)
    largest_EO.scatter_(1, masked_EO.argmax(dim=1, keepdim=True), 1.0)
    sum_E1 = clamped_EO.sum(dim=1, keepdim=True)
    clamped_EO = torch.where(sum_E1 == 0.0, largest_EO, clamped_EO)
    return clamped_EO / clamped_EO.sum(dim=1, keepdim=True)


def perturbed(
    clean: Sequence[Tensor], noises: Sequence[Tensor], exists: Sequence[Tensor]
) -> list[Tensor]:
    """Return each cell type's weights plus noise (both (E, O)), on the simplex."""
    return [
        onto_simplex(weights_EO + noise_EO, exists_EO)
        for weights_EO, noise_EO, exists_EO in zip(clean, noises, exists, strict=True)
    ]


def adversarial(
    clean: Sequence[Tensor],
    start: Sequence[Tensor],
    exists: Sequence[Tensor],
    loss: Callable[[Sequence[Tensor]], Tensor],
    *,
    radius: float,
    steps: int = ATTACK_STEPS,
) -> list[Tensor]:
    """Return weights (E, O) of each cell type, near the ``clean`` ones, at which ``loss`` is high.

    Projected gradient ascent from ``start``: steps of 2 / ``steps`` of the radius along the
    gradient's signs, each back into the box around the clean weights and then onto the simplex.
    The clean ones where that has lowered the loss.
    """
    with torch.no_grad():
        before = loss(clean)
    found = [weights.detach() for weights in start]
    for _ in range(steps):
        leaves = [weights.requires_grad_() for weights in found]
        gradients = torch.autograd.grad(loss(leaves), leaves, allow_unused=True)
        found = [
            _ascended(*parts, radius=radius, step=2 * radius / steps)
            for parts in zip(found, gradients, clean, exists, strict=True)
        ]
    with torch.no_grad():
        return list(clean) if before > loss(found) else found


@torch.no_grad()
def _ascended(
    weights_EO: Tensor,
    gradient_EO: Tensor | None,
    clean_EO: Tensor,
    exists_EO: Tensor,
    *,
    radius: float,
    step: float,
) -> Tensor:
    if gradient_EO is None:  # a cell type that the network does not have
        return weights_EO.detach()
    moved_EO = weights_EO + step * gradient_EO.sign()
    boxed_EO = torch.minimum(torch.maximum(moved_EO, clean_EO - radius), clean_EO + radius)
    return onto_simplex(boxed_EO, exists_EO)


@register_method("sdarts-rs")
class SdartsRandom(Darts):
    """SDARTS-RS (arXiv 2002.05283): weights trained under randomly perturbed mixtures."""

    searches_none = False

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the training loss in the weights, at perturbed mixture weights."""
        set_noise_generator(self._noises, context.draws(0))
        weights = self.perturbed_weights(batch, context)
        loss, accuracy = measure(self.predict(batch, context, weights), batch.labels, batch.weights)
        torch.autograd.backward(loss)
        return Measured(loss.detach(), accuracy, loss.detach())

    def perturbed_weights(self, batch: Batch, context: StepContext) -> MixtureWeights:
        """Return the mixture's weights plus uniform noise."""
        return self._pairs(self._random_start(context))

    def _clean(self) -> list[Tensor]:
        with torch.no_grad():
            return [mixture_weights(self.logits, cell)[0] for cell in CELL_TYPES]

    def _exists(self) -> list[Tensor]:
        return [self.logits.choosable(cell, none_too=True) for cell in CELL_TYPES]

    def _random_start(self, context: StepContext) -> list[Tensor]:
        clean, numbers = self._clean(), context.draws(2)
        size = radius(context.epoch, context.epochs)
        noises = [
            torch.empty_like(weights).uniform_(-size, size, generator=numbers) for weights in clean
        ]
        return perturbed(clean, noises, self._exists())

    def _pairs(self, weights: Sequence[Tensor]) -> MixtureWeights:
        return {cell: (own, None) for cell, own in zip(CELL_TYPES, weights, strict=True)}


@register_method("sdarts-adv")
class SdartsAdversarial(SdartsRandom):
    """SDARTS-ADV (arXiv 2002.05283): weights trained under mixtures perturbed against the loss."""

    passes = (1, ATTACK_STEPS + 3)  # the adversary's steps, two looks without a backward, the last
    several_processes = False  # each rank's adversary would see its own images
    precisions = ("fp32", "tf32")  # a supernet is evaluated in the type of its weights

    def perturbed_weights(self, batch: Batch, context: StepContext) -> MixtureWeights:
        """Return the mixture's weights, moved against the training loss."""

        def loss(weights: Sequence[Tensor]) -> Tensor:
            prediction = self.predict(batch, context, self._pairs(weights))
            return weighted_loss(prediction, batch.labels, batch.weights)

        start = self._random_start(context)
        self.supernet.eval()
        try:
            with frozen(self.weights):
                found = adversarial(
                    self._clean(),
                    start,
                    self._exists(),
                    loss,
                    radius=radius(context.epoch, context.epochs),
                )
        finally:
            self.supernet.train()
        return self._pairs(found)

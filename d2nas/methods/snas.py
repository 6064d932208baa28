"""SNAS (Xie et al., arXiv 1812.09926): all operations, weighed by draws of a concrete distribution.

The mixture's weights are softmax((logits + Gumbel noise) / temperature), one draw per step for all
cells of a type (Eq. 5); as the temperature falls, a draw comes close to one operation per edge.
One backward gives the gradients of weights and logits, from the same images (section 2.1): here
the weight half's, whose part of the training images is ``data.validation_fraction``'s rest; the
published search takes all 50,000. Each then moves by SGD, the logits without momentum and decay.

As the published code (SNAS-Series): logits start at N(1, 0.01); the temperature falls linearly to
0.03, in the first epoch already below 1; drop-path of 0.3 from the first epoch on; the logits'
gradients are clipped at a norm of 10; S0 with ``none``. Its final network has all edges, ``none``
among them; here DARTS's rule keeps two per node and derives no ``none`` (ours, so that cells are
compared in the same form). No resource loss, which is optional there.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..config import TRAINING_KEYS, SearchConfig
from ..nn.mixed_supernet import MixtureWeights
from ..nn.operations import set_noise_generator
from ..nn.sampling import ArchLogits, GumbelNoise, choice_probabilities, draw_noise
from ..spaces import CELL_TYPES, SearchSpace
from .base import D2NAS_KEYS, Batch, Measured, Sizes, StepContext, register_method
from .darts import Darts
from .passes import measure

EPOCHS = 150
FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.03
LARGEST_LOGIT_GRADIENT = 10.0
"""Norm at which the gradient of the logits is clipped."""


def concrete_weights(
    logits: ArchLogits, noises: Mapping[str, GumbelNoise], temperature: float
) -> MixtureWeights:
    """Return each cell type's operation weights (E, O) by its noise, differentiable in the logits.

    Columns past an edge's last candidate weigh 0.
    """
    return {
        cell: (
            choice_probabilities(
                logits.ops(cell),
                logits.edges(cell),
                logits.choosable(cell, none_too=True),
                noises[cell],
                temperature,
            )[0],
            None,
        )
        for cell in CELL_TYPES
    }


@register_method("snas")
class Snas(Darts):
    """SNAS (arXiv 1812.09926): mixtures drawn at a falling temperature, one gradient for all."""

    keeps_limits = False  # its logits move with the weights
    revision = 2  # 1: drop-path rising from 0, no clip of the logits' gradient
    passes = (0, 1)  # single-level: the weight half moves the logits, too
    several_processes = False  # nobody would add up the logits' gradients
    recipe: Mapping[str, Any] = {
        "epochs": EPOCHS,
        "weight_lr": 0.025,
        "drop_path": 0.3,
        "temperature_end": LAST_TEMPERATURE,
    }
    unread = (
        *D2NAS_KEYS,
        *TRAINING_KEYS,
        "warmup_epochs",
        "arch_beta1",
        "arch_beta2",
        "arch_weight_decay",
    )

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        arch_lr: float = 3e-4,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.arch_lr = arch_lr
        with torch.no_grad():
            for cell in CELL_TYPES:
                self.logits.ops(cell).mul_(10.0).add_(1.0)  # they are 1e-3 times N(0, 1)

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values over its own, with the temperature of the first epoch."""
        values = super().settings(given)
        epochs = values["epochs"]
        if isinstance(epochs, int) and epochs > 0:
            last = values["temperature_end"]
            if isinstance(last, int | float):
                start = FIRST_TEMPERATURE - (FIRST_TEMPERATURE - last) / epochs
                values.setdefault("temperature_start", start)
        return values

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {
            **super().options(config),
            "arch_lr": config.arch_lr,
        }

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the training loss of one draw in all parameters; move the logits."""
        set_noise_generator(self._noises, context.draws(0))
        numbers = context.draws(2)
        noises = {cell: draw_noise(self.logits.ops(cell), numbers) for cell in CELL_TYPES}
        weights = concrete_weights(self.logits, noises, context.temperature)
        loss, accuracy = measure(self.predict(batch, context, weights), batch.labels, batch.weights)
        torch.autograd.backward(loss)
        self._move_logits()
        return Measured(loss.detach(), accuracy, loss.detach())

    def drop_path_at(self, epoch: int, epochs: int) -> float:
        """Return drop-path's probability: the same in all epochs."""
        return self.drop_path

    @torch.no_grad()
    def _move_logits(self) -> None:
        """Take SGD's step, unless a gradient is not finite: the loop then tells so of the loss."""
        torch.nn.utils.clip_grad_norm_(self.logits.parameters(), LARGEST_LOGIT_GRADIENT)
        gradients = {
            logits: logits.grad for logits in self.logits.parameters() if logits.grad is not None
        }
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
        for logits, gradient in gradients.items():
            if finite:
                logits.sub_(self.arch_lr * gradient)
            logits.grad = None

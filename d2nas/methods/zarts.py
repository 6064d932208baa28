"""ZARTS (Wang et al., arXiv 2110.04743): steps of the logits, judged by networks tuned after them.

At every tenth step four steps of the logits are drawn around minus the gradient of the validation
loss. After each, a copy of the supernet is tuned on ten batches of the weight half, and its loss on
the validation batch says how good the step is. The logits move by the mean of the four, weighed by
exp(-loss / 0.01) over the density of the draw (the paper's MGS, importance sampling): no learning
rate, no Adam, no decay of the logits. They rest for the first fifth of the search.

This is the paper's search. Its published code (vicFigure/ZARTS) does another: the optimizer that it
gives a copy is the supernet's, so that no weight of a copy moves, and it tunes on the validation
half. Here a copy has SGD of its own, and learns from the batches that the supernet learns from
next; ours, where the paper is silent: at the rate of the step, with momentum from zero on, its
gradients clipped as the supernet's.

As the published code: a step is 0.999 times a draw around minus the gradient plus 0.001 times one
around 0; their standard deviation falls by cosine from 0.025 on; of the density's two terms the
second has the variance as a factor where a divisor was meant (in S0 to S4 that changes a weight by
less than a thousandth); 48 images in a batch of the tuning; S0 without ``none``. There the weights
are exponentials in float32, which overflow when a loss falls by 0.8; here they are taken from
their logarithms.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..nn.operations import set_noise_generator
from ..nn.sampling import ArchLogits
from ..spaces import CELL_TYPES, SearchSpace
from .base import Batch, Measured, Sizes, StepContext, register_method
from .darts import Darts
from .passes import measure

SAMPLES = 4
"""Steps of the logits that are drawn and tried."""
TUNING_STEPS = 10
"""Weight steps of a copy; also those of the supernet from one architecture half to the next."""
TUNING_IMAGES = 48
"""Images of a batch that a copy is tuned on, at most."""
LARGEST_DEVIATION = 0.025
"""Standard deviation of the drawn steps, at first."""
TEMPERATURE = 0.01
"""Divides the losses."""
ZERO_SHARE = 1e-3
"""The part of a drawn step, and of its density, that is around 0."""
DENSITY_FLOOR = 1e-4
"""Added to the density."""


def deviation(epoch: int, epochs: int, warmup: int) -> float:
    """Return the standard deviation of drawn steps in an epoch, counted from 0: cosine, from the
    second epoch after the warm-up on.
    """
    progress = max(0, epoch - warmup - 1) / (epochs - warmup)
    return LARGEST_DEVIATION * (1 + math.cos(math.pi * progress)) / 2


def drawn_step(gradient: Tensor, noises: Tensor, size: float) -> Tensor:
    """Return a step of logits of the shape of ``gradient``, from standard normal noises (2, ...)
    and a standard deviation.
    """
    around_gradient, around_zero = size * noises
    step: Tensor = (1 - ZERO_SHARE) * (around_gradient - gradient) + ZERO_SHARE * around_zero
    return step


def step_weights(losses_M: Tensor, distances_M: Tensor, norms_M: Tensor, size: float) -> Tensor:
    """Return the weights (M,), of sum 1, of M steps by the losses after them.

    ``distances_M``: the squared distances of the steps from minus the gradient; ``norms_M``: their
    squared norms; ``size``: the standard deviation that they were drawn with.
    """
    around_gradient_M = torch.exp(-distances_M / (2 * size**2))
    around_zero_M = torch.exp(-norms_M / 2 * size**2)
    density_M = (1 - ZERO_SHARE) * around_gradient_M + ZERO_SHARE * around_zero_M
    return torch.softmax(-losses_M / TEMPERATURE - torch.log(density_M + DENSITY_FLOOR), dim=0)


@register_method("zarts")
class Zarts(Darts):
    """ZARTS (arXiv 2110.04743), as the paper: steps drawn, and weighed by tuned copies' losses."""

    keeps_limits = False  # its steps are drawn and weighed
    searches_none = False
    architecture_interval = TUNING_STEPS
    passes = (1 + SAMPLES * (TUNING_STEPS + 1), 1)  # the gradient; each copy's tuning and its look
    several_processes = False  # each rank would tune on its own images
    recipe: Mapping[str, Any] = {**Darts.recipe, "epochs": 50}
    unread = (
        *Darts.unread,
        "weight_optimizer",
        "arch_lr",
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
        warmup: int = 0,
        clip_norm: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.warmup, self.clip_norm = warmup, clip_norm
        self.samples, self.tuning_steps = SAMPLES, TUNING_STEPS

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values over its own, with SGD, which tunes the copies, in any case, and
        a fifth of the epochs to train weights alone.
        """
        values = super().settings({**given, "weight_optimizer": "sgd"})
        epochs = values["epochs"]
        if "warmup_epochs" not in given and isinstance(epochs, int):
            values["warmup_epochs"] = epochs // 5
        return values

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {
            **super().options(config),
            "warmup": config.warmup_epochs,
            "clip_norm": config.clip_norm,
        }

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Put minus the step of the logits in place of their gradients; what is measured is the
        validation loss before it.
        """
        measured = super().architecture_gradients(batch, context)
        size = deviation(context.epoch, context.epochs, self.warmup)
        numbers = context.draws(2 * TUNING_STEPS + 2)
        # A cell type that the network does not have gets no gradient, and no step.
        gradients = {
            cell: gradient
            for cell in CELL_TYPES
            if (gradient := self.logits.ops(cell).grad) is not None
        }
        steps = [
            {
                cell: drawn_step(gradient, self.noises(cell, numbers), size)
                for cell, gradient in gradients.items()
            }
            for _ in range(self.samples)
        ]
        losses_M = self._losses_after(steps, batch, context)
        away = [{cell: own + gradients[cell] for cell, own in step.items()} for step in steps]
        weights_M = step_weights(losses_M, _squared_norms(away), _squared_norms(steps), size)
        for cell, gradient in gradients.items():
            weighed = [
                weight * step[cell] for weight, step in zip(weights_M.tolist(), steps, strict=True)
            ]
            gradient.copy_(-torch.stack(weighed).sum(0))
        return measured

    def noises(self, cell: str, numbers: torch.Generator) -> Tensor:
        """Return standard normal noises (2, E, O) of a cell type's candidates; 0 past the last."""
        logits = self.logits.ops(cell)
        noises = torch.randn(2, *logits.shape, generator=numbers, dtype=logits.dtype)
        return noises * self.logits.choosable(cell, none_too=True)

    @torch.no_grad()
    def update_logits(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step that ``architecture_gradients`` has found."""
        for logits in self.logits.parameters():
            if logits.grad is not None:
                logits.sub_(logits.grad)

    def _losses_after(
        self, steps: Sequence[Mapping[str, Tensor]], batch: Batch, context: StepContext
    ) -> Tensor:
        """Return the loss (M,) after each step of the logits and the tuning that follows it.

        The supernet itself is tuned, and then has again the weights and statistics of before.
        """
        tuning = [context.weight_batch(index) for index in range(self.tuning_steps)]
        kept = {name: value.clone() for name, value in self.supernet.state_dict().items()}
        losses = []
        for step in steps:
            moved = copy.deepcopy(self.logits).requires_grad_(False)
            for cell, own in step.items():
                moved.ops(cell).add_(own)
            self._tune(tuning, context, moved)
            with torch.no_grad():
                loss, _ = measure(
                    self._predict(batch, context, moved, 0), batch.labels, batch.weights
                )
            losses.append(loss)
            self.supernet.load_state_dict(kept)
        return torch.stack(losses).to("cpu", torch.float64)

    def _tune(self, batches: Sequence[Batch], context: StepContext, logits: ArchLogits) -> None:
        """Train the weights at these logits, a step for each batch."""
        (group,) = context.weight_optimizer.param_groups
        optimizer = torch.optim.SGD(
            self.weights,
            lr=context.weight_lr,
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )
        optimizer.zero_grad()  # of the supernet's last step
        for index, batch in enumerate(batches):
            part = batch.first(TUNING_IMAGES)
            loss, _ = measure(
                self._predict(part, context, logits, index + 1), part.labels, part.weights
            )
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    def _predict(
        self, batch: Batch, context: StepContext, logits: ArchLogits, number: int
    ) -> Tensor:
        """Return the prediction, whose random numbers depend on its ``number``, so that all copies
        have the same; 0 has those of the validation loss before the step.
        """
        set_noise_generator(self._noises, context.draws(2 * number))
        return self.predict(batch, context, logits, look=2 * number + 1)


def _squared_norms(steps: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the squared norm (M,) of each step, over both cell types."""
    norms = [sum(float(own.double().square().sum()) for own in step.values()) for step in steps]
    return torch.tensor(norms, dtype=torch.float64)

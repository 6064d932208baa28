"""DARTS (Liu et al., arXiv 1806.09055), first and second order, and PC-DARTS's supernet.

Every operation of every edge is computed, weighted by the softmax of the logits. The second order
takes the architecture's gradient after a weight step looked ahead (Eq. 7), with a finite
difference in place of the second derivative (Eq. 8).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import TRAINING_KEYS, SearchConfig
from ..genotype import Genotype
from ..nn.mixed_supernet import MixedSupernet, MixtureWeights
from ..nn.network import DropPath
from ..nn.operations import noises_in, set_noise_generator
from ..nn.sampling import ArchLogits
from ..spaces import SearchSpace
from .base import D2NAS_KEYS, Batch, EpochEnd, Measured, Method, Sizes, StepContext, register_method
from .derivation import darts_scores, derive_darts
from .passes import frozen, measure

FINITE_DIFFERENCE = 0.01
"""Eq. 8's epsilon times the norm of the gradient it goes along."""


@register_method("darts")
class Darts(Method):
    """DARTS of first order: every operation computed, by Eq. 5."""

    channel_divisor = 1
    """The part of the channels that an edge computes, as PC-DARTS; 1: all of them."""
    extra: tuple[str, ...] = ()
    """Operations of every edge besides its candidates (``MixedSupernet``)."""
    supernet: MixedSupernet
    passes = (1, 1)
    searches_none = True
    learns_edges = False
    keeps_limits = True
    recipe: Mapping[str, Any] = {"weight_lr": 0.025}
    unread: Collection[str] = (*D2NAS_KEYS, *TRAINING_KEYS, "temperature_start", "temperature_end")

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        recompute: str,
        drop_path: float = 0.0,
    ) -> None:
        self.supernet = MixedSupernet(
            space,
            num_cells=sizes.num_cells,
            init_channels=sizes.init_channels,
            num_classes=sizes.num_classes,
            in_channels=sizes.in_channels,
            stem=sizes.stem,
            channel_divisor=self.channel_divisor,
            recompute=recompute,
            extra=self.extra,
        )
        self._noises = noises_in(self.supernet)
        self.logits = ArchLogits(space, generator=generator)
        self.drop_path = drop_path

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method with a fresh mixed supernet."""
        return cls(space, sizes, generator, **cls.options(config))

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {"recompute": config.recompute, "drop_path": config.drop_path}

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the genotype by the rule of the published code."""
        return derive_darts(logits, logits.space)

    @classmethod
    def choice_scores(cls, logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the weights that DARTS's rule compares."""
        return darts_scores(logits, cell_type)

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the validation loss at the weights as they are."""
        set_noise_generator(self._noises, context.draws(0))
        with frozen(self.weights):
            return self._backward(batch, context)

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the training loss, the logits held fixed."""
        set_noise_generator(self._noises, context.draws(0))
        with frozen(list(self.logits.parameters())):
            return self._backward(batch, context)

    def mixture(self, epoch: int = 0, epochs: int = 1) -> ArchLogits | MixtureWeights:
        """Return what weighs the operations in an epoch: the logits, by their softmax."""
        return self.logits

    def predict(
        self,
        batch: Batch,
        context: StepContext | EpochEnd,
        weights: ArchLogits | MixtureWeights | None = None,
        *,
        look: int = 1,
    ) -> Tensor:
        """Return the supernet's logits (N, classes) by ``weights``, else by ``mixture``.

        ``look``: which of the context's generators draws the masks of drop-path; 0 draws noise.
        """
        given = self.mixture(context.epoch, context.epochs) if weights is None else weights
        probability = self.drop_path_at(context.epoch, context.epochs)
        prediction: Tensor = self.supernet(
            batch.images, given, DropPath(probability, context.draws(look))
        )
        return prediction

    def drop_path_at(self, epoch: int, epochs: int) -> float:
        """Return drop-path's probability in an epoch: rising linearly from 0, as R-DARTS."""
        return self.drop_path * epoch / max(1, epochs - 1)

    def _backward(self, batch: Batch, context: StepContext) -> Measured:
        loss, accuracy = measure(self.predict(batch, context), batch.labels, batch.weights)
        torch.autograd.backward(loss)
        return Measured(loss.detach(), accuracy, loss.detach())


@register_method("pc-darts-4")
class PcDarts4(Darts):
    """PC-DARTS (arXiv 1907.05737) on a quarter of the channels, with edge logits."""

    channel_divisor = 4
    warms_up = True
    learns_edges = True
    recipe: Mapping[str, Any] = {
        "batch_size": 256,
        "weight_lr": 0.1,
        "weight_lr_min": 0.0,
        "arch_lr": 6e-4,
    }


@register_method("pc-darts-2")
class PcDarts2(PcDarts4):
    """PC-DARTS on half of the channels."""

    channel_divisor = 2


@register_method("darts-second-order")
class DartsSecondOrder(Darts):
    """DARTS of second order: a weight step looked ahead (Eq. 7-8), five passes a step."""

    passes = (4, 1)
    several_processes = False  # the look ahead would be at each rank's own images
    precisions = ("fp32",)  # Eq. 8's step is smaller than bf16 can add to a weight

    unread = (*Darts.unread, "weight_optimizer")  # Eq. 7 looks a step of SGD ahead

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values over its own, with SGD in any case."""
        return super().settings({**given, "weight_optimizer": "sgd"})

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the validation loss after one weight step, through that step (Eq. 7).

        Candidates that draw noise draw the same at each of the three looks at the training batch,
        and so does drop-path.
        """
        noise = context.draws(0)
        training_noise = noise.get_state()
        set_noise_generator(self._noises, noise)
        weights = self.weights
        logits = list(self.logits.parameters())
        kept = [weight.detach().clone() for weight in weights]
        training = context.weight_batch()
        ahead = self._gradients(training, context, weights)
        _set(weights, _look_ahead(kept, ahead, context))
        loss, accuracy = measure(self.predict(batch, context, look=2), batch.labels, batch.weights)
        found = torch.autograd.grad(loss, [*logits, *weights], allow_unused=True)
        direction, along = found[: len(logits)], found[len(logits) :]
        epsilon = FINITE_DIFFERENCE / _norm(along)
        differences = []
        for sign in (1.0, -1.0):
            _set(weights, _moved(kept, along, sign * epsilon))
            noise.set_state(training_noise)
            differences.append(self._gradients(training, context, logits))
        _set(weights, kept)
        for parameter, gradient, plus, minus in zip(logits, direction, *differences, strict=True):
            if gradient is not None and plus is not None and minus is not None:
                second = (plus - minus) / (2 * epsilon).to(plus.device)
                parameter.grad = gradient - context.weight_lr * second
        return Measured(loss.detach(), accuracy, loss.detach())

    def _gradients(
        self, batch: Batch, context: StepContext, wanted: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        loss, _ = measure(self.predict(batch, context), batch.labels, batch.weights)
        return torch.autograd.grad(loss, wanted, allow_unused=True)


def _look_ahead(
    weights: Sequence[Tensor], gradients: Sequence[Tensor | None], context: StepContext
) -> list[Tensor]:
    """Return the weights after the SGD step that these gradients would make."""
    optimizer = context.weight_optimizer
    (group,) = optimizer.param_groups
    moved = []
    for parameter, weight, gradient in zip(group["params"], weights, gradients, strict=True):
        if gradient is None:
            moved.append(weight)
            continue
        step = gradient + group["weight_decay"] * weight
        velocity = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if velocity is not None:
            step = step + group["momentum"] * velocity
        moved.append(weight - context.weight_lr * step)
    return moved


def _moved(
    weights: Sequence[Tensor], along: Sequence[Tensor | None], distance: Tensor
) -> list[Tensor]:
    return [
        weight if direction is None else weight + distance * direction
        for weight, direction in zip(weights, along, strict=True)
    ]


def _norm(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.nn.utils.get_total_norm([tensor for tensor in tensors if tensor is not None])


@torch.no_grad()
def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)

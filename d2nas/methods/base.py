"""Interface of a search method: a supernet, logits, and two gradients.

The loop (``search``) owns data, optimizers, schedules and checks. A method says how a batch of the
architecture half becomes a gradient of the logits, and one of the weight half a gradient of the
weights. One sub-network's forward and backward on one batch is a *pass*, the unit in which
searches of different methods are compared.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..genotype import Genotype
from ..nn.sampling import ArchLogits


@dataclass(frozen=True, slots=True)
class Batch:
    """Normalised images (N, C, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class StepContext:
    """Context of one half of a step: all that a method may use besides the half's batch.

    ``draws(k)``: the generator of the half's k-th sub-network, k from 0 on (``ValueError`` below);
    no other k, half or step has the same one, also where k is ``search.draws`` or more.
    ``weight_batch``, ``weight_lr`` and ``weight_optimizer`` are for methods that look a weight
    step ahead.
    """

    temperature: float
    draws: Callable[[int], torch.Generator]
    weight_batch: Callable[[], Batch]
    weight_lr: float
    weight_optimizer: torch.optim.Optimizer


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over a half's sub-networks, as 0-dimensional tensors on the device.

    ``loss`` and ``accuracy`` (a fraction) are of the sub-network's prediction, ``branch_loss`` is
    the mean over all branches.
    """

    loss: Tensor
    accuracy: Tensor
    branch_loss: Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """The layout of a supernet; see ``Supernet``."""

    num_cells: int
    init_channels: int
    num_classes: int
    in_channels: int
    stem: str


class Method:
    """One way to search: base of all.

    ``passes``: sub-network passes of a step's architecture and weight half. ``weights_first``:
    the order of the halves. ``none_too``: whether ``none``, where a space has it, is chosen from.
    ``learns_edges``: whether the edge logits take part; those of other methods stay as they began.
    """

    supernet: nn.Module
    logits: ArchLogits
    passes: tuple[int, int]
    weights_first = False
    none_too = False
    learns_edges = True

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """The supernet's weights, listed once: walking its modules takes as long as several cells,
        most of them not sampled.
        """
        return list(self.supernet.parameters())

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Fill the gradients of the logits, which are empty before."""
        raise NotImplementedError

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Fill the gradients of the supernet's weights, which are empty before."""
        raise NotImplementedError

    def derive(self) -> Genotype:
        """Return the genotype that the logits stand for by the method's own rule."""
        raise NotImplementedError


@contextlib.contextmanager
def frozen(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Compute no gradient of these parameters: less to keep, and a third less to compute."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def measure(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy, with its graph, and the accuracy of logits (N, classes)."""
    correct = (logits.detach().argmax(dim=1) == labels).double().mean()
    return F.cross_entropy(logits, labels), correct

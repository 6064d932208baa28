"""Search by sampled sub-networks of one supernet, each updated branch by branch.

A step (the paper's section 4, ROME v2's Algorithm 1): K draws on one batch of the architecture
half, gradients of the logits *averaged*; then K other draws on one batch of the weight half,
gradients of the weights *summed*. One sub-network, and of it one branch, is alive at a time. With
branches as long as the network this is ROME's entangled search.
"""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from ..config import UNREAD_BY_DEFAULT, SearchConfig
from ..nn.operations import noises_in, set_noise_generator
from ..nn.sampling import ArchLogits, Draw
from ..nn.supernet import SharedInputs, Supernet
from ..spaces import SearchSpace
from .base import Batch, Measured, Method, Sizes, StepContext
from .passes import frozen, measure


class SinglePath(Method):
    """Base of D2NAS, its entangled form and GDAS: sampled sub-networks of one supernet.

    A subclass says how one is sampled.
    """

    supernet: Supernet
    unread: Collection[str] = UNREAD_BY_DEFAULT
    all_edges = False
    """Whether a sub-network has all edges of a cell; else two per node."""
    shares_stem = True
    """Whether the architecture half runs the stem once for all draws; the results are the same."""

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        draws: int = 1,
        branch_length: int | None = None,
        recompute: str,
        branch_head: str = "linear",
    ) -> None:
        self._fresh_supernet = partial(
            Supernet,
            space,
            num_cells=sizes.num_cells,
            init_channels=sizes.init_channels,
            num_classes=sizes.num_classes,
            in_channels=sizes.in_channels,
            stem=sizes.stem,
            branch_length=branch_length or sizes.num_cells,
            recompute=recompute,
            branch_head=branch_head,
        )
        self.supernet = self._fresh_supernet()
        self._noises = noises_in(self.supernet)
        self.logits = ArchLogits(space, generator=generator)
        self.draws = draws
        self.passes = (draws, draws)

    @property
    def gradients_summed(self) -> int:
        """How many losses' gradients are added in a weight half: of each draw and branch."""
        return self.draws * len(self.supernet.borders)

    @classmethod
    def branch_cells(cls, config: SearchConfig) -> int:
        """Return how many cells one branch spans: all."""
        return config.num_cells

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return one sub-network."""
        raise NotImplementedError

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Average over the draws (ROME v2, Eq. 11); the weights are not touched."""
        generators = [context.draws(index) for index in range(self.draws)]
        draws = [self.sample(context.temperature, generator) for generator in generators]
        leaves, measured, _ = self.gate_gradients(batch, draws, generators)
        backward_to_logits(draws, leaves)
        return measured

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Sum over the draws (ROME v2, Eq. 12); weights that none sampled get no gradient."""
        generators = [context.draws(index) for index in range(self.draws)]
        with torch.no_grad():
            draws = [self.sample(context.temperature, generator) for generator in generators]
        return self.run(batch, draws, generators)

    def gate_gradients(
        self, batch: Batch, draws: Sequence[Draw], generators: Sequence[torch.Generator]
    ) -> tuple[list[tuple[Tensor, Tensor]], Measured, list[Tensor]]:
        """Return each draw's gates (normal, reduction) as leaves on the device, with gradients,
        and the logits of each draw's branches, (branches, N, classes).

        Leaves collect the gradients there, so that the host, which turns them into the logits',
        waits for the device once a step and not at every branch.
        """
        device = batch.images.device
        leaves = [
            (
                torch.ones(len(draw.normal.edges), device=device, requires_grad=True),
                torch.ones(len(draw.reduce.edges), device=device, requires_grad=True),
            )
            for draw in draws
        ]
        gated = [draw.with_gates(*own) for draw, own in zip(draws, leaves, strict=True)]
        with frozen(self.weights):
            images = batch.images
            given = self.supernet.share(images) if self.shares_stem else images
            return leaves, *self._run(given, batch, gated, generators)

    @torch.no_grad()
    def predictions(
        self, batch: Batch, draws: Sequence[Draw], generators: Sequence[torch.Generator]
    ) -> list[Tensor]:
        """Return the logits of each draw's branches, (branches, N, classes), by forward passes
        alone; the last branch's are the draw's prediction.
        """
        shared, found = self.supernet.share(batch.images), []
        for draw, generator in zip(draws, generators, strict=True):
            set_noise_generator(self._noises, generator)
            found.append(torch.stack(self.supernet.branch_predictions(shared, draw)))
        return found

    def run(
        self, batch: Batch, draws: Sequence[Draw], generators: Sequence[torch.Generator]
    ) -> Measured:
        """Run every draw's forward and backward on one batch; gradients of weights add."""
        bare = [draw.with_gates(None, None) for draw in draws]
        measured, _ = self._run(batch.images, batch, bare, generators)
        return measured

    def _run(
        self,
        x: Tensor | SharedInputs,
        batch: Batch,
        draws: Sequence[Draw],
        generators: Sequence[torch.Generator],
    ) -> tuple[Measured, list[Tensor]]:
        supernet, num_draws, predictions = self.supernet, len(draws), list[Tensor]()
        totals = [torch.zeros((), device=batch.labels.device) for _ in range(3)]
        for draw, generator in zip(draws, generators, strict=True):
            set_noise_generator(self._noises, generator)
            of_branches = []
            for branch in supernet.branches(x, draw):
                of_branches.append(branch.logits.detach())
                loss, accuracy = measure(branch.logits, batch.labels, batch.weights)
                torch.autograd.backward(loss)
                totals[2] += loss.detach() / (num_draws * len(supernet.borders))
            totals[0] += loss.detach() / num_draws
            totals[1] += accuracy / num_draws
            predictions.append(torch.stack(of_branches))
        return Measured(*totals), predictions


def backward_to_logits(draws: Sequence[Draw], leaves: Sequence[Sequence[Tensor]]) -> None:
    """Send the mean gradient of the device's gates through the sampling, to the logits.

    A cell type that the network does not have leaves its logits without a gradient.
    """
    gates, gradients = [], []
    for draw, own in zip(draws, leaves, strict=True):
        for cell, leaf in zip((draw.normal, draw.reduce), own, strict=True):
            if cell.gates is not None and leaf.grad is not None:
                gates.append(cell.gates)
                gradients.append(leaf.grad)
    means = torch.cat(gradients).cpu() / len(draws)
    torch.autograd.backward(gates, torch.split(means, [len(gate) for gate in gates]))

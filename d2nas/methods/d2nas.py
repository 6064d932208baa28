"""D2NAS, and its entangled form, which is ROME's search.

A step (the paper's section 4, ROME v2's Algorithm 1) is ``single_path``'s: K draws on one batch of
the architecture half, then K others on one of the weight half. Here is what a draw is: two edges
per node and an operation on each; how far a branch reaches; and by which estimator the draws'
losses become a gradient of the logits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import Estimator, Reward, SearchConfig, fewest_draws
from ..errors import ConfigError
from ..genotype import Genotype
from ..measure.calibration import calibrated_losses, cross_entropies
from ..nn.sampling import ArchLogits, Draw, sample
from ..nn.score_function import (
    add_gradients,
    groups,
    sample_evenly,
    with_even_operations,
)
from ..spaces import SearchSpace
from .base import Batch, Measured, Method, Sizes, StepContext, register_method
from .derivation import derive_genotype, probability_scores
from .single_path import SinglePath, backward_to_logits


@register_method("d2nas")
class D2nas(SinglePath):
    """D2NAS: sampled sub-networks, each updated branch by branch."""

    warms_up = True
    learns_distribution = True
    keeps_limits = True

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        draws: int,
        branch_length: int,
        recompute: str,
        edge_gate_scale: float,
        branch_head: str = "linear",
        estimator: Estimator = "straight-through",
        reward: Reward = "calibrated",
    ) -> None:
        super().__init__(
            space,
            sizes,
            generator,
            draws=draws,
            branch_length=branch_length,
            recompute=recompute,
            branch_head=branch_head,
        )
        if draws < fewest_draws(estimator):
            raise ConfigError(f"the estimator {estimator} needs 2 draws or more")
        self.edge_gate_scale = edge_gate_scale
        self.estimator, self.reward = estimator, reward

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return two edges per node and an operation on each (the paper's Eq. 6-8)."""
        return sample(self.logits, temperature, generator, edge_gate_scale=self.edge_gate_scale)

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Estimate the logits' gradient by ``estimator``; the weights are not touched.

        ``straight-through``: the paper's. ``score``: the score function, of forward passes alone.
        ``mixed``: the score function for operations, straight-through for edges (ours, both).
        """
        if self.estimator == "straight-through":
            return super().architecture_gradients(batch, context)
        generators = [context.draws(index) for index in range(self.draws)]
        if self.estimator == "score":
            draws = [
                draw
                for group in groups(self.draws)
                for draw in sample_evenly(self.logits, len(group), generators[group.start])
            ]
            predictions = self.predictions(batch, draws, generators)
        else:
            draws = [self._sample_edges(context.temperature, own) for own in generators]
            for group in groups(self.draws):
                of_group = draws[group.start : group.stop]
                draws[group.start : group.stop] = with_even_operations(
                    self.logits, of_group, generators[group.start]
                )
            leaves, _, predictions = self.gate_gradients(batch, draws, generators)
            backward_to_logits(draws, leaves)
        predictions_KBNC = torch.stack(predictions)
        add_gradients(
            self.logits,
            draws,
            self.losses(predictions_KBNC, batch.labels, batch.weights),
            self.supernet.cell_types,
            edges=self.estimator == "score",
        )
        losses_B = _branch_losses(predictions_KBNC, batch.labels, batch.weights).mean(dim=0)
        correct_KN = predictions_KBNC[:, -1].argmax(dim=2) == batch.labels
        return Measured(losses_B[-1], correct_KN.double().mean(), losses_B.mean())

    def _sample_edges(self, temperature: float, generator: torch.Generator) -> Draw:
        return sample(
            self.logits,
            temperature,
            generator,
            edge_gate_scale=self.edge_gate_scale,
            operation_gate_scale=0.0,
        )

    def losses(
        self, predictions_KBNC: Tensor, labels_N: Tensor, weights_N: Tensor | None = None
    ) -> Tensor:
        """Return the losses by which draws are judged, as ``reward`` says, (K,), on the host.

        A draw's branches add, as in the gradient of the weights and in the straight-through one:
        all three are of one objective.
        """
        if self.reward == "calibrated":
            predictions_KBNC, labels_N = predictions_KBNC.cpu(), labels_N.cpu()
            weights_N = None if weights_N is None else weights_N.cpu()
        losses_KB = _branch_losses(predictions_KBNC, labels_N, weights_N, self.reward)
        return losses_KB.sum(dim=1).cpu()

    @classmethod
    def branch_cells(cls, config: SearchConfig) -> int:
        """Return how many cells one branch spans, as configured."""
        length = config.branch_length
        return config.num_cells if length == "num_cells" else length

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method with a fresh supernet."""
        return cls(
            space,
            sizes,
            generator,
            draws=config.draws,
            branch_length=cls.branch_cells(config),
            recompute=config.recompute,
            edge_gate_scale=config.edge_gate_scale,
            branch_head=config.branch_head,
            estimator=config.estimator,
            reward=config.reward,
        )

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the most probable sub-network (ROME v2, 3.3)."""
        return derive_genotype(logits, logits.space)

    @classmethod
    def choice_scores(cls, logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
        """Return the logarithms of probabilities."""
        return probability_scores(logits, cell_type)


def _branch_losses(
    predictions_KBNC: Tensor, labels_N: Tensor, weights_N: Tensor | None, reward: Reward = "loss"
) -> Tensor:
    """Return each branch's loss, (K, B)."""
    logits = predictions_KBNC.flatten(0, 1)
    if reward == "loss":
        losses = cross_entropies(logits, labels_N, weights_N)
    else:
        losses, _ = calibrated_losses(logits, labels_N, weights_N)
    return losses.view(predictions_KBNC.shape[:2])


@register_method("entangled")
class Entangled(D2nas):
    """ROME v2 (arXiv 2011.11233): D2NAS with one branch through the whole network."""

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values with a branch of all cells; ``ValueError`` for another length."""
        cells = given.get("num_cells", SearchConfig.model_fields["num_cells"].default)
        length = given.get("branch_length", "num_cells")
        if length not in ("num_cells", cells):
            raise ValueError(
                f"search.branch_length ({length}) is for method d2nas: entangled spans all cells"
            )
        return {**super().settings(given), "branch_length": "num_cells"}

    @classmethod
    def branch_cells(cls, config: SearchConfig) -> int:
        """Return how many cells one branch spans: all."""
        return config.num_cells

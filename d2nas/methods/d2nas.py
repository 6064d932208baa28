"""D2NAS, and its entangled form, which is ROME's search.

A step (the paper's section 4, ROME v2's Algorithm 1) is ``single_path``'s: K draws on one batch of
the architecture half, then K others on one of the weight half. Here is what a draw is: two edges
per node and an operation on each; and how far a branch reaches.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..config import SearchConfig
from ..genotype import Genotype
from ..nn.sampling import ArchLogits, Draw, sample
from ..spaces import SearchSpace
from .base import Method, Sizes, register_method
from .derivation import derive_genotype
from .single_path import SinglePath


@register_method("d2nas")
class D2nas(SinglePath):
    """D2NAS: sampled sub-networks, each updated branch by branch."""

    warms_up = True
    learns_distribution = True

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
        self.edge_gate_scale = edge_gate_scale

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return two edges per node and an operation on each (the paper's Eq. 6-8)."""
        return sample(self.logits, temperature, generator, edge_gate_scale=self.edge_gate_scale)

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
        )

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the most probable sub-network (ROME v2, 3.3)."""
        return derive_genotype(logits, logits.space)


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

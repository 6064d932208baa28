"""Base of searches that train weights on sampled sub-networks and learn no logits.

What is found in another way is written into the logits in the end, so that they derive to it.
"""

from collections.abc import Collection

import torch

from ..config import UNREAD_BY_DEFAULT, SearchConfig
from ..genotype import Genotype
from ..nn.sampling import ArchLogits, Draw, sample
from ..spaces import SearchSpace
from .base import D2NAS_KEYS, Method, Sizes
from .derivation import derive_genotype
from .single_path import SinglePath


class UniformPaths(SinglePath):
    """Weights alone are trained, on one uniformly drawn sub-network per step unless a subclass
    samples another.
    """

    passes = (0, 1)
    several_processes = False  # each rank would compare on its own images
    unread: Collection[str] = (
        *D2NAS_KEYS,
        *UNREAD_BY_DEFAULT,
        "temperature_start",
        "temperature_end",
        "warmup_epochs",
        "arch_lr",
        "arch_beta1",
        "arch_beta2",
        "arch_weight_decay",
    )

    def __init__(
        self, space: SearchSpace, sizes: Sizes, generator: torch.Generator, *, recompute: str
    ) -> None:
        super().__init__(space, sizes, generator, recompute=recompute)
        self.passes = type(self).passes
        for logits in self.logits.parameters():
            torch.nn.init.zeros_(logits)

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method with a fresh supernet."""
        return cls(space, sizes, generator, recompute=config.recompute)

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return two edges per node and an operation on each, uniform while all logits are 0."""
        return sample(self.logits, temperature, generator)

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the genotype that was written, the most probable one."""
        return derive_genotype(logits, logits.space)

"""GDAS (Dong and Yang, arXiv 1910.04465): one sampled operation on every edge.

All edges of a cell are computed, one sub-network per half, weights first, gradients through
the whole network. ``none`` is a candidate. Not as in the published code, which the comparison does
not need: the network ends like DARTS's and has 8 cells by default, not 6; the momentum is not
Nesterov's; and the genotype is derived by DARTS's rule, because the published one can put both
edges of a node on the same predecessor.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import UNREAD_BY_DEFAULT, SearchConfig
from ..genotype import Genotype
from ..nn.sampling import ArchLogits, Draw, sample_operations
from ..spaces import SearchSpace
from .base import D2NAS_KEYS, Method, Sizes, register_method
from .derivation import darts_scores, derive_darts
from .single_path import SinglePath


@register_method("gdas")
class Gdas(SinglePath):
    """GDAS: one sampled operation on every edge, with the kernels of D2NAS."""

    weights_first = True
    searches_none = True
    learns_edges = False
    keeps_limits = True
    all_edges = True
    recipe: Mapping[str, Any] = {
        "epochs": 250,
        "batch_size": 256,
        "weight_lr": 0.025,
        "weight_decay": 5e-4,
    }
    unread = (
        *D2NAS_KEYS,
        *UNREAD_BY_DEFAULT,
    )  # one draw; K only numbers its random numbers, as a seed would

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return all edges with one operation each."""
        return sample_operations(self.logits, temperature, generator)

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method with a fresh supernet."""
        return cls(space, sizes, generator, recompute=config.recompute)

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the genotype by DARTS's rule."""
        return derive_darts(logits, logits.space)

    @classmethod
    def choice_scores(cls, logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the weights that DARTS's rule compares."""
        return darts_scores(logits, cell_type)

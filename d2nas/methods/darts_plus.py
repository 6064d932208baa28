"""DARTS+ (Liang et al., arXiv 1909.06035): DARTS that stops before skip connections take over.

The search ends when the normal cell has two skip connections or more (section 3.3, criterion 1).
There is no published code. Our reading: the cell is the one that DARTS's rule derives, so that the
eight operations that would be kept are counted; they are counted after each epoch in which the
architecture has learned; and the genotype is that of the epoch which ended the search, with the two
skips or more. The reduction cell is not counted. Of first order, S0 with ``none``.
"""

from typing import Any

import torch

from ..config import SearchConfig
from ..genotype import Genotype
from ..spaces import SearchSpace
from .base import EpochEnd, Sizes, register_method
from .darts import Darts

MAX_SKIPS = 1
"""Skip connections of the normal cell with which the search goes on."""


def num_skips(genotype: Genotype) -> int:
    """Return how many skip connections the normal cell has."""
    return sum(operation == "skip_connect" for operation, _ in genotype.normal)


@register_method("darts-plus")
class DartsPlus(Darts):
    """DARTS+ (arXiv 1909.06035): DARTS until the normal cell has two skip connections."""

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        warmup: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.warmup = warmup

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {**super().options(config), "warmup": config.warmup_epochs}

    def close_epoch(self, end: EpochEnd) -> int:
        """End the search where the normal cell has too many skip connections."""
        learned = end.epoch >= self.warmup
        stops = learned and num_skips(self.derive()) > MAX_SKIPS
        return end.epochs if stops else end.epoch + 1

    def describe(self) -> dict[str, Any]:
        """Return the skip connections of the normal cell."""
        return {"normal_skips": num_skips(self.derive())}

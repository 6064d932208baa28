"""The search methods by name, as ``search.method`` takes them."""

from collections.abc import Callable, Mapping

import torch

from ..config import SearchConfig
from ..genotype import Genotype
from ..nn.sampling import ArchLogits
from ..spaces import SPACES, SearchSpace
from .base import Method, Sizes
from .darts import Darts, DartsSecondOrder
from .derivation import derive_darts, derive_genotype
from .gdas import Gdas
from .random_search import RandomSearch
from .single_path import Decoupled

Build = Callable[[SearchConfig, SearchSpace, Sizes, torch.Generator], Method]

_BY_MOST_PROBABLE = ("d2nas", "entangled", "random")


def _decoupled(
    config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
) -> Method:
    length = config.branch_length
    if config.method == "entangled" or length == "num_cells":
        length = config.num_cells
    return Decoupled(
        space,
        sizes,
        generator,
        draws=config.draws,
        branch_length=length,
        recompute=config.recompute,
        edge_gate_scale=config.edge_gate_scale,
        branch_head=config.branch_head,
    )


def _mixed(kind: type[Darts], channel_divisor: int) -> Build:
    return lambda config, space, sizes, generator: kind(
        space,
        sizes,
        generator,
        channel_divisor=channel_divisor,
        recompute=config.recompute,
    )


METHODS: Mapping[str, Build] = {
    "d2nas": _decoupled,
    "entangled": _decoupled,
    "darts": _mixed(Darts, 1),
    "darts-second-order": _mixed(DartsSecondOrder, 1),
    "gdas": lambda config, space, sizes, generator: Gdas(
        space, sizes, generator, recompute=config.recompute
    ),
    "pc-darts-4": _mixed(Darts, 4),
    "pc-darts-2": _mixed(Darts, 2),
    "random": lambda _config, space, _sizes, generator: RandomSearch(space, generator),
}
"""Name to ``(config, space, sizes, generator of the logits' start) -> method``."""


def searched_space(method: str, space: SearchSpace) -> SearchSpace:
    """Return the space a method searches in: where its published code does, with ``none``.

    DARTS, GDAS and PC-DARTS have ``none`` among the candidates of their own space S0; S1 to S4 are
    searched as R-DARTS published them. The sampling of D2NAS excludes ``none`` (ROME 3.3).
    """
    if method in _BY_MOST_PROBABLE or space in (SPACES[name] for name in ("S1", "S2", "S3", "S4")):
        return space
    return space.with_none()


def derive_for(method: str, logits: ArchLogits) -> Genotype:
    """Return the genotype of a finished search's logits, by its method's rule."""
    rule = derive_genotype if method in _BY_MOST_PROBABLE else derive_darts
    return rule(logits, logits.space)

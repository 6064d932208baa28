"""Neural architecture search with D2NAS (Decoupled Differentiable NAS), as a library.

    from d2nas import SPACES, ArchLogits, Genotype, Network, Supernet, derive_genotype, sample

Names are loaded when first used, so that ``import d2nas`` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .cost import Cost, count_cost, peak_memory
    from .derive import derive_darts, derive_genotype
    from .genotype import Genotype
    from .mixed_supernet import MixedSupernet
    from .network import DropPath, Network, load_network
    from .sampling import ArchLogits, sample
    from .spaces import SPACES, SearchSpace
    from .supernet import Branch, Supernet

_HOMES = {
    "ArchLogits": "sampling",
    "Branch": "supernet",
    "Cost": "cost",
    "DropPath": "network",
    "Genotype": "genotype",
    "MixedSupernet": "mixed_supernet",
    "Network": "network",
    "SPACES": "spaces",
    "SearchSpace": "spaces",
    "Supernet": "supernet",
    "count_cost": "cost",
    "derive_darts": "derive",
    "derive_genotype": "derive",
    "load_network": "network",
    "peak_memory": "cost",
    "sample": "sampling",
}

__all__ = [
    "SPACES",
    "ArchLogits",
    "Branch",
    "Cost",
    "DropPath",
    "Genotype",
    "MixedSupernet",
    "Network",
    "SearchSpace",
    "Supernet",
    "__version__",
    "count_cost",
    "derive_darts",
    "derive_genotype",
    "load_network",
    "peak_memory",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

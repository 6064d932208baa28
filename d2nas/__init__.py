"""Neural architecture search with D2NAS (Decoupled Differentiable NAS), as a library.

    from d2nas import SPACES, ArchLogits, Genotype, Network, Supernet, derive_genotype, sample

Names are loaded when first used, so that ``import d2nas`` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .genotype import Genotype
    from .measure.cost import Cost, count_cost, peak_memory
    from .methods.derivation import derive_darts, derive_genotype
    from .nn.mixed_supernet import MixedSupernet
    from .nn.network import DropPath, Network, load_network
    from .nn.sampling import ArchLogits, sample
    from .nn.supernet import Branch, Supernet
    from .spaces import SPACES, SearchSpace

_HOMES = {
    "ArchLogits": "nn.sampling",
    "Branch": "nn.supernet",
    "Cost": "measure.cost",
    "DropPath": "nn.network",
    "Genotype": "genotype",
    "MixedSupernet": "nn.mixed_supernet",
    "Network": "nn.network",
    "SPACES": "spaces",
    "SearchSpace": "spaces",
    "Supernet": "nn.supernet",
    "count_cost": "measure.cost",
    "derive_darts": "methods.derivation",
    "derive_genotype": "methods.derivation",
    "load_network": "nn.network",
    "peak_memory": "measure.cost",
    "sample": "nn.sampling",
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

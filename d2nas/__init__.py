"""Neural architecture search with D2NAS (Decoupled Differentiable NAS), as a library.

    from d2nas import SearchConfig, load_data, retrain, search

    data = load_data()
    genotype = search(data, SearchConfig(epochs=10))
    network = retrain(genotype, data)

``run`` and ``load_bundle`` are the whole product, from images to a validated ONNX model. Names are
loaded when first used, so that ``import d2nas`` loads neither torch nor the application.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from pipeline.api import LoadedBundle, load_bundle, run

    from .config import DataConfig, RetrainConfig, SearchConfig
    from .data.images import ImageData, load_data
    from .data.sets import Arrays, DataSet, register_data_set
    from .data.torch_datasets import write_dataset
    from .genotype import Genotype
    from .measure.cost import Cost, count_cost, peak_memory
    from .methods.base import Method, register_method
    from .methods.derivation import derive_darts, derive_genotype
    from .nn.mixed_supernet import MixedSupernet
    from .nn.network import DropPath, Network, load_network
    from .nn.sampling import ArchLogits, sample
    from .nn.supernet import Branch, Supernet
    from .spaces import SPACES, SearchSpace, register_operation
    from .train.retrain import Retraining, retrain
    from .train.search import Search, search

_HOMES = {
    "ArchLogits": "d2nas.nn.sampling",
    "Arrays": "d2nas.data.sets",
    "Branch": "d2nas.nn.supernet",
    "Cost": "d2nas.measure.cost",
    "DataConfig": "d2nas.config",
    "DataSet": "d2nas.data.sets",
    "DropPath": "d2nas.nn.network",
    "Genotype": "d2nas.genotype",
    "ImageData": "d2nas.data.images",
    "LoadedBundle": "pipeline.api",
    "Method": "d2nas.methods.base",
    "MixedSupernet": "d2nas.nn.mixed_supernet",
    "Network": "d2nas.nn.network",
    "RetrainConfig": "d2nas.config",
    "Retraining": "d2nas.train.retrain",
    "SPACES": "d2nas.spaces",
    "Search": "d2nas.train.search",
    "SearchConfig": "d2nas.config",
    "SearchSpace": "d2nas.spaces",
    "Supernet": "d2nas.nn.supernet",
    "count_cost": "d2nas.measure.cost",
    "derive_darts": "d2nas.methods.derivation",
    "derive_genotype": "d2nas.methods.derivation",
    "load_bundle": "pipeline.api",
    "load_data": "d2nas.data.images",
    "load_network": "d2nas.nn.network",
    "peak_memory": "d2nas.measure.cost",
    "register_data_set": "d2nas.data.sets",
    "register_method": "d2nas.methods.base",
    "register_operation": "d2nas.spaces",
    "retrain": "d2nas.train.retrain",
    "run": "pipeline.api",
    "sample": "d2nas.nn.sampling",
    "search": "d2nas.train.search",
    "write_dataset": "d2nas.data.torch_datasets",
}

__all__ = [
    "SPACES",
    "ArchLogits",
    "Arrays",
    "Branch",
    "Cost",
    "DataConfig",
    "DataSet",
    "DropPath",
    "Genotype",
    "ImageData",
    "LoadedBundle",
    "Method",
    "MixedSupernet",
    "Network",
    "RetrainConfig",
    "Retraining",
    "Search",
    "SearchConfig",
    "SearchSpace",
    "Supernet",
    "__version__",
    "count_cost",
    "derive_darts",
    "derive_genotype",
    "load_bundle",
    "load_data",
    "load_network",
    "peak_memory",
    "register_data_set",
    "register_method",
    "register_operation",
    "retrain",
    "run",
    "sample",
    "search",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""Data sets and search methods by name."""

from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from ..data.sets import DataSet
    from ..methods.base import Method

data_sets: "Registry[DataSet]" = Registry(
    "data set", package="d2nas.data.sets", group="d2nas.datasets"
)

search_methods: "Registry[type[Method]]" = Registry(
    "search method", package="d2nas.methods", group="d2nas.methods"
)
"""Most need torch, so the configuration asks for any method but its default one."""

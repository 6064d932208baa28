"""A limit of the search or the derivation, before it: can any cell of the space keep it?"""

from d2nas.config import Config, Limit
from d2nas.files.text_files import read_space

from ..latency.limits import costs_of
from .plan import data_shape


def check_limit(config: Config, limit: Limit) -> str:
    """Return what is said of a limit: the cheapest network of the space.

    Raises ``ConfigError`` for a limit that no cell keeps, and for a table that does not suit.
    """
    from d2nas.methods.within_budget import least_cost

    shape, name = data_shape(config.data), config.search.space
    costs = costs_of(
        config,
        limit.quantity,
        read_space(name),
        channels=shape.channels,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
    )
    least = least_cost(costs, limit)
    return (
        f"at most {costs.describe(limit.value)} by {limit.key}: the cheapest cell of {name} takes "
        f"{costs.describe(least)}"
    )

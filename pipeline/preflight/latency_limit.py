"""A latency limit of the derivation, before the search: can any cell of the space keep it?"""

from d2nas.config import Config
from d2nas.errors import ConfigError
from d2nas.files.text_files import read_space

from ..stages.derive import checked_costs
from .plan import data_shape


def check_limit(config: Config) -> str:
    """Return what is said of ``derive.max_latency_ms``: the fastest network of the space.

    Raises ``ConfigError`` for a limit that no cell keeps, and for a table that does not suit.
    """
    from d2nas.methods.within_budget import cheapest

    shape, limit = data_shape(config.data), config.derive.max_latency_ms
    assert limit is not None
    costs = checked_costs(
        config,
        read_space(config.search.space),
        channels=shape.channels,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
    )
    fastest = cheapest(costs)
    least = costs.of(fastest)
    if least > limit:
        raise ConfigError(
            f"no cell keeps derive.max_latency_ms={limit:g}: the fastest of "
            f"{config.search.space} takes {least:.3g} ms ({fastest.describe('normal')})",
            hint="a higher limit, or fewer retrain.num_cells or retrain.init_channels",
        )
    space = config.search.space
    return f"latency limit {limit:g} ms: the fastest cell of {space} takes {least:.3g} ms"

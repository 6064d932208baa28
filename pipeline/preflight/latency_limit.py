"""A limit of the search or the derivation, before it: can any cell of the space keep it?"""

from d2nas.config import Config, Limit
from d2nas.files.text_files import read_space

from ..latency.limits import costs_of, table_of
from .plan import data_shape

DRIFT_ROUNDS = 6
"""Rounds in which a table's networks are timed again before a run."""


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


def drift_warning(config: Config) -> str | None:
    """Return what is said where this is the device of the run's latency table, and its networks
    take longer or shorter than they did; they are timed again for that, in a few rounds.
    """
    from ..latency.measuring import is_here, time_again
    from ..onnx_io.runtime import load_runtime

    table = table_of(config)
    if not is_here(table):
        return None
    drift, _ = time_again(table, device=table.device["kind"], rounds=DRIFT_ROUNDS)
    now = str(load_runtime().__version__)
    runtime = "" if now == table.runtime else f" (ONNX Runtime {table.runtime} then, {now} now)"
    if drift.is_small and not runtime:
        return None
    return (
        f"the latency table's networks take {drift.middle:.2f} x of what they took when it was "
        f"measured{runtime}: d2nas latency measure, on a machine that does nothing else"
    )

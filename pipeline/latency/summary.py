"""A latency table for people: its operations, and how well it predicts."""

import statistics
from typing import Any

from .fitting import left_out_errors
from .measuring import sums_of
from .parts import OperationShape
from .table import LatencyTable


def operation_rows(table: LatencyTable) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the columns and rows of a table of operations by shape, the slowest first.

    A column is a width, a size and a stride.
    """
    shapes = [part for part in table.parts if isinstance(part, OperationShape)]
    places = sorted({(-part.size, part.channels, part.stride) for part in shapes})
    times = {
        (part.operation, (-part.size, part.channels, part.stride)): table.parts[part]
        for part in shapes
    }
    columns = [
        f"{channels} at {-size}" + ("" if stride == 1 else f", stride {stride}")
        for size, channels, stride in places
    ]

    def row(operation: str) -> tuple[str, ...]:
        found = (times.get((operation, place)) for place in places)
        return operation, *("-" if taken is None else f"{taken:.3f}" for taken in found)

    names = {part.operation for part in shapes}
    slowest = sorted(names, key=lambda name: (-_total(table, name), name))
    return ["operation", *columns], [row(name) for name in slowest]


def _total(table: LatencyTable, operation: str) -> float:
    return sum(
        taken
        for part, taken in table.parts.items()
        if isinstance(part, OperationShape) and part.operation == operation
    )


def summary(table: LatencyTable) -> dict[str, Any]:
    """Return what a table is of and how well it predicts its own networks, as JSON data."""
    measured = [one.milliseconds for one in table.networks]
    errors = left_out_errors(sums_of(table), measured)
    sizes = [abs(error) for error in errors]
    return {
        "digest": table.digest,
        "device": dict(table.device),
        "runtime": table.runtime,
        "serving": table.serving.to_dict(),
        "operations": len([part for part in table.parts if isinstance(part, OperationShape)]),
        "cells": len([part for part in table.parts if not isinstance(part, OperationShape)]),
        "fastest_ms": min(measured),
        "slowest_ms": max(measured),
        "spread": statistics.median(one.spread for one in table.networks),
        "errors_of_left_out": errors,
        "median_error": statistics.median(sizes),
        "largest_error": max(sizes),
    }

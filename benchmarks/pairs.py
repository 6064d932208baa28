"""Compares two pieces of work by time: in pairs, in alternating order, by their ratio.

A machine's speed drifts, so a time means little alone; two that were taken one right after the
other share the drift. The order changes from pair to pair, so that neither is always the second.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2nas.errors import ConfigError

COLUMNS = ("case", "against", "per", "ratio", "from", "to", "pairs", "seconds", "against")


@dataclass(frozen=True, slots=True)
class TimedWork:
    """Work to be timed: ``run()`` once is ``units[name]`` of each unit's name (step, pass, ...)."""

    name: str
    run: Callable[[], None]
    units: Mapping[str, int]
    prepare: Callable[[], None] = lambda: None
    """Called before each run, untimed."""


def compare(
    case: TimedWork,
    against: TimedWork,
    pairs: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time both in ``pairs`` pairs, after a run each that does not count; a row for each unit.

    ``ratio`` is the case's time over the other's, ``seconds`` and ``against_seconds`` the medians
    per unit. Raises ``ConfigError`` for no pairs.
    """
    if pairs < 1:
        raise ConfigError(f"{pairs} pairs: at least one is needed")
    for work in (case, against):
        work.prepare()
        work.run()
    times: dict[bool, list[float]] = {True: [], False: []}
    for index in range(pairs):
        for is_case in (True, False) if index % 2 == 0 else (False, True):
            work = case if is_case else against
            work.prepare()
            began = clock()
            work.run()
            times[is_case].append(clock() - began)
    return [
        _row(case, against, unit, times[True], times[False])
        for unit in case.units
        if unit in against.units
    ]


def _row(
    case: TimedWork,
    against: TimedWork,
    unit: str,
    case_times: Sequence[float],
    against_times: Sequence[float],
) -> dict[str, Any]:
    own = [seconds / case.units[unit] for seconds in case_times]
    others = [seconds / against.units[unit] for seconds in against_times]
    ratios = [one / other for one, other in zip(own, others, strict=True)]
    return {
        "case": case.name,
        "against": against.name,
        "unit": unit,
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "pairs": len(ratios),
        "seconds": statistics.median(own),
        "against_seconds": statistics.median(others),
    }


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            row["case"],
            row["against"],
            row["unit"],
            *(f"{row[f'ratio_{name}']:.2f}" for name in ("median", "min", "max")),
            str(row["pairs"]),
            *(f"{row[name]:.3f}" for name in ("seconds", "against_seconds")),
        )
        for row in rows
    ]

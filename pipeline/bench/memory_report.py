"""The rows, the table and the goals of ``d2nas bench memory``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .memory_cases import HEAVIEST, PAPER, RANDOM, RIVALS, Case, Measurement

MIB, GIB = 2**20, 2**30

COLUMNS = (
    "method",
    "cells x channels",
    "backward",
    "recompute",
    "precision",
    "draw",
    "part",
    "paper",
    "peak",
    "of it state",
    "measured by",
)

NOTE = (
    "peak of a whole search step, both halves, with weights, all their gradients and optimizer "
    "state (given apart); batch 64, 32 x 32 pixels; published = PyTorch's own backward, gradients "
    "of weights and logits in both halves; lean = this project's units; draw: worst / mean of the "
    "sampled sub-networks; part = of a search that changes; paper = its Table 4"
)


def rows_of(measurement: Measurement) -> list[dict[str, Any]]:
    """Return a measurement's rows: worst draw and mean where sub-networks are sampled.

    The mean is that of the random draws. The headline, ``default``, is the worst draw of what a
    user gets who sets nothing.
    """
    case, peaks = measurement.case, measurement.peaks
    at_random = [peak for name, peak in peaks.items() if name.startswith(RANDOM)]
    if not case.is_sampled:
        return [_row(measurement, None, max(peaks.values()), peaks)]
    rows = []
    if case.draws != "random":
        rows.append(_row(measurement, "worst", max(peaks.values()), peaks))
    if at_random:
        mean = round(sum(at_random) / len(at_random))
        rows.append(_row(measurement, "mean", mean, at_random))
    return rows


def _row(
    measurement: Measurement, draw: str | None, peak: int, draws: Sequence[int] | dict[str, int]
) -> dict[str, Any]:
    case, config = measurement.case, measurement.case.config
    worst = max(measurement.peaks, key=lambda name: measurement.peaks[name])
    return {
        "method": config.method,
        "branch_length": case.branch_length,
        "branch_head": config.branch_head,
        "recompute": config.recompute,
        "precision": config.precision,
        "cells": config.num_cells,
        "channels": config.init_channels,
        "batch": config.batch_size,
        "draw": draw,
        "part": case.part,
        "peak_bytes": peak,
        "state_bytes": measurement.state_bytes,
        "default": case.is_default and draw != "mean",
        "measured_by": measurement.measured_by,
        "backward": "published" if case.published else "lean",
        "draws": len(draws) if draw else None,
        "worst_draw": worst if draw == "worst" else None,
        "paper_gb": case.paper_gb,
    }


def table_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            row["method"] + (" (default)" if row["default"] else ""),
            f"{row['cells']} x {row['channels']}",
            row["backward"],
            row["recompute"],
            row["precision"],
            f"{row['draw']} of {row['draws']}" if row["draw"] else "-",
            row["part"] or "-",
            f"{row['paper_gb']} GB" if row["paper_gb"] else "-",
            f"{row['peak_bytes'] / MIB:,.1f} MiB",
            f"{row['state_bytes'] / MIB:,.1f} MiB",
            row["measured_by"],
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Goal:
    """Goal of a measurement: ``value`` is at most ``limit``, or at least where ``above``."""

    name: str
    value: float
    limit: float
    unit: str = ""
    above: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value >= self.limit if self.above else self.value <= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        """Return the cells of the goals' table."""
        sign = ">=" if self.above else "<="
        values = (f"{number:.3g}{self.unit}" for number in (self.value, self.limit))
        value, limit = values
        return self.name, value, f"{sign} {limit}", "met" if self.met else "missed"


GOAL_COLUMNS = ("goal", "measured", "limit", "")


def goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    """Return the goals for memory, measured. ``rows``: of all that ``cases`` lists."""

    def worst(**changes: Any) -> dict[str, Any]:
        return _find(rows, "worst", **changes)

    def growth(method: str) -> float:
        deep, shallow = worst(method=method, num_cells=20), worst(method=method)
        return _activations(deep) / _activations(shallow)

    best = min(
        row["peak_bytes"]
        for row in rows
        if row["method"] in RIVALS
        and row["backward"] == "published"
        and row["draw"] in ("mean", None)
    )
    ours = worst()["peak_bytes"]
    rival = "D2NAS / best rival of Table 4 as published"
    return [
        Goal(f"{rival}, nothing recomputed", ours / best, 0.25),
        Goal(f"{rival}, recompute=op", worst(recompute="op")["peak_bytes"] / best, 0.10),
        Goal(
            f"{rival}, recompute=op, bf16",
            worst(recompute="op", precision="bf16")["peak_bytes"] / best,
            0.06,
        ),
        Goal(
            "entangled, recompute=cell / D2NAS",
            worst(method="entangled", recompute="cell")["peak_bytes"] / ours,
            1.2,
        ),
        Goal("D2NAS, 20 cells / 8 cells, state aside", growth("d2nas"), 1.05),
        Goal("control: entangled, 20 / 8 cells", growth("entangled"), 2.0, above=True),
        Goal(
            "D2NAS, 20 cells x 36 channels",
            worst(num_cells=20, init_channels=36)["peak_bytes"] / GIB,
            1.0,
            unit=" GiB",
        ),
    ]


def _activations(row: dict[str, Any]) -> float:
    return float(row["peak_bytes"] - row["state_bytes"])


def _find(rows: Sequence[dict[str, Any]], draw: str, **changes: Any) -> dict[str, Any]:
    """Return the row of the paper's setting with ``changes``."""
    config = PAPER.model_copy(update=changes)
    wanted = {
        "method": config.method,
        "branch_length": Case(config).branch_length,
        "branch_head": config.branch_head,
        "recompute": config.recompute,
        "precision": config.precision,
        "cells": config.num_cells,
        "channels": config.init_channels,
        "draw": draw,
        "backward": "lean",
    }
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def unexpected_worst(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the D2NAS draw that needs most, if it is not of the kind the short table takes the
    worst of larger networks from; else None.
    """
    name: str = _find(rows, "worst")["worst_draw"]
    return None if name.startswith(HEAVIEST) else name

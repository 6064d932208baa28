"""How good a cell is that ``derive.budget`` finds among random ones: a simulation.

    python -m benchmarks.derive_budget [--repeats 4000] [--likeness 0.94]

The schedule of the library is run on trainings that were made before, or on made-up ones, and so is
one training each of as many cells as the budget has (best of n). Both are given in standard
deviations of random cells above their mean.

``replayed``: cells of the yardstick, round r the loss of their r-th seed; a chosen cell is worth
the mean of seeds that no round has seen, as those that chose it flatter it. Random cells stand in
for neighbours. It takes cells of more seeds than there are rounds, twice as many as are compared.

``modelled``: normal effects of cells and normal noise, by the reliability of one training that the
yardstick reports, or, before enough of its cells have two seeds, the 15 cells of ``ranking.json``.
A neighbour's effect correlates with its parent's by ``--likeness``; 15 of 16 edges are the same.
"""

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from d2nas.train.halving import Halving, Schedule, schedule

from .yardstick import HERE, by_cell, read_rows, reliability

BUDGETS = (6, 12, 24, 48)
ENOUGH = 15
"""Cells of two seeds or more by which a reliability is estimated."""

Losses = Sequence[Sequence[float]]
Loss = Callable[[int, int], float]
"""The loss of a cell in a round."""


def chosen(
    plan: Schedule, cells: Sequence[int], loss: Loss, neighbour: Callable[[int], int]
) -> int:
    """Return the cell that a schedule ends with."""
    halving = Halving(plan, cells, log_probability=lambda _: 0.0, neighbour=neighbour)
    for number, trained_in in halving.trainings():
        arm = halving.arms[number]
        arm.losses.append(loss(arm.cell, trained_in))
    return halving.arms[halving.best()].cell


def without_neighbours(plan: Schedule) -> Schedule:
    """Return the schedule with samples in place of neighbours."""
    return replace(plan, sampled=plan.sampled + plan.neighbours, neighbours=0)


def modelled(
    plan: Schedule, share: float, likeness: float, numbers: random.Random
) -> dict[str, float]:
    """Return the effects of the cells that are chosen once in the model, higher ones better;
    ``share``: of one training's variance, that between cells.
    """
    noise = math.sqrt((1 - share) / share)
    effects = [numbers.gauss(0, 1) for _ in range(plan.num_trainings)]

    def loss(cell: int, _round: int) -> float:
        return -effects[cell] + noise * numbers.gauss(0, 1)

    def neighbour(cell: int) -> int:
        own = math.sqrt(1 - likeness**2) * numbers.gauss(0, 1)
        effects.append(likeness * effects[cell] + own)
        return len(effects) - 1

    plain = without_neighbours(plan)
    return {
        "halving": effects[chosen(plan, range(plan.sampled), loss, neighbour)],
        "without_neighbours": effects[chosen(plain, range(plain.sampled), loss, neighbour)],
        "best_of_n": effects[min(range(plan.num_trainings), key=lambda cell: loss(cell, 0))],
    }


def replayed(plan: Schedule, losses: Losses, numbers: random.Random) -> dict[str, float]:
    """Return what the chosen cells are worth once, by the seeds that no round has seen, above the
    mean of all cells.
    """
    rounds = 1 + len(plan.later)
    plain = without_neighbours(plan)
    worth = [-statistics.fmean(of[rounds:]) for of in losses]
    order = numbers.sample(range(len(losses)), plan.num_trainings)
    halved = chosen(plain, order[: plain.sampled], lambda cell, at: losses[cell][at], lambda _: 0)
    first = min(order, key=lambda cell: losses[cell][0])
    mean = statistics.fmean(worth)
    return {"halving": worth[halved] - mean, "best_of_n": worth[first] - mean}


def means_of(draws: Sequence[Mapping[str, float]], scale: float = 1.0) -> dict[str, float]:
    """Return the mean of each entry over draws, in units of ``scale``."""
    return {
        name: round(statistics.fmean(draw[name] for draw in draws) / scale, 2) for name in draws[0]
    }


def known_reliability(of_cells: Losses) -> tuple[float, str]:
    """Return the share of one training's variance that lies between cells, and its source."""
    if sum(len(of) > 1 for of in of_cells) >= ENOUGH:
        return reliability(of_cells)[0], "yardstick.jsonl"
    rows = json.loads((HERE / "ranking.json").read_text())["rows"]
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["variant"] == "short":
            found.setdefault(json.dumps(row["genotype"]), []).append(row["calibrated_loss"])
    return reliability([*found.values()])[0], "ranking.json"


def report(rows: Sequence[Mapping[str, Any]], *, repeats: int, likeness: float) -> dict[str, Any]:
    """Return the figures as JSON values."""
    of_cells = [*by_cell([row for row in rows if row["origin"] == "random"]).values()]
    share, source = known_reliability(of_cells)
    found = []
    for budget in BUDGETS:
        plan, numbers = schedule(budget), random.Random(budget)
        draws = [modelled(plan, share, likeness, numbers) for _ in range(repeats)]
        row: dict[str, Any] = {"budget": budget, "modelled": means_of(draws)}
        usable = [of for of in of_cells if len(of) > 1 + len(plan.later)]
        if len(usable) >= 2 * budget:
            between = math.sqrt(share * statistics.variance([of[0] for of in usable]))
            draws = [replayed(plan, usable, numbers) for _ in range(repeats)]
            row["replayed"] = {"cells": len(usable), **means_of(draws, between)}
        found.append(row)
    return {
        "what": "simulation: sd of random cells above their mean",
        "reliability": round(share, 3),
        "reliability_from": source,
        "likeness": likeness,
        "repeats": repeats,
        "rows": found,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--likeness", type=float, default=0.94)
    arguments = parser.parse_args()
    found = report(read_rows(), repeats=arguments.repeats, likeness=arguments.likeness)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

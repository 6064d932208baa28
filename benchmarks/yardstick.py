"""Ground truth of the reduced task: more than 200 cells, each trained alone from several seeds.

    python -m benchmarks.yardstick train --data-root DIR [--hours 1] [--part 0/2] [--only found]
    python -m benchmarks.yardstick report

The task is that of ``studies/small-data.toml``: 2,000 images of 16 pixels, 5 cells x 8 channels, 20
epochs; the measure is the calibrated loss on 20,000 held-out images. ``train`` appends a line to
``yardstick.jsonl`` for each training and goes on where it stopped, in any number of processes. The
cells are random ones, the published ones, those that searches found (``small_data.json``), and
neighbours of the best: one operation or one edge changed. All are trained from one seed before any
is trained from the next, so that wherever it stops all cells have about as many.

``report`` says how reliable a mean is, where the published cells lie, and how well a regression on
what a cell is made of predicts cells that it has not seen.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2nas.config import Config
from d2nas.genotype import PUBLISHED, Genotype, neighbour
from d2nas.randomness import generator
from d2nas.spaces import CELL_TYPES, EDGES_PER_NODE, NODES, SPACES

from .rows import append_row, own_part, rows_of

if TYPE_CHECKING:
    from torch import nn

    from d2nas.data.images import ImageData

HERE = Path(__file__).parent
ROWS_FILE = HERE / "yardstick.jsonl"
TASK = ("data.train_images=2000", "retrain.epochs=20")
NUM_RANDOM, NUM_BEST, NEIGHBOURS_OF_EACH = 120, 10, 4
SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Cell:
    """A genotype to train, and where it is from."""

    origin: str
    name: str
    genotype: Genotype


def random_genotype(seed: int) -> Genotype:
    """Return a uniform genotype of S0."""
    from d2nas.methods.random_search import RandomSearch

    return RandomSearch(SPACES["S0"], generator(seed, "yardstick-cell")).derive()


def first_cells() -> list[Cell]:
    """Return the cells that are known from the start."""
    published = [(name, Genotype.published(name)) for name in PUBLISHED]
    cells = [Cell("published", *each) for each in published if each[1].nodes == SPACES["S0"].nodes]
    rows = json.loads((HERE / "small_data.json").read_text())["rows"]
    cells += [
        Cell(
            "random" if row["method"] == "random" else "found",
            f"small_data/{row['variant']}/{row['method']}/{row['seed']}",
            Genotype.from_dict(row["genotype"]),
        )
        for row in rows
    ]
    num_random = sum(cell.origin == "random" for cell in cells)
    cells += [
        Cell("random", f"random/{seed}", random_genotype(seed))
        for seed in range(NUM_RANDOM - num_random)
    ]
    return [*{cell.genotype: cell for cell in reversed(cells)}.values()][::-1]


def read_rows(path: Path = ROWS_FILE) -> list[dict[str, Any]]:
    """Return the trainings so far."""
    return rows_of(path)


def cells_of(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return all cells: the first ones, and once these have a training each, neighbours of the
    best of them.
    """
    cells = first_cells()
    losses = {row["digest"]: row["calibrated_loss"] for row in rows if row["seed"] == SEEDS[0]}
    if any(cell.genotype.digest not in losses for cell in cells):
        return cells
    known = {cell.genotype for cell in cells}
    best = sorted(cells, key=lambda cell: float(losses[cell.genotype.digest]))[:NUM_BEST]
    for cell in best:
        numbers, made = random.Random(cell.genotype.digest), 0
        while made < NEIGHBOURS_OF_EACH:
            genotype = neighbour(cell.genotype, SPACES["S0"], numbers)
            if genotype not in known:
                known.add(genotype)
                made += 1
                cells.append(Cell("neighbour", f"{cell.name}/{made}", genotype))
    return cells


def todo(rows: Sequence[Mapping[str, Any]], only: str | None = None) -> Iterator[tuple[Cell, int]]:
    """Yield the trainings that are still to be made, in their order: of all cells, or of those of
    one origin.
    """
    done = {(row["digest"], row["seed"]) for row in rows}
    cells = [cell for cell in cells_of(rows) if only in (None, cell.origin)]
    for seed in SEEDS:
        wanted = [cell for cell in cells if (cell.genotype.digest, seed) not in done]
        yield from ((cell, seed) for cell in wanted)
        if wanted:
            return  # what comes next is known when these are done


def configured(data_root: str) -> Config:
    """Return the task."""
    from pipeline.commands.configuration import configure

    settings = [*TASK, f"data.root={data_root}"]
    return configure(str(HERE / "studies" / "proxy.toml"), settings)


def train(config: Config, *, hours: float, part: int, parts: int, only: str | None = None) -> None:
    """Train what is not trained yet, until the time is over."""
    ends = time.monotonic() + 3600 * hours
    train_all(config, lambda: list(todo(read_rows(), only)), part=part, parts=parts, ends=ends)


def train_all(
    config: Config,
    waiting: Callable[[], Sequence[tuple[Cell, int]]],
    *,
    part: int,
    parts: int,
    ends: float = math.inf,
) -> None:
    """Train what is ``waiting``, cells and seeds, until none is or the time ``ends``; of several
    processes each takes its ``part`` first.
    """
    import torch

    from d2nas.data.images import load_data

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    data = load_data(config.data, seed=0, default_root=Path.cwd())
    while time.monotonic() < ends:
        mine = own_part(waiting(), part, parts)
        if not mine:
            return
        append_row(ROWS_FILE, training_of(config, data, *mine[0]), same=("digest", "seed"))


def training_of(config: Config, data: "ImageData", cell: Cell, seed: int) -> dict[str, Any]:
    """Train a cell; return its row."""
    return trained(config, data, cell, seed)[1]


def trained(
    config: Config, data: "ImageData", cell: Cell, seed: int
) -> "tuple[nn.Module, dict[str, Any]]":
    """Train a cell; return its network, in evaluation mode, and its row."""
    import torch

    from d2nas.data.images import Normalizer
    from d2nas.measure.calibration import calibrated_loss
    from d2nas.train.loop import accuracy, predict
    from d2nas.train.retrain import Retraining
    from pipeline.teacher.opening import open_teacher

    device, began, teacher = torch.device("cpu"), time.process_time(), None
    if config.retrain.teacher is not None:
        teacher = open_teacher(config.retrain, data, device).answer
    training = Retraining(
        config.retrain,
        cell.genotype,
        data,
        seed=seed,
        device=device,
        augmentation=config.data,
        teacher=teacher,
    )
    for _ in training.run():
        pass
    network = training.deployed_network().eval()
    logits = predict(network, data.test.to(device), Normalizer(data.mean, data.std))
    loss, _ = calibrated_loss(logits, data.test.labels_N)
    return network, {
        "origin": cell.origin,
        "name": cell.name,
        "genotype": cell.genotype.to_dict(),
        "digest": cell.genotype.digest,
        "seed": seed,
        "accuracy": accuracy(logits, data.test.labels_N),
        "calibrated_loss": loss,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def by_cell(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return each cell's losses, the seeds in order."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[row["digest"]][row["seed"]] = row["calibrated_loss"]
    return {digest: [of[seed] for seed in sorted(of)] for digest, of in found.items()}


def reliability(losses: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the share of variance of one training that lies between cells, and of the mean of as
    many trainings as there are (one-way random effects, cells of two trainings or more; Spearman
    and Brown for the mean).
    """
    several = [of for of in losses if len(of) > 1]
    within = statistics.fmean(statistics.variance(of) for of in several)
    means = [statistics.fmean(of) for of in several]
    number = statistics.harmonic_mean([len(of) for of in several])
    between = max(0.0, statistics.variance(means) - within / number)
    single = between / (between + within)
    return single, number * single / (1 + (number - 1) * single)


def features(genotype: Genotype) -> list[float]:
    """Return what a regression sees of a cell: of each cell type the operations, of those that read
    an input or an inner node, the edges from each source, and the depth.
    """
    found = []
    for cell_type in CELL_TYPES:
        pairs = genotype.cell(cell_type)
        for operation in SPACES["S0"].normal[0]:
            sources = [source for name, source in pairs if name == operation]
            found += [
                float(sum(source < NODES[0] for source in sources)),
                float(sum(source >= NODES[0] for source in sources)),
            ]
        found += [float(sum(source == at for _, source in pairs)) for at in range(NODES[-1])]
        depth = dict.fromkeys(range(NODES[0]), 0)
        for index, (_, source) in enumerate(pairs):
            node = NODES[index // EDGES_PER_NODE]
            depth[node] = max(depth.get(node, 0), depth[source] + 1)
        found.append(float(max(depth.values())))
    return found


class Predictor:
    """Ridge regression of the loss on ``features``."""

    def __init__(
        self, genotypes: Sequence[Genotype], losses: Sequence[float], *, ridge: float
    ) -> None:
        import numpy as np

        x = np.array([features(genotype) for genotype in genotypes])
        self._mean, self._scale = x.mean(axis=0), x.std(axis=0) + 1e-9
        x = (x - self._mean) / self._scale
        self._offset = float(np.mean(losses))
        y = np.array(losses) - self._offset
        self._weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)

    def __call__(self, genotype: Genotype) -> float:
        """Return the predicted loss."""
        import numpy as np

        x = (np.array(features(genotype)) - self._mean) / self._scale
        return self._offset + float(x @ self._weights)


def cross_validated(
    genotypes: Sequence[Genotype], losses: Sequence[float], *, ridge: float, folds: int = 10
) -> list[float]:
    """Return a prediction of each cell by those of the other folds."""
    order = random.Random(0).sample(range(len(losses)), len(losses))
    found = [0.0] * len(losses)
    for fold in range(folds):
        held = set(order[fold::folds])
        kept = [index for index in range(len(losses)) if index not in held]
        predictor = Predictor(
            [genotypes[index] for index in kept], [losses[index] for index in kept], ridge=ridge
        )
        for index in held:
            found[index] = predictor(genotypes[index])
    return found


def report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the trainings say, as JSON values."""
    from scipy.stats import spearmanr

    of_cell = by_cell(rows)
    first = {row["digest"]: row for row in rows}
    means = {digest: statistics.fmean(losses) for digest, losses in of_cell.items()}
    random_means = sorted(means[d] for d, row in first.items() if row["origin"] == "random")
    mean, sd = statistics.fmean(random_means), statistics.stdev(random_means)

    def place(loss: float) -> dict[str, float]:
        below = sum(other > loss for other in random_means)
        return {
            "loss": round(loss, 4),
            "sd_above_random": round((mean - loss) / sd, 2),
            "percentile": round(100 * below / len(random_means)),
        }

    found: dict[str, Any] = {
        "cells": len(of_cell),
        "trainings": len(rows),
        "random": {"n": len(random_means), "mean": round(mean, 4), "sd": round(sd, 4)},
        "published": {
            row["name"]: place(means[digest])
            for digest, row in first.items()
            if row["origin"] == "published"
        },
        "best": [
            {"name": first[digest]["name"], "n": len(of_cell[digest]), **place(means[digest])}
            for digest in sorted(means, key=lambda digest: means[digest])[:10]
        ],
    }
    if any(len(losses) > 1 for losses in of_cell.values()):
        single, of_mean = reliability([*of_cell.values()])
        found["reliability"] = {"one_training": round(single, 3), "mean": round(of_mean, 3)}
    genotypes = [Genotype.from_dict(first[digest]["genotype"]) for digest in means]
    losses = [*means.values()]
    found["predictor"] = {
        f"ridge {ridge:g}": round(
            float(spearmanr(cross_validated(genotypes, losses, ridge=ridge), losses).statistic), 3
        )
        for ridge in (3.0, 10.0, 30.0, 100.0)
    }
    return found


def main() -> None:
    """Train, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train")
    trains.add_argument("--data-root", required=True)
    trains.add_argument("--hours", type=float, default=1e9)
    trains.add_argument("--part", default="0/1")
    trains.add_argument("--only", choices=["random", "published", "found", "neighbour"])
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "report":
        sys.stdout.write(json.dumps(report(read_rows()), indent=1) + "\n")
        return
    part, parts = map(int, arguments.part.split("/"))
    config = configured(arguments.data_root)
    train(config, hours=arguments.hours, part=part, parts=parts, only=arguments.only)


if __name__ == "__main__":
    main()

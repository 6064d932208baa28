"""Every method on the reduced task in as much time: cells found, trained, and compared.

    python -m benchmarks.comparison search --data-root DIR [--part 0/2]
    python -m benchmarks.comparison train --data-root DIR [--part 0/2]
    python -m benchmarks.comparison report

The task is the yardstick's. A search has the epochs of ``PLANS``, about 380 s of one CPU, as a
search of D2NAS has (each row tells its own); a method that computes whole mixtures has a tenth of
the passes of one that samples. The published recipes are not followed, which are for a hundred
times as many steps: all have the settings of ``studies/proxy.toml``, and a learning rate of the
logits that lets Adam move them equally far in however many steps (``DISTANCE``). Nothing is tuned
for any of them. D2NAS, its entangled form, GDAS, DARTS and PC-DARTS were searched with as much time
by ``studies/small-data.toml``: their cells are taken from there.

``search`` appends to ``comparison.jsonl``, a seed of all methods before the next; ``train`` trains
each found cell from two seeds and appends to ``yardstick.jsonl``. Both go on where they stopped.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from d2nas.config import Config
from d2nas.genotype import Genotype
from pipeline.commands.configuration import configure

from .rows import append_row, own_part, rows_of
from .search import search_of
from .yardstick import Cell, by_cell, read_rows, train_all
from .yardstick import configured as yardstick_task

HERE = Path(__file__).parent
ROWS_FILE = HERE / "comparison.jsonl"
SEEDS = (0, 1, 2, 3)
TRAINING_SEEDS = (0, 1)
EPOCH_STEPS = 15
DISTANCE = 8.0
"""Architecture steps times their learning rate: 795 of 0.01 in ``studies/small-data.toml``."""


@dataclass(frozen=True)
class Plan:
    """The length of a method's searches, and settings that are its own."""

    epochs: int
    warmup: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self, method: str, seed: int, data_root: str) -> Config:
        """Return the configuration of a search."""
        values = {
            "data.train_images": 2000,
            "data.root": data_root,
            "run.seed": seed,
            "search.method": method,
            "search.epochs": self.epochs,
            "search.warmup_epochs": self.warmup,
            "search.arch_lr": DISTANCE / (EPOCH_STEPS * (self.epochs - self.warmup)),
            **self.settings,
        }
        preset = str(HERE / "studies" / "proxy.toml")
        return configure(preset, [f"{key}={value}" for key, value in values.items()])


PLANS = {
    "rsws": Plan(240),
    "best-of-n": Plan(245),
    "local-search": Plan(245),
    "regularized-evolution": Plan(245),
    "spos": Plan(220),
    "few-shot": Plan(205),
    "fairnas": Plan(36),
    "pc-darts-2": Plan(34, warmup=17),
    "beta-darts": Plan(17),
    "darts-minus": Plan(15),
    "darts-plus": Plan(15),
    "fair-darts": Plan(18),
    "sdarts-rs": Plan(16),
    "snas": Plan(33, settings={"search.arch_lr": 0.02}),  # SGD's, of another scale than Adam's
    "p-darts": Plan(12, warmup=1),
    "darts-second-order": Plan(7),
    "zarts": Plan(8, warmup=1),
    "sdarts-adv": Plan(4),
    "darts-pt": Plan(8),
    "r-darts-es": Plan(3),
    "r-darts-ada": Plan(3),
}
SEARCHED_BEFORE = {
    ("base", "d2nas"): "d2nas",
    ("base", "entangled"): "entangled",
    ("base", "gdas"): "gdas",
    ("equal-time", "darts"): "darts",
    ("equal-time", "pc-darts-4"): "pc-darts-4",
}
"""Variants and methods of ``small_data.json``, by the name of the method here."""


def searched(path: Path = ROWS_FILE) -> list[dict[str, Any]]:
    """Return the searches so far, with those of ``small_data.json``."""
    before = json.loads((HERE / "small_data.json").read_text())["rows"]
    return rows_of(path) + [
        {**row, "method": SEARCHED_BEFORE[row["variant"], row["method"]]}
        for row in before
        if (row["variant"], row["method"]) in SEARCHED_BEFORE
    ]


def search_row(method: str, seed: int, data_root: str) -> dict[str, Any]:
    """Search once; return the row."""
    search = search_of(PLANS[method].config(method, seed, data_root))
    began = time.process_time()
    for _ in search.run():
        pass
    genotype = search.method.derive()
    return {
        "method": method,
        "seed": seed,
        "epochs": search.config.epochs,
        "epochs_run": len(search.metrics),
        "passes": search.num_passes,
        "cpu_seconds": round(time.process_time() - began, 1),
        "parameterless": genotype.parameterless_normal,
        "genotype": genotype.to_dict(),
    }


def search_all(data_root: str, part: int, parts: int) -> None:
    """Make the searches that are not made yet."""
    while True:
        done = {(row["method"], row["seed"]) for row in searched()}
        left = [(m, seed) for seed in SEEDS for m in PLANS if (m, seed) not in done]
        mine = own_part(left, part, parts)
        if not mine:
            return
        append_row(ROWS_FILE, search_row(*mine[0], data_root), same=("method", "seed"))


def trainings() -> Iterator[tuple[Cell, int]]:
    """Yield the trainings of found cells that are not made yet, a seed of all before the next."""
    done = {(row["digest"], row["seed"]) for row in read_rows()}
    for seed in TRAINING_SEEDS:
        for row in searched():
            genotype = Genotype.from_dict(row["genotype"])
            if (genotype.digest, seed) not in done:
                done.add((genotype.digest, seed))
                name = f"comparison/{row['method']}/{row['seed']}"
                yield Cell("found", name, genotype), seed


def report() -> dict[str, Any]:
    """Return what each method's cells reach: standard deviations of random cells above their mean.

    A cell counts by the mean of its trainings; ``difference`` is D2NAS's mean less the method's,
    with the standard error of both means.
    """
    rows = read_rows()
    losses, origin = by_cell(rows), {row["digest"]: row["origin"] for row in rows}
    random_cells = [losses[digest] for digest, of in origin.items() if of == "random"]
    every = [loss for of in random_cells for loss in of]
    mean, sd = statistics.fmean(every), statistics.stdev(every)
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for row in searched():
        if "cpu_seconds" in row:
            seconds.setdefault(row["method"], []).append(row["cpu_seconds"])
        own = losses.get(Genotype.from_dict(row["genotype"]).digest)
        if own:
            found.setdefault(row["method"], []).append((mean - statistics.fmean(own)) / sd)
    ours = found.get("d2nas", [])
    table: dict[str, Any] = {}
    for method, of in sorted(found.items(), key=lambda item: -statistics.fmean(item[1])):
        table[method] = {"n": len(of), "sd_above_random": [round(z, 2) for z in of]}
        table[method]["mean"] = round(statistics.fmean(of), 2)
        if method in seconds:
            table[method]["cpu_seconds"] = round(statistics.fmean(seconds[method]))
        if len(of) > 1 and len(ours) > 1 and method != "d2nas":
            error = sum(statistics.variance(each) / len(each) for each in (of, ours)) ** 0.5
            difference = statistics.fmean(ours) - statistics.fmean(of)
            table[method]["difference"] = [round(difference, 2), round(error, 2)]
    return {"random": {"n": len(every), "mean": round(mean, 4), "sd": round(sd, 4)}, **table}


def main() -> None:
    """Search, train or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["search", "train", "report"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--part", default="0/1")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.command == "search":
        search_all(arguments.data_root, part, parts)
    elif arguments.command == "train":
        task = yardstick_task(arguments.data_root)
        train_all(task, lambda: list(trainings()), part=part, parts=parts)
    else:
        sys.stdout.write(json.dumps(report(), indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Settings of a training that came after DARTS's recipe, on the reduced task: which of them help?

    python -m benchmarks.recipes train --data-root DIR [--part 0/2] [--hours 1]
    python -m benchmarks.recipes report

The task is the yardstick's, one published cell and 20 or 60 epochs of it; accuracy and calibrated
loss are of held-out training images. Rows are in ``recipes.jsonl``; ``train`` goes on where it
stopped, a seed of all variants before the next.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from d2nas.config import Config
from d2nas.data.images import load_data
from d2nas.genotype import Genotype

from .rows import append_row, own_part, rows_of
from .yardstick import Cell, configured, training_of

ROWS_FILE = Path(__file__).parent / "recipes.jsonl"
CELL = "DARTS_V2"
EPOCHS = (20, 60)
SEEDS = (0, 1, 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "darts": {},
    "ema": {"ema": 0.99},
    "trivial": {"augment": "trivial"},
    "erasing": {"erasing": 0.25},
    "cutmix": {"cutmix": 1.0},
    "smoothing": {"label_smoothing": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05},
    "modern": {"ema": 0.99, "augment": "trivial", "cutmix": 1.0, "label_smoothing": 0.1},
    "mild": {"ema": 0.99, "erasing": 0.25, "label_smoothing": 0.1},
}

Key = tuple[str, int, int]


def waiting() -> list[Key]:
    """Return the variants, epochs and seeds that are not trained yet."""
    done = {(row["variant"], row["epochs"], row["seed"]) for row in rows_of(ROWS_FILE)}
    every = [(name, epochs, seed) for epochs in EPOCHS for seed in SEEDS for name in VARIANTS]
    return [one for one in every if one not in done]


def trained(config: Config, variant: str, epochs: int) -> Config:
    """Return the task's configuration with a variant's settings."""
    update = {"epochs": epochs, **VARIANTS[variant]}
    return config.model_copy(update={"retrain": config.retrain.model_copy(update=update)})


def train_all(data_root: str, ends: float, part: int, parts: int) -> None:
    """Train what is not trained yet, until the time is over."""
    torch.set_flush_denormal(True)
    config = configured(data_root)
    data = load_data(config.data, seed=0, default_root=Path.cwd())
    cell = Cell("published", CELL, Genotype.published(CELL))
    while time.monotonic() < ends:
        mine = own_part(waiting(), part, parts)
        if not mine:
            return
        variant, epochs, seed = mine[0]
        row = training_of(trained(config, variant, epochs), data, cell, seed)
        kept = {key: row[key] for key in ("accuracy", "calibrated_loss", "cpu_seconds")}
        named = {"variant": variant, "epochs": epochs, "seed": seed, "cell": CELL}
        append_row(ROWS_FILE, {**named, **kept}, same=("variant", "epochs", "seed"))


def report() -> list[dict[str, Any]]:
    """Return each variant's means and deviations, by epochs."""
    rows = rows_of(ROWS_FILE)
    found = []
    for epochs in EPOCHS:
        for variant in VARIANTS:
            own = [row for row in rows if (row["variant"], row["epochs"]) == (variant, epochs)]
            if len(own) > 1:
                means = {
                    key: [statistics.fmean(values), statistics.stdev(values)]
                    for key in ("accuracy", "calibrated_loss", "cpu_seconds")
                    for values in [[row[key] for row in own]]
                }
                found.append({"variant": variant, "epochs": epochs, "n": len(own), **means})
    return found


def main() -> None:
    """Train or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["train", "report"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--part", default="0/1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "train":
        part, parts = map(int, arguments.part.split("/"))
        train_all(arguments.data_root, time.monotonic() + 3600 * arguments.hours, part, parts)
    else:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in report()))


if __name__ == "__main__":
    main()

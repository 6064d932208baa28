"""Settings of a training that came after DARTS's recipe, on the reduced task: which of them help?

    python -m benchmarks.recipes teach --data-root DIR
    python -m benchmarks.recipes train --data-root DIR [--part 0/2] [--hours 1] [--only ema mild]
    python -m benchmarks.recipes report

The task is the yardstick's, one published cell and 20 or 60 epochs of it; accuracy and calibrated
loss are of held-out training images. With ``--photographs`` it is the same on a folder of
photographs at 32 pixels (``python -m benchmarks.photographs`` writes one). Rows are in
``recipes.jsonl``; ``train`` goes on where it stopped, a seed of all variants before the next.
``teach`` trains the teacher of those variants that have one, the same cell much wider on the same
images, and exports it; without it they are left out.
"""

import argparse
import hashlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from d2nas.config import Config
from d2nas.data.images import ImageData, load_data, preprocessing
from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.preparation import PREPROCESS_KEY, preprocess_for

from .rows import append_row, own_part, rows_of
from .yardstick import Cell, configured, trained, training_of

ROWS_FILE = Path(__file__).parent / "recipes.jsonl"
CELL = "DARTS_V2"
EPOCHS = (20, 60)
SEEDS = (0, 1, 2)
TEACHER_FILE = Path("recipes_teacher.onnx")
"""Where ``teach`` writes; not kept with the rows, which name its digest."""
TEACHER = "the teacher"
TEACHER_SETTINGS = {"init_channels": 32, "epochs": 60, "augment": "trivial"}
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
    "teacher": {"teacher": str(TEACHER_FILE)},
    "teacher-trivial": {"teacher": str(TEACHER_FILE), "augment": "trivial"},
}
KEPT = ("accuracy", "calibrated_loss", "cpu_seconds")

PHOTOGRAPHS = {"name": "folder", "image_size": 32, "flip": True, "held_out_images": 10_000}
"""What differs in ``data`` where the images are photographs."""
IMAGES = ("Fashion-MNIST", "photographs")

Key = tuple[str, int, int]


def images_of(row: Mapping[str, Any]) -> str:
    """Return which images a row is of; the first rows were of one kind and do not say it."""
    return str(row.get("images", IMAGES[0]))


def waiting(only: Sequence[str], images: str = IMAGES[0]) -> list[Key]:
    """Return variants of those wanted, epochs and seeds that can be trained and are not yet."""
    rows = [row for row in rows_of(ROWS_FILE) if images_of(row) == images]
    done = {(row["variant"], row["epochs"], row["seed"]) for row in rows}
    names = [name for name in only if "teacher" not in VARIANTS[name] or TEACHER_FILE.is_file()]
    every = [(name, epochs, seed) for epochs in EPOCHS for seed in SEEDS for name in names]
    return [one for one in every if one not in done]


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return the task's configuration with other settings of the training."""
    return config.model_copy(update={"retrain": config.retrain.model_copy(update=settings)})


def task(data_root: str, images: str = IMAGES[0]) -> tuple[Config, ImageData, Cell]:
    """Return the configuration, the images and the cell."""
    torch.set_flush_denormal(True)
    config = configured(data_root)
    if images == "photographs":
        config = config.model_copy(update={"data": config.data.model_copy(update=PHOTOGRAPHS)})
    data = load_data(config.data, seed=0, default_root=Path.cwd())
    return config, data, Cell("published", CELL, Genotype.published(CELL))


def teach(data_root: str) -> None:
    """Train the teacher, write it as ONNX, and add a row of its own accuracy."""
    config, data, cell = task(data_root)
    network, row = trained(with_settings(config, TEACHER_SETTINGS), data, cell, SEEDS[0])
    words = {**preprocessing(data), "class_names": list(data.class_names)}
    told = canonical_json(preprocess_for("float32", words)).decode().strip()
    shape = (data.channels, data.image_size, data.image_size)
    options: Any = {"input_shape": shape, "opset": config.export.opset}
    TEACHER_FILE.write_bytes(export_onnx(network, **options, metadata={PREPROCESS_KEY: told}))
    add_row(TEACHER, TEACHER_SETTINGS["epochs"], SEEDS[0], row)


def add_row(
    variant: str, epochs: Any, seed: int, row: Mapping[str, Any], images: str = IMAGES[0]
) -> None:
    """Add what a training reached, unless it is there."""
    named = {"images": images, "variant": variant, "epochs": epochs, "seed": seed, "cell": CELL}
    if variant == TEACHER or "teacher" in VARIANTS[variant]:
        named["teacher"] = hashlib.sha256(TEACHER_FILE.read_bytes()).hexdigest()
    kept = {key: row[key] for key in KEPT}
    append_row(ROWS_FILE, {**named, **kept}, same=("images", "variant", "epochs", "seed"))


def train_all(
    data_root: str, ends: float, part: int, parts: int, only: Sequence[str], images: str
) -> None:
    """Train what is not trained yet, until the time is over."""
    config, data, cell = task(data_root, images)
    while time.monotonic() < ends:
        mine = own_part(waiting(only, images), part, parts)
        if not mine:
            return
        variant, epochs, seed = mine[0]
        settings = {"epochs": epochs, **VARIANTS[variant]}
        row = training_of(with_settings(config, settings), data, cell, seed)
        add_row(variant, epochs, seed, row, images)


def report() -> list[dict[str, Any]]:
    """Return each variant's means and deviations, by epochs, and what the teacher reaches."""
    rows = rows_of(ROWS_FILE)
    found = [row for row in rows if row["variant"] == TEACHER]
    for group in itertools.product(IMAGES, EPOCHS, VARIANTS):
        own = [row for row in rows if (images_of(row), row["epochs"], row["variant"]) == group]
        if len(own) > 1:
            means = {
                key: [statistics.fmean(values), statistics.stdev(values)]
                for key in KEPT
                for values in [[row[key] for row in own]]
            }
            images, epochs, variant = group
            named = {"images": images, "variant": variant, "epochs": epochs}
            found.append({**named, "n": len(own), **means})
    return found


def main() -> None:
    """Teach, train or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["teach", "train", "report"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "teach":
        teach(arguments.data_root)
    elif arguments.command == "train":
        part, parts = map(int, arguments.part.split("/"))
        ends = time.monotonic() + 3600 * arguments.hours
        images = IMAGES[arguments.photographs]
        train_all(arguments.data_root, ends, part, parts, arguments.only, images)
    else:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in report()))


if __name__ == "__main__":
    main()

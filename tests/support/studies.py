"""A small study over the toy preset, and what its trials are."""

import json
from pathlib import Path
from typing import Any

from toy import Place

from pipeline.study.grid import Study, read_study

SMALL = """
methods = ["d2nas"]
spaces = ["S0"]
seeds = [0, 1]

[settings]
"data.evaluation" = "held-out"
"data.held_out_images" = 150
"data.train_images" = 400
"data.split_seed" = 0
"search.epochs" = 2
"search.batch_size" = 64
"retrain.epochs" = 2
"retrain.batch_size" = 64
"retrain.num_cells" = 2
"retrain.init_channels" = 4
"""


def write(place: Place, text: str = SMALL, name: str = "small") -> Path:
    """Write a study that starts from the toy preset."""
    path = place.folder / f"{name}.toml"
    path.write_text(f"preset = {json.dumps(str(place.preset))}\n{text}")
    return path


def read(place: Place, text: str) -> Study:
    return read_study(str(write(place, text)))


def trials(study: Study) -> list[tuple[Any, ...]]:
    return [(c.variant, c.seed, c.data, c.space, c.method) for c in study.trials]

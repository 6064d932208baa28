"""The benchmark of recipes: what waits for a teacher, and that its answers are learned."""

from pathlib import Path

import pytest
from searches import config_of, made_images
from teachers import written

from benchmarks import recipes
from benchmarks.recipes import VARIANTS, waiting, with_settings
from benchmarks.yardstick import Cell, trained
from d2nas.genotype import Genotype

CELL = Cell("published", "DARTS_V2", Genotype.published("DARTS_V2"))
SMALL = ("num_cells=3", "init_channels=4", "batch_size=16", "epochs=1", "auxiliary=false")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "ROWS_FILE", tmp_path / "rows.jsonl")


def test_variants_with_a_teacher_wait_for_it() -> None:
    names = ["darts", "teacher", "teacher-trivial"]
    assert {name for name, _, _ in waiting(names)} == {"darts"}
    recipes.TEACHER_FILE.write_bytes(b"a teacher")
    assert {name for name, _, _ in waiting(names)} == {*names}
    row = {"accuracy": 0.5, "calibrated_loss": 1.0, "cpu_seconds": 1.0}
    recipes.add_row("teacher", 20, 0, row)
    assert ("teacher", 20, 0) not in waiting(names)
    recipes.add_row(recipes.TEACHER, 60, 0, row)
    (told,) = recipes.report()
    assert told["teacher"] == recipes.rows_of(recipes.ROWS_FILE)[0]["teacher"]


def test_its_answers_are_learned() -> None:
    data = made_images()
    written(Path(), data, name=recipes.TEACHER_FILE.name)
    config = config_of("d2nas", *(f"retrain.{setting}" for setting in SMALL))
    unit = {"teacher_mean": (0.0,) * 3, "teacher_std": (1.0,) * 3}
    taught = with_settings(config, {**VARIANTS["teacher"], **unit})
    losses = [trained(one, data, CELL, 0)[1]["calibrated_loss"] for one in (config, taught)]
    assert losses[0] != losses[1]

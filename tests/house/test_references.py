"""Generated references and the README's example: as the code is today."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples import first_example

from d2nas import SPACES, Genotype
from d2nas.config import DataConfig, RetrainConfig, SearchConfig
from d2nas.data.images import load_data
from d2nas.train import retrain as retrain_module
from d2nas.train import search as search_module

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)


def test_the_references_are_what_the_code_says() -> None:
    done = run("docs/generate.py", "--check")
    assert done.returncode == 0, done.stderr


def test_control_a_stale_reference_is_told(tmp_path: Path) -> None:
    (tmp_path / "generate.py").write_text((ROOT / "docs" / "generate.py").read_text())
    (tmp_path / "commands.md").write_text("old")
    done = run(str(tmp_path / "generate.py"), "--check")
    assert done.returncode == 1
    assert "commands.md" in done.stderr


@pytest.mark.parametrize("module", [search_module, retrain_module])
def test_the_examples_of_the_loops_run(module: ModuleType) -> None:
    small = {"num_cells": 3, "init_channels": 4, "epochs": 1}
    configs = {
        "d2nas.train.search": SearchConfig(**small, draws=1),
        "d2nas.train.retrain": RetrainConfig(**small, auxiliary=False),
    }
    names = {
        **vars(module),
        "config": configs[module.__name__],
        "genotype": Genotype.published("DARTS_V2"),
        "data": load_data(DataConfig(train_images=128), seed=0, default_root=ROOT),
        "SPACES": SPACES,
        "DataConfig": DataConfig,
        "torch": torch,
    }
    exec(first_example(module), names)  # noqa: S102
    assert names["report"].metrics is not None


def test_the_readmes_example_searches(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = run("-c", example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Cost(params=" in done.stdout

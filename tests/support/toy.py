"""A whole run in seconds: the real stages on real digits, only small."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_once import digits_read_once, traced_once

from d2nas.errors import ValidationFailedError
from pipeline.cli import run
from pipeline.running.runner import Runner

TOY = """
[data]
name = "digits"
crop_padding = 1
flip = false

[search]
num_cells = 3
init_channels = 4
epochs = 2
batch_size = 128
draws = 1
weight_lr = 0.1
arch_lr = 0.05

[retrain]
num_cells = 4
init_channels = 8
auxiliary = false
epochs = 3
warmup_epochs = 1
batch_size = 128
lr = 0.1
drop_path = 0.1
cutout = 2

[validate]
latency_batches = [1, 4]
latency_samples = 20
latency_seconds = 0.1
"""

TRAINING_BEGINS = "this is where training begins"


class Place:
    """A store and an export folder of their own, with a preset beside them: the toy, or another."""

    def __init__(self, folder: Path, run: str = "toy", preset: str = TOY) -> None:
        self.folder, self.name = folder, run
        self.store, self.exported = folder / "store", folder / "exported"
        self.preset = folder / f"{run}.toml"
        self.preset.write_text(preset)

    def arguments(self, command: str, *arguments: str) -> list[str]:
        """The command with this place's folders."""
        places = ["--store", str(self.store)]
        if command in ("run", "baseline", "validate"):
            places += ["--exported", str(self.exported)]
        return [command, *arguments, *places]

    def run(self, command: str, *arguments: str) -> int:
        """Run a command in this process and return its exit code."""
        with traced_once(), digits_read_once():
            return run(self.arguments(command, *arguments))

    def json(self, capfd: pytest.CaptureFixture[str], command: str, *arguments: str) -> Any:
        """Run a command with --json, expect success, and return its data."""
        capfd.readouterr()
        code = self.run(command, *arguments, "--json")
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)


def end_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runs end with a failure that says ``TRAINING_BEGINS`` where it would."""
    real = Runner.check_stop

    def stop(runner: Runner, when: str) -> None:
        if when == "before retrain":
            raise ValidationFailedError(TRAINING_BEGINS)
        real(runner, when)

    monkeypatch.setattr(Runner, "check_stop", stop)


def expect_error(
    capfd: pytest.CaptureFixture[str], place: Place, code: int, *arguments: str
) -> str:
    """Run; expect the code, one error line with one hint line, nothing on stdout, no version."""
    capfd.readouterr()
    assert place.run(*arguments) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert sum(line.startswith("hint: ") for line in lines) <= 1
    assert "Traceback" not in captured.err
    versions = place.store / "versions"
    assert not versions.exists() or not list(versions.iterdir())
    return captured.err

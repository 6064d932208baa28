"""Trackers for tests: stand-ins of the packages, and what they were told."""

import json
from pathlib import Path
from typing import Any

import pytest

STAND_INS = Path(__file__).parent / "stand_ins"


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Put the stand-ins in the packages' place, here and in processes; return what they leave."""
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))
    monkeypatch.syspath_prepend(STAND_INS)
    monkeypatch.setenv("TOLD", str(folder / "told.jsonl"))
    return folder / "told.jsonl"


def calls(told: Path, *names: str) -> list[dict[str, Any]]:
    """The calls of these names, or all, in order."""
    lines = told.read_text().splitlines() if told.exists() else []
    found = [json.loads(line) for line in lines]
    return [call for call in found if not names or call["call"] in names]


def metrics(told: Path) -> list[tuple[str, str, float]]:
    """Every metric that MLflow was told: run, NAME@STEP and value, in order."""
    return [
        (call["run"], name, value)
        for call in calls(told, "log_batch")
        for name, value in call["metrics"].items()
    ]

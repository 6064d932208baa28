"""Times of a plan that are made up: nothing is timed, and no clock decides a choice."""

from typing import Any

import pytest

from pipeline.preflight.plan import Estimates

REST = 100.0
"""Seconds of each stage that is no training."""


def make_up_times(monkeypatch: pytest.MonkeyPatch, *, search: float, retrain: float) -> list[Any]:
    """Let an epoch take so many seconds; returns the configurations that are asked for."""
    asked: list[Any] = []

    def of(estimates: Estimates, stage: str, _done: int) -> dict[str, Any]:
        config = estimates._config
        asked.append(config)
        taken = {
            "search": search * config.search.epochs,
            "retrain": retrain * config.retrain.epochs,
        }
        return {"steps": 1, "seconds": taken.get(stage, REST), "note": "made up"}

    monkeypatch.setattr(Estimates, "of", of)
    return asked

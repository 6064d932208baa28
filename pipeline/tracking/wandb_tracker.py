"""Weights & Biases, by its own variables (``WANDB_MODE``, ``WANDB_API_KEY``, ...), in the project
``WANDB_PROJECT`` or d2nas.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import TITLES
from .tracker import Tracker

if TYPE_CHECKING:
    import wandb

PROJECT = "d2nas"


class WandbTracker(Tracker):
    """A run of Weights & Biases.

    Its files lie in the folder ``wandb`` beside the run's events, or in ``WANDB_DIR``.
    """

    title = TITLES["wandb"]
    _opened: "wandb.Run"

    def open(self, known: str | None) -> str:
        """Open a run that is told what we log, and nothing of this machine, code or terminal."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=self.run,
            id=known,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            settings=settings,
        )
        self._stages: set[str] = set()
        return str(self._opened.id)

    def where(self) -> str:
        """Return the run's page, or its files where there is none."""
        run = self._opened
        return f"run {run.id}, {run.url or f'offline, in {run.dir}'}"

    def log_params(self, params: Mapping[str, str]) -> None:
        """Add to the run's configuration."""
        self._opened.config.update(dict(params), allow_val_change=True)

    def log_metrics(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics over an axis of the stage's own: the run's one axis only grows."""
        axis = f"{stage}/step"
        if stage not in self._stages:
            self._stages.add(stage)
            self._opened.define_metric(axis, hidden=True)
            self._opened.define_metric(f"{stage}/*", step_metric=axis)
        self._opened.log({**metrics, axis: step})

    def log_outcome(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Add both to the run's summary: tags there are words without a value."""
        self._opened.summary.update({**tags, **metrics})

    def finish(self, status: str) -> None:
        """Send what is left, and close the run."""
        self._opened.finish(exit_code=0 if status == "finished" else 1)

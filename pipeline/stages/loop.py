"""Drive a training loop under hooks: progress, checkpoints, resume."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from d2nas.state import TrainState
from d2nas.strict_json import canonical_json
from d2nas.training import StepReport

from . import Hooks


class Loop(Protocol):
    """A search or a retraining."""

    num_steps: int

    def run(self, state: TrainState | None = None) -> Iterator[StepReport]:
        """Run the steps that are left."""

    def capture(self, step: int) -> TrainState:
        """Return the state before ``step``."""


def run_loop(loop: Loop, hooks: Hooks) -> None:
    """Run every step that is left. Raises ``StoppedError`` after a signal, with a checkpoint."""
    state = hooks.resume()
    hooks.begin(loop.num_steps, state.step if state else 0, "step")
    for report in loop.run(state):
        hooks.advance(report.step + 1, report.metrics)
        if report.step + 1 < loop.num_steps:
            hooks.checkpoint(report.step + 1, loop.capture)


def encode_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return JSON lines."""
    return b"".join(canonical_json(row) for row in rows)

"""Drive a training loop under hooks: progress, checkpoints, resume."""

from collections.abc import Mapping, Sequence
from typing import Any

from d2nas.strict_json import canonical_json
from d2nas.training import Loop

from . import Hooks


def run_loop(loop: Loop, hooks: Hooks) -> None:
    """Run every step that is left. Raises ``StoppedError`` after a signal, with a checkpoint."""
    state = hooks.resume()
    hooks.begin(loop.num_steps, state.step if state else 0, "step", loop.batch_size)
    for report in loop.run(state):
        hooks.advance(report.step + 1, report.metrics)
        if report.step + 1 < loop.num_steps:
            hooks.checkpoint(report.step + 1, loop.capture)


def encode_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return JSON lines."""
    return b"".join(canonical_json(row) for row in rows)

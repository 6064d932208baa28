"""Drive a training loop under hooks: progress, checkpoints, resume."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from d2nas.files.strict_json import canonical_json
from d2nas.train.loop import Loop

from . import KEPT_CHECKPOINTS, Hooks


def run_loop(loop: Loop, hooks: Hooks) -> None:
    """Run every step that is left. Raises ``StoppedError`` after a signal, with a checkpoint, and
    ``StorageError`` where the disk has no room for what is going to be written.
    """
    state = hooks.resume()
    hooks.reserve(bytes_to_write(loop, continued=state is not None))
    epochs = loop.num_steps // loop.steps_per_epoch
    for batches in loop.streams():
        batches.stalled = hooks.stalled
    hooks.begin(loop.num_steps, state.step if state else 0, "step", loop.batch_size, epochs)
    for report in loop.run(state):
        hooks.advance(report.step + 1, report.metrics)
        if report.step + 1 < loop.num_steps:
            hooks.checkpoint(report.step + 1, loop.capture)


def bytes_to_write(loop: Loop, *, continued: bool = False) -> int:
    """Return about how much a loop adds to the store at most: its checkpoints, of which one is
    written before the oldest goes, and its network. One that continues has its checkpoints.
    """
    checkpoint = _num_bytes(loop.trained.tensors())
    network = _num_bytes(loop.network.state_dict())
    return checkpoint * (1 if continued else KEPT_CHECKPOINTS + 1) + network


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def encode_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return JSON lines."""
    return b"".join(canonical_json(row) for row in rows)

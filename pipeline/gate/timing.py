"""Latency of a validated model: every mode of its device, PyTorch beside, and the gate.

The best mode is, of those that may serve, the one with the shortest median from host to host at
the gate's batch size. It is what ``config.pbtxt`` and ``d2nas serve`` run in, and what the gate's
p99 is of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2nas.config.deployment import ValidateConfig
from d2nas.errors import OutOfMemoryError, ValidationFailedError
from d2nas.nn.network import Network

from ..onnx_io.devices import Device
from ..onnx_io.gpu_state import GpuState, read_gpu_state
from ..onnx_io.latency import MIN_SAMPLES, LatencyRecord, Transfers, measure_latency
from ..onnx_io.session import PLAIN, OnnxSession
from .eager import measure_eager
from .modes import may_serve, modes_of

TRANSFERS: tuple[Transfers, ...] = ("none", "host")
OpenMode = Callable[[str], OnnxSession]
Problem = Callable[[OnnxSession], str | None]
"""Says why a session must not be used; None if it may."""


@dataclass
class Latencies:
    """Latencies that were measured; ``refused`` says of a mode why it may not serve."""

    records: list[LatencyRecord] = field(default_factory=list)
    eager: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    best_mode: str = PLAIN
    before: GpuState | None = None
    after: GpuState | None = None

    def of(self, batch: int, transfers: str) -> LatencyRecord:
        """Return the best mode's record."""
        return _find(self.records, self.best_mode, batch, transfers)

    def to_dict(self) -> dict[str, Any]:
        """Return the report's parts as JSON data, without the single runs."""
        entries = [record.to_dict() for record in self.records]
        return {
            "latency": [
                entry
                for entry in entries
                if (entry["mode"], entry["transfers"]) == (self.best_mode, "none")
            ],
            "latency_modes": entries,
            "best_mode": self.best_mode,
            "refused_modes": self.refused,
            "eager": self.eager,
            "gpu": None if self.before is None else self.before.to_dict(self.after),
        }

    def samples(self) -> list[dict[str, Any]]:
        """Return every timed run as JSON data."""
        return [
            {
                "mode": record.mode,
                "transfers": record.transfers,
                "batch": record.batch,
                "samples_ns": list(record.samples_ns),
            }
            for record in self.records
        ]


def measure_all(
    session: OnnxSession,
    open_mode: OpenMode,
    network: Network,
    config: ValidateConfig,
    problem: Problem,
    done: Callable[[], None],
) -> Latencies:
    """Measure every mode at every batch size, on the device and from host to host.

    ``session`` runs in the plain mode, ``open_mode`` opens others; one that does not come about or
    has a ``problem`` is refused. ``done`` is called after each batch size.
    """
    found = Latencies(before=read_gpu_state(session.device))
    for mode in modes_of(session.device, config):
        if mode == PLAIN:
            found.records += _measured(session, config, done)
            continue
        try:
            opened = open_mode(mode)
            refused = problem(opened)
            found.records += [] if refused else _measured(opened, config, done)
        except (OutOfMemoryError, ValidationFailedError) as error:
            refused = str(error)
        if refused:
            found.refused[mode] = refused
    found.best_mode = _best_mode(found.records, deciding_batch(config))
    if config.compare_eager:
        for batch in measured_batches(config):
            found.eager += measure_eager(network, session, batch, config)
    found.after = read_gpu_state(session.device)
    return found


def _measured(
    session: OnnxSession, config: ValidateConfig, done: Callable[[], None]
) -> list[LatencyRecord]:
    records = []
    for batch in measured_batches(config):
        for transfers in TRANSFERS:
            is_gate = (batch, transfers) == (config.gated_batch, "host")
            # What the gate asks for can be answered, whatever the budgets say.
            needed = MIN_SAMPLES[99] if is_gate else 1
            records.append(
                measure_latency(
                    session,
                    batch,
                    samples=max(config.latency_samples, needed),
                    seconds=config.latency_seconds,
                    at_least=needed,
                    transfers=transfers,
                )
            )
        done()
    return records


def measured_batches(config: ValidateConfig) -> list[int]:
    """Return the batch sizes to time, smallest first, the gate's among them."""
    gated = () if config.gated_batch is None else (config.gated_batch,)
    return sorted({*config.latency_batches, *gated})


def deciding_batch(config: ValidateConfig) -> int:
    """Return the batch size that the best mode is chosen by: the gate's, or the smallest."""
    return config.gated_batch or measured_batches(config)[0]


def num_measured(device: Device, config: ValidateConfig) -> int:
    """Return how often ``measure_all`` calls ``done``, at most."""
    return len(modes_of(device, config)) * len(measured_batches(config))


def pass_gate(
    latencies: Latencies, config: ValidateConfig, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Return the gate and what passed it as JSON data; None without one.

    ``warn`` is told of a figure that decides and is not stable. Raises as ``require_fast`` does.
    """
    if config.max_p99_ms is None or config.gated_batch is None:
        return None
    record = latencies.of(config.gated_batch, "host")
    require_fast(record, config.max_p99_ms)
    p99 = record.percentile_ms(99)
    if not record.stable:
        warn(
            f"the p99 that passed the gate, {p99:.3g} ms of {config.max_p99_ms:g} ms, is unstable: "
            "validate again on an idle machine (--fresh)"
        )
    return {
        "max_p99_ms": config.max_p99_ms,
        "batch": config.gated_batch,
        "transfers": "host",
        "p99_ms": p99,
        "mode": record.mode,
        "device": record.device.label,
        "kind": record.device.kind,
        "stable": record.stable,
    }


def require_fast(record: LatencyRecord, max_p99_ms: float) -> None:
    """Raise ``ValidationFailedError`` unless the p99 is known and at most ``max_p99_ms``."""
    p99 = record.percentile_ms(99)
    what = f"batch {record.batch} on {record.device.label}"
    if p99 is None:
        raise ValidationFailedError(
            f"the p99 of {what} is not known: {len(record.samples_ns)} runs were timed, "
            f"{MIN_SAMPLES[99]} are needed"
        )
    # "Not at most" rather than "above": a NaN must not pass.
    if not p99 <= max_p99_ms:
        raise ValidationFailedError(
            f"p99 {p99:.3g} ms > {max_p99_ms:g} ms for {what}",
            hint="a smaller retrain.init_channels or retrain.num_cells is faster",
        )


def _best_mode(records: Sequence[LatencyRecord], batch: int) -> str:
    candidates = [
        record
        for record in records
        if (record.batch, record.transfers) == (batch, "host") and may_serve(record.mode)
    ]
    return quickest(candidates).mode


def quickest(records: Sequence[LatencyRecord]) -> LatencyRecord:
    """Return the record with the shortest median: what decides between modes."""
    return min(records, key=lambda record: float(np.median(record.samples_ns)))


def _find(records: Sequence[LatencyRecord], mode: str, batch: int, transfers: str) -> LatencyRecord:
    wanted = (mode, batch, transfers)
    return next(r for r in records if (r.mode, r.batch, r.transfers) == wanted)

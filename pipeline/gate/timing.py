"""Latency of a validated model: every mode of its device, PyTorch beside, and the gate.

The best mode is, of those that may serve, the one with the shortest median from host to host at
the gate's batch size. It is what ``config.pbtxt`` and ``d2nas serve`` run in, and what the gate's
p99 is of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from d2nas.config.deployment import MIN_SAMPLES
from d2nas.errors import OutOfMemoryError, ValidationFailedError

from ..onnx_io.gpu_state import GpuState, read_gpu_state
from ..onnx_io.latency import LatencyRecord, Transfers, measure_latency
from ..onnx_io.session import PLAIN, OnnxSession, may_serve
from .eager import measure_eager

TRANSFERS: tuple[Transfers, ...] = ("none", "host")
OpenMode = Callable[[str], OnnxSession]


@dataclass(frozen=True)
class TimingPlan:
    """Which modes and batch sizes are timed, how long, and the gate's limit."""

    batches: Sequence[int] = (1,)
    samples: int = MIN_SAMPLES[99]
    """Timed runs, of each mode, batch size and kind of transfer: enough for a p99."""
    seconds: float = 10.0
    """Time for them; fewer runs are timed when it is over."""
    modes: Sequence[str] = (PLAIN,)
    """Plain among them: it is what ``session`` runs in."""
    max_p99_ms: float | None = None
    """Limit of the gate on latency; None: there is none."""
    gated_batch: int | None = None
    """Batch size that the limit is for."""

    @property
    def measured_batches(self) -> list[int]:
        """Batch sizes to time, smallest first, the gate's among them."""
        gated = () if self.gated_batch is None else (self.gated_batch,)
        return sorted({*self.batches, *gated})

    @property
    def deciding_batch(self) -> int:
        """Batch size that the best mode is chosen by: the gate's, or the smallest."""
        return self.gated_batch or self.measured_batches[0]

    @property
    def num_steps(self) -> int:
        """How often ``time_modes`` calls ``done``, at most."""
        return len(self.modes) * len(self.measured_batches)


@dataclass
class Latencies:
    """Latencies that were measured; ``refused`` says of a mode why it may not serve."""

    records: list[LatencyRecord] = field(default_factory=list)
    eager: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    best_mode: str = PLAIN
    before: GpuState | None = None
    after: GpuState | None = None
    gate: dict[str, Any] | None = None
    """Limit on latency and what passed it, as JSON data; None without one."""

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
            "latency_gate": self.gate,
        }

    def warnings(self) -> list[str]:
        """Return, a line each, what the user should know of figures that passed."""
        if self.gate is None or self.gate["stable"]:
            return []
        return [
            f"the p99 that passed the gate, {self.gate['p99_ms']:.3g} ms of "
            f"{self.gate['max_p99_ms']:g} ms, is unstable: "
            "validate again on an idle machine (--fresh)"
        ]

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


def time_modes(
    session: OnnxSession,
    plan: TimingPlan,
    open_mode: OpenMode | None = None,
    *,
    network: nn.Module | None = None,
    done: Callable[[], None] = lambda: None,
) -> Latencies:
    """Time every mode at every batch size, on the device and from host to host.

    ``session`` runs in the plain mode; ``open_mode``, needed for others, opens one, and raises for
    one that may not be used: it is refused. ``network`` is PyTorch's, to be timed beside, on the
    session's kind of device. ``done`` is called after each batch size of a mode. Raises
    ``ValidationFailedError`` for a model that is slower than the plan's limit.
    """
    found = Latencies(before=read_gpu_state(session.device))
    for mode in plan.modes:
        if mode == PLAIN:
            found.records += _measured(session, plan, done)
            continue
        assert open_mode is not None
        try:
            found.records += _measured(open_mode(mode), plan, done)
        except (OutOfMemoryError, ValidationFailedError) as error:
            found.refused[mode] = str(error)
    found.best_mode = _best_mode(found.records, plan.deciding_batch)
    if network is not None:
        for batch in plan.measured_batches:
            found.eager += measure_eager(
                network, session, batch, samples=plan.samples, seconds=plan.seconds
            )
    found.after = read_gpu_state(session.device)
    found.gate = pass_gate(found, plan)
    return found


def _measured(
    session: OnnxSession, plan: TimingPlan, done: Callable[[], None]
) -> list[LatencyRecord]:
    records = []
    for batch in plan.measured_batches:
        for transfers in TRANSFERS:
            is_gate = (batch, transfers) == (plan.gated_batch, "host")
            # What the gate asks for can be answered, whatever the budgets say.
            needed = MIN_SAMPLES[99] if is_gate else 1
            records.append(
                measure_latency(
                    session,
                    batch,
                    samples=max(plan.samples, needed),
                    seconds=plan.seconds,
                    at_least=needed,
                    transfers=transfers,
                )
            )
        done()
    return records


def pass_gate(latencies: Latencies, plan: TimingPlan) -> dict[str, Any] | None:
    """Return the gate and what passed it as JSON data; None without one.

    Raises as ``require_fast`` does.
    """
    if plan.max_p99_ms is None or plan.gated_batch is None:
        return None
    record = latencies.of(plan.gated_batch, "host")
    require_fast(record, plan.max_p99_ms)
    return {
        "max_p99_ms": plan.max_p99_ms,
        "batch": plan.gated_batch,
        "transfers": "host",
        "p99_ms": record.percentile_ms(99),
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

"""Latency of a validated model: every mode of its device, PyTorch beside, and the gate.

The best mode has the shortest median from host to host at the gate's batch size; that is also what
the gate's p99 is of, because a server copies too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2nas.config_deployment import ValidateConfig
from d2nas.errors import ValidationFailedError
from d2nas.network import Network

from ..onnx_io.comparison import compare
from ..onnx_io.devices import CpuDevice, Device
from ..onnx_io.gpu_state import GpuState, read_gpu_state
from ..onnx_io.latency import MIN_SAMPLES, LatencyRecord, measure_latency
from ..onnx_io.parity import Limits, gate
from ..onnx_io.session import MODE_OPTIONS, PLAIN, OnnxSession
from .eager import measure_eager

OpenMode = Callable[[str], OnnxSession]


@dataclass
class Latencies:
    """What was measured; ``refused`` says of a mode why it may not serve."""

    records: list[LatencyRecord] = field(default_factory=list)
    eager: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    best_mode: str = PLAIN
    serving_mode: str = PLAIN
    """The best of those that take any batch size at any time, as a batching server needs."""
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
            "serving_mode": self.serving_mode,
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
    reference: tuple[NDArray[Any], NDArray[np.float32]],
    limits: Limits,
    done: Callable[[], None],
) -> Latencies:
    """Measure every mode at every batch size, on the device and from host to host.

    ``session`` runs in the plain mode, ``open_mode`` opens others; one whose answers to the
    reference's images are not its logits is refused. ``done`` is called after each batch size.
    """
    found = Latencies(before=read_gpu_state(session.device))
    batches = measured_batches(config)
    for mode in _modes(session.device, config):
        opened = (
            session if mode == PLAIN else _open_if_right(mode, open_mode, reference, limits, found)
        )
        if opened is None:
            continue
        for batch in batches:
            found.records += [
                measure_latency(
                    opened,
                    batch,
                    samples=config.latency_samples,
                    seconds=config.latency_seconds,
                    transfers=transfers,
                )
                for transfers in ("none", "host")
            ]
            done()
    found.best_mode = _best_mode(found.records, gate_batch(config))
    found.serving_mode = _best_mode(
        [record for record in found.records if "cuda-graph" not in record.mode], gate_batch(config)
    )
    if config.compare_eager:
        for batch in batches:
            found.eager += measure_eager(network, session, batch, config)
    found.after = read_gpu_state(session.device)
    return found


def measured_batches(config: ValidateConfig) -> list[int]:
    """Return the batch sizes to time, smallest first, the gate's among them."""
    gated = [config.gate_batch] if config.max_p99_ms is not None else []
    return sorted({*config.latency_batches, *gated})


def gate_batch(config: ValidateConfig) -> int:
    """Return the batch size that decides: the gate's, or the smallest measured."""
    return config.gate_batch if config.max_p99_ms is not None else measured_batches(config)[0]


def num_measured(device: Device, config: ValidateConfig) -> int:
    """Return how often ``measure_all`` calls ``done``, at most."""
    return len(_modes(device, config)) * len(measured_batches(config))


def require_fast(record: LatencyRecord, max_p99_ms: float) -> None:
    """Raise ``ValidationFailedError`` unless the p99 is known and at most ``max_p99_ms``."""
    p99 = record.percentile_ms(99)
    what = f"batch {record.batch} on {record.device.label}"
    if p99 is None:
        raise ValidationFailedError(
            f"the p99 of {what} is not known: {len(record.samples_ns)} runs were timed, "
            f"{MIN_SAMPLES[99]} are needed",
            hint="raise validate.latency_samples or validate.latency_seconds",
        )
    # "Not at most" rather than "above": a NaN must not pass.
    if not p99 <= max_p99_ms:
        raise ValidationFailedError(
            f"p99 {p99:.3g} ms > {max_p99_ms:g} ms for {what}",
            hint="a smaller retrain.init_channels or retrain.num_cells is faster",
        )


def _modes(device: Device, config: ValidateConfig) -> Sequence[str]:
    if isinstance(device, CpuDevice):
        return (PLAIN,)
    chosen = tuple(MODE_OPTIONS) if config.modes is None else config.modes
    # Plain always: it is what parity was checked in, and what serves where no other may.
    return tuple(mode for mode in MODE_OPTIONS if mode == PLAIN or mode in chosen)


def _open_if_right(
    mode: str,
    open_mode: OpenMode,
    reference: tuple[NDArray[Any], NDArray[np.float32]],
    limits: Limits,
    found: Latencies,
) -> OnnxSession | None:
    images, logits = reference
    try:
        session = open_mode(mode)
        bound = session.bind(images)
        bound()  # what is captured at the first run must hold for the images of a later one
        answered = bound.answer(images[::-1].copy())[::-1]
    except ValidationFailedError as error:
        found.refused[mode] = str(error)
        return None
    verdict, reasons = gate(compare(logits, answered), limits)
    if verdict == "failed":
        found.refused[mode] = "; ".join(reasons)
        return None
    return session


def _best_mode(records: Sequence[LatencyRecord], batch: int) -> str:
    at_batch = [r for r in records if (r.batch, r.transfers) == (batch, "host")]
    if not at_batch:
        raise ValidationFailedError("no mode of the device answers as the network does")
    return min(at_batch, key=lambda record: float(np.median(record.samples_ns))).mode


def _find(records: Sequence[LatencyRecord], mode: str, batch: int, transfers: str) -> LatencyRecord:
    wanted = (mode, batch, transfers)
    return next(r for r in records if (r.mode, r.batch, r.transfers) == wanted)

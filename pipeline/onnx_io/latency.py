"""Latency of a model on the device that its session was proven to run on; every run counts.

Every timed run counts, none is trimmed. A percentile is given only when enough runs support it:
the numbers of runs are those of MLPerf Inference's early-stopping rule (confidence 0.99). A
measurement is ``stable`` if, and only if, it was shown to be: the medians of its first, middle and
last third lie within 10 % of the smallest, and the standard deviation is at most 25 % of the mean.
The first catches clocks that drift while measuring, the second a machine that is busy elsewhere.
Input and output lie on the device before and after (``transfers`` none), or images come from the
host and logits go there, which a server does too (``transfers`` host).
"""

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from d2nas.config.deployment import MIN_SAMPLES
from d2nas.errors import ConfigError

from .devices import CpuDevice, CudaDevice, Device
from .model_file import ModelDescription

WARMUP_RUNS = 20
WARMUP_NANOSECONDS = 1_000_000_000
WARMUP_SHARE = 0.25
"""Of the time budget, at most."""
WARMUP_WINDOW = 10
WARMUP_AGREEMENT = 0.05
"""Warm is what has two successive windows of runs whose medians are this near, by the smaller."""
NUM_WINDOWS = 3
MIN_WINDOW = MIN_SAMPLES[50]
MAX_DRIFT = 0.10
MAX_VARIATION = 0.25

Clock = Callable[[], int]
Transfers = Literal["none", "host"]


class Bound(Protocol):
    """A batch on its device."""

    def __call__(self) -> None:
        """Run once and wait for the result, which stays on the device."""

    def answer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Copy ``images`` to the device, run, and return a copy of the logits."""


class TimedSession(Protocol):
    """Session that is timed: ``OnnxSession`` or a stand-in."""

    @property
    def device(self) -> Device:
        """The device it was checked to run on."""

    @property
    def provider(self) -> str:
        """Name of the execution provider."""

    @property
    def description(self) -> ModelDescription:
        """Inputs and outputs of the model."""

    @property
    def mode(self) -> str:
        """Mode in which the runtime runs the model."""

    def bind(self, images: NDArray[Any]) -> Bound:
        """Put a batch on the device."""

    def check_provider(self) -> None:
        """Raise ``ValidationFailedError`` if the session left its device."""


@dataclass(frozen=True)
class Timings:
    """Timed runs in the order they were made, in nanoseconds, and what follows from them."""

    batch: int
    provider: str
    samples_ns: tuple[int, ...]
    warmup_runs: int
    mode: str
    transfers: Transfers
    settled: bool | None = field(default=None, kw_only=True)
    """Whether the warm-up ended because its runs had become steady; None if it is not known."""

    def percentile_ms(self, percent: int) -> float | None:
        """Nearest-rank percentile in milliseconds; None if the runs are too few for it.

        ``percent`` is one of ``MIN_SAMPLES``.
        """
        if len(self.samples_ns) < MIN_SAMPLES[percent]:
            return None
        rank = math.ceil(len(self.samples_ns) * percent / 100)
        return sorted(self.samples_ns)[rank - 1] / 1e6

    @property
    def mean_ms(self) -> float:
        """Mean in milliseconds, over every run."""
        return statistics.fmean(self.samples_ns) / 1e6

    @property
    def variation(self) -> float:
        """Standard deviation divided by the mean."""
        mean = statistics.fmean(self.samples_ns)
        return statistics.pstdev(self.samples_ns) / mean if mean > 0 else 0.0

    @property
    def drift(self) -> float | None:
        """Largest difference of the windows' medians, by the smallest; None if runs are few."""
        size = len(self.samples_ns) // NUM_WINDOWS
        if size < MIN_WINDOW:
            return None
        borders = [len(self.samples_ns) * part // NUM_WINDOWS for part in range(NUM_WINDOWS + 1)]
        medians = [
            statistics.median(self.samples_ns[start:end])
            for start, end in itertools.pairwise(borders)
        ]
        return (max(medians) - min(medians)) / min(medians) if min(medians) > 0 else math.inf

    @property
    def stable(self) -> bool:
        """Whether enough runs show neither drift nor wide variation."""
        drift = self.drift
        return drift is not None and drift <= MAX_DRIFT and self.variation <= MAX_VARIATION


@dataclass(frozen=True)
class CpuLatency(Timings):
    """Latency of a batch on a CPU."""

    device: CpuDevice

    def __post_init__(self) -> None:
        if not isinstance(self.device, CpuDevice):
            raise TypeError("a CpuLatency is measured on a CpuDevice")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data; the runs themselves are in ``samples_ns``."""
        return _to_dict(self, self.device)


@dataclass(frozen=True)
class GpuLatency(Timings):
    """Latency of a batch on a GPU that was proven to run the whole model."""

    device: CudaDevice

    def __post_init__(self) -> None:
        if not isinstance(self.device, CudaDevice):
            raise TypeError("a GpuLatency is measured on a CudaDevice")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data; the runs themselves are in ``samples_ns``."""
        return _to_dict(self, self.device)


LatencyRecord = CpuLatency | GpuLatency


def measure_latency(
    session: TimedSession,
    batch: int,
    *,
    samples: int,
    seconds: float,
    at_least: int = 1,
    transfers: Transfers = "none",
    clock: Clock = time.perf_counter_ns,
) -> LatencyRecord:
    """Time ``samples`` runs of ``batch`` images, ``at_least`` so many if ``seconds`` are over.

    Warm-up before, at this batch size: until 20 runs and one second are over and the medians of
    the last ten runs and of the ten before agree, but at most a quarter of ``seconds``, at least
    one run. Raises ``ConfigError`` for senseless numbers and what
    ``session`` raises; the provider is checked after the last run.
    """
    if batch < 1 or not 1 <= at_least <= samples or not 0.0 < seconds < math.inf:
        raise ConfigError("latency needs a batch, a number of samples and seconds above 0")
    images = timing_images(batch, session.description)
    bound = session.bind(images)
    run: Callable[[], object] = bound if transfers == "none" else lambda: bound.answer(images)
    timings, warm_up = time_runs(
        run, samples=samples, seconds=seconds, at_least=at_least, clock=clock
    )
    session.check_provider()
    facts = (batch, session.provider, timings, warm_up.runs, session.mode, transfers)
    device = session.device
    if isinstance(device, CudaDevice):
        return GpuLatency(*facts, device, settled=warm_up.settled)
    return CpuLatency(*facts, device, settled=warm_up.settled)


class WarmUp(NamedTuple):
    """Runs before the timed ones, and whether they had become steady when they ended."""

    runs: int
    settled: bool


def time_runs(
    run: Callable[[], object],
    *,
    samples: int,
    seconds: float,
    at_least: int = 1,
    clock: Clock = time.perf_counter_ns,
) -> tuple[tuple[int, ...], WarmUp]:
    """Warm up and time ``run``; returns the nanoseconds of each timed run, and the warm-up.

    At most ``samples`` runs and about ``seconds`` in all; at least one run to warm up, and
    ``at_least`` so many timed ones.
    """
    budget = int(seconds * 1e9)
    began = clock()
    warm_up = _warm_up(run, clock, began, int(budget * WARMUP_SHARE))
    return _timed(run, clock, began + budget, samples, at_least), warm_up


def _warm_up(run: Callable[[], object], clock: Clock, began: int, limit: int) -> WarmUp:
    num_runs = 0
    last: deque[int] = deque(maxlen=2 * WARMUP_WINDOW)
    while True:
        start = clock()
        run()
        num_runs += 1
        end = clock()
        last.append(end - start)
        enough = num_runs >= WARMUP_RUNS and end - began >= WARMUP_NANOSECONDS
        if enough and _is_settled(last):
            return WarmUp(num_runs, settled=True)
        if end - began >= limit:
            return WarmUp(num_runs, settled=_is_settled(last))


def _is_settled(last: Sequence[int]) -> bool:
    if len(last) < 2 * WARMUP_WINDOW:
        return False
    runs = list(last)
    before, after = (
        statistics.median(part) for part in (runs[:WARMUP_WINDOW], runs[WARMUP_WINDOW:])
    )
    return abs(before - after) <= WARMUP_AGREEMENT * min(before, after)


def _timed(
    run: Callable[[], object], clock: Clock, until: int, samples: int, at_least: int
) -> tuple[int, ...]:
    taken: list[int] = []
    while len(taken) < samples:
        start = clock()
        if len(taken) >= at_least and start >= until:
            break
        run()
        taken.append(clock() - start)
    return tuple(taken)


def timing_images(batch: int, description: ModelDescription) -> NDArray[Any]:
    """Return ``batch`` made images, as the model takes them."""
    # Values all over the range, without structure: zeros would let ReLU and caches flatter.
    values = np.sin(np.arange(batch * math.prod(description.input_shape), dtype=np.float64))
    if description.input_type == "uint8":
        values = np.round((values + 1.0) * 127.5)
    return values.astype(description.dtype).reshape(batch, *description.array_shape)


def _to_dict(timings: Timings, device: Device) -> dict[str, Any]:
    drift = timings.drift
    return {
        "batch": timings.batch,
        "device": device.label,
        "kind": device.kind,
        "provider": timings.provider,
        "mode": timings.mode,
        "transfers": timings.transfers,
        **{f"p{percent}_ms": timings.percentile_ms(percent) for percent in MIN_SAMPLES},
        "mean_ms": timings.mean_ms,
        "min_ms": min(timings.samples_ns) / 1e6,
        "max_ms": max(timings.samples_ns) / 1e6,
        "variation": timings.variation,
        "drift": drift if drift is not None and math.isfinite(drift) else None,
        "samples": len(timings.samples_ns),
        "warmup_runs": timings.warmup_runs,
        "warmup_settled": timings.settled,
        "stable": timings.stable,
    }

"""Latency: every run counts, percentiles need their samples, devices are proven."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fake_runtime
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_models import hand_made_model

from d2nas.errors import ConfigError, ValidationFailedError
from pipeline.onnx_io import latency
from pipeline.onnx_io.devices import CpuDevice, CudaDevice
from pipeline.onnx_io.latency import CpuLatency, GpuLatency, measure_latency, timing_images
from pipeline.onnx_io.model_file import ModelDescription
from pipeline.onnx_io.session import OnnxSession, open_session

Images = NDArray[np.float32]


def on_cpu(model: bytes) -> OnnxSession:
    return open_session(model, device="cpu", num_threads=1)


class Clock:
    """Time that passes only while the model runs: each run takes the next of ``durations``."""

    def __init__(self, durations: Iterator[int]) -> None:
        self.durations = durations
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def run(self) -> None:
        self.now += next(self.durations)


@dataclass
class TimedStub:
    """A session whose runs advance a clock."""

    clock: Clock
    device: Any = CpuDevice("Test CPU", 2)  # noqa: RUF009  frozen
    provider: str = fake_runtime.CPU
    description: ModelDescription = ModelDescription((1, 4, 4), 3, 20, 10, 5)  # noqa: RUF009
    bound: list[Images] = field(default_factory=list)
    checked_at: list[int] = field(default_factory=list)

    mode: str = "plain"
    copied: list[Images] = field(default_factory=list)

    def bind(self, images: Images) -> "TimedStub":
        self.bound.append(images)
        return self

    def __call__(self) -> None:
        self.clock.run()

    def answer(self, images: Images) -> Images:
        self.copied.append(images)
        self.clock.run()
        return images

    def check_provider(self) -> None:
        self.checked_at.append(self.clock.now)


MILLISECOND = 1_000_000


def constant(milliseconds: float) -> Iterator[int]:
    while True:
        yield int(milliseconds * MILLISECOND)


def measured(durations: Iterator[int], *, samples: int = 662, seconds: float = 100.0) -> Any:
    clock = Clock(durations)
    return measure_latency(TimedStub(clock), 8, samples=samples, seconds=seconds, clock=clock)


def test_every_run_is_kept_in_order_and_none_is_trimmed() -> None:
    def durations() -> Iterator[int]:
        for _ in range(20):
            yield 60 * MILLISECOND  # warm-up
        for index in range(100):
            yield (2 if index != 57 else 900) * MILLISECOND

    record = measured(durations(), samples=100)
    assert record.warmup_runs == 20
    assert record.samples_ns == tuple(
        (2 if index != 57 else 900) * MILLISECOND for index in range(100)
    )
    data = record.to_dict()
    assert (data["max_ms"], data["min_ms"], data["p50_ms"]) == (900.0, 2.0, 2.0)
    assert data["mean_ms"] == pytest.approx((99 * 2 + 900) / 100)
    assert data["stable"] is False


def test_record_has_the_keys_that_reports_rely_on() -> None:
    data = measured(constant(1.0)).to_dict()
    assert {
        "batch": 8,
        "device": "CPU Test CPU, 2 threads",
        "kind": "cpu",
        "provider": "CPUExecutionProvider",
        "samples": 662,
        "stable": True,
        "p50_ms": 1.0,
        "p90_ms": 1.0,
        "p95_ms": 1.0,
        "p99_ms": 1.0,
    }.items() <= data.items()
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("samples", "supported"),
    [
        (10, set()),
        (11, {"p50_ms"}),
        (63, {"p50_ms"}),
        (64, {"p50_ms", "p90_ms"}),
        (129, {"p50_ms", "p90_ms"}),
        (130, {"p50_ms", "p90_ms", "p95_ms"}),
        (661, {"p50_ms", "p90_ms", "p95_ms"}),
        (662, {"p50_ms", "p90_ms", "p95_ms", "p99_ms"}),
    ],
)
def test_percentiles_need_the_samples_that_support_them(samples: int, supported: set[str]) -> None:
    data = measured(constant(1.0), samples=samples).to_dict()
    given = {key for key in data if key.startswith("p") and key.endswith("_ms") and data[key]}
    assert given == supported


def test_percentiles_are_observed_values_by_nearest_rank() -> None:
    record = CpuLatency(1, "CPU", tuple(range(1000, 0, -1)), 0, "plain", "none", CpuDevice("x", 1))
    found = [record.percentile_ms(percent) for percent in (50, 90, 95, 99)]
    assert found == [500 / 1e6, 900 / 1e6, 950 / 1e6, 990 / 1e6]


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "warmup_runs"),
    [
        (1.0, 100.0, 1000),  # twenty runs are over sooner, one second is not
        (100.0, 100.0, 20),  # one second is over sooner, twenty runs are not
        (1.0, 2.0, 500),  # a quarter of the budget
        (700.0, 2.0, 1),
        (9000.0, 2.0, 1),  # at least one
    ],
)
def test_warm_up_has_a_floor_and_a_share_of_the_budget(
    milliseconds: float, seconds: float, warmup_runs: int
) -> None:
    assert measured(constant(milliseconds), samples=5, seconds=seconds).warmup_runs == warmup_runs


def falling(first: float, factor: float, last: float) -> Iterator[int]:
    """Runs that become faster until they take as long as the last."""
    milliseconds = first
    while True:
        yield int(max(milliseconds, last) * MILLISECOND)
        milliseconds *= factor


def test_warm_up_goes_on_until_the_runs_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    record = measured(falling(100.0, 0.97, 20.0), samples=11)
    # 100 ms x 0.97^n is 20 ms from the 54th run on; twenty runs and a second were over before.
    assert 54 <= record.warmup_runs <= 54 + 20
    assert record.to_dict()["warmup_settled"] is True
    assert set(record.samples_ns) == {20 * MILLISECOND}
    steady = measured(constant(100.0), samples=11)
    assert (steady.warmup_runs, steady.settled) == (20, True)
    # Bounded: what never settles is timed all the same, and told.
    never = measured(falling(100.0, 0.97, 0.0001), samples=11, seconds=8.0)
    assert never.to_dict()["warmup_settled"] is False
    assert never.warmup_runs < 60
    # Control: without the wait, the runs that are timed would still become faster.
    monkeypatch.setattr(latency, "_is_settled", lambda last: True)
    assert len(set(measured(falling(100.0, 0.97, 20.0), samples=11).samples_ns)) == 11


def test_time_budget_ends_the_measurement_and_leaves_at_least_one_run() -> None:
    record = measured(constant(10.0), seconds=1.0)
    assert record.warmup_runs == 25
    assert len(record.samples_ns) == 75
    assert len(measured(constant(5000.0), seconds=1.0).samples_ns) == 1


def alternating(*milliseconds: float) -> tuple[int, ...]:
    return tuple(int(value * MILLISECOND) for value in milliseconds)


@pytest.mark.parametrize(
    ("samples", "stable"),
    [
        (alternating(*[1.0] * 99), True),
        (alternating(*[1.0] * 33, *[1.09] * 33, *[1.0] * 33), True),
        (alternating(*[1.0] * 33, *[1.11] * 33, *[1.0] * 33), False),  # drift above 10 %
        (alternating(*[1.0, 1.2] * 48), True),
        (alternating(*[1.0] * 98, 4.0), False),  # variation above 25 %
        (alternating(*[1.0] * 32), False),  # too few to show it
    ],
)
def test_stable_means_shown_to_be_stable(samples: tuple[int, ...], stable: bool) -> None:
    record = CpuLatency(1, "CPU", samples, 0, "plain", "none", CpuDevice("x", 1))
    assert record.stable is stable


def test_each_batch_is_bound_once_and_the_provider_checked_after_the_last_run() -> None:
    clock = Clock(constant(1.0))
    session = TimedStub(clock)
    record = measure_latency(session, 8, samples=11, seconds=100.0, clock=clock)
    (images,) = session.bound
    assert (images.shape, images.dtype) == ((8, 1, 4, 4), np.float32)
    assert images.std() > 0.5
    assert session.checked_at == [clock.now]
    assert clock.now == (record.warmup_runs + 11) * MILLISECOND


def test_from_host_to_host_every_run_copies_the_images() -> None:
    clock = Clock(constant(1.0))
    session = TimedStub(clock)
    record = measure_latency(session, 4, samples=11, seconds=100.0, transfers="host", clock=clock)
    assert len(session.copied) == record.warmup_runs + 11
    assert record.to_dict()["transfers"] == "host"
    assert measured(constant(1.0), samples=11).to_dict()["transfers"] == "none"


def test_pixels_are_timed_as_pixels() -> None:
    description = ModelDescription((3, 4, 5), 3, 20, 10, 5, "uint8")
    images = timing_images(2, description)
    assert (images.shape, images.dtype) == ((2, 4, 5, 3), np.uint8)
    assert images.std() > 60


def test_a_cpu_figure_cannot_be_a_gpu_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hand_made_model().SerializeToString()
    clock = Clock(constant(1.0))

    def timed(session: OnnxSession) -> Any:
        bind = session.bind

        def bound(images: Images) -> Any:
            run = bind(images)
            return lambda: (run(), clock.run())[1]

        monkeypatch.setattr(session, "bind", bound)
        return measure_latency(session, 2, samples=11, seconds=100.0, clock=clock)

    on_processor = timed(on_cpu(model))
    fake_runtime.install(fake_runtime.Situation(), monkeypatch)
    on_gpu = timed(open_session(model, device="cuda"))
    assert isinstance(on_processor, CpuLatency)
    assert isinstance(on_gpu, GpuLatency)
    assert isinstance(on_gpu.device, CudaDevice)
    assert on_gpu.to_dict()["device"] == "CUDA Test GPU (cuda:0, driver 580.65)"
    assert on_gpu.to_dict()["provider"] == "CUDAExecutionProvider"
    assert on_processor.to_dict()["device"].startswith("CPU ")
    with pytest.raises(TypeError, match="measured on a CudaDevice"):
        GpuLatency(2, "CUDAExecutionProvider", (1,), 0, "plain", "none", on_processor.device)
    with pytest.raises(TypeError, match="measured on a CpuDevice"):
        CpuLatency(2, "CPUExecutionProvider", (1,), 0, "plain", "none", on_gpu.device)

    fallen = fake_runtime.Situation(providers_after_run=[fake_runtime.CPU])
    fake_runtime.install(fallen, monkeypatch)
    with pytest.raises(ValidationFailedError, match="but ONNX Runtime uses CPU"):
        timed(open_session(model, device="cuda"))


@pytest.mark.parametrize(
    ("batch", "samples", "seconds"),
    [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, math.inf), (1, 1, math.nan)],
)
def test_senseless_measurements_are_refused(batch: int, samples: int, seconds: float) -> None:
    clock = Clock(constant(1.0))
    with pytest.raises(ConfigError):
        measure_latency(TimedStub(clock), batch, samples=samples, seconds=seconds, clock=clock)


def test_the_default_clock_times_a_real_session() -> None:
    record = measure_latency(
        on_cpu(hand_made_model().SerializeToString()), 2, samples=11, seconds=0.2
    )
    assert 1 <= len(record.samples_ns) <= 11
    assert min(record.samples_ns) > 0
    assert latency.MIN_SAMPLES == {50: 11, 90: 64, 95: 130, 99: 662}

"""Modes of a device, the best of them, the gate, and what the GPU was doing meanwhile."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fake_runtime
import numpy as np
import pytest
import torch
from fake_runtime import CUDA, Situation
from onnx_models import hand_made_model
from torch import nn

from d2nas.config import build_config
from d2nas.config.deployment import ValidateConfig
from d2nas.errors import ConfigError, OutOfMemoryError, ValidationFailedError
from pipeline.gate import judge, timing
from pipeline.gate.comparison import Limits
from pipeline.gate.eager import measure_eager
from pipeline.gate.judge import Reference
from pipeline.gate.timing import Latencies, TimingPlan, require_fast, time_modes
from pipeline.onnx_io import devices, gpu_state
from pipeline.onnx_io.devices import CpuDevice, CudaDevice
from pipeline.onnx_io.gpu_state import GpuState, read_gpu_state
from pipeline.onnx_io.latency import CpuLatency
from pipeline.onnx_io.session import MODE_OPTIONS, PLAIN, OnnxSession, modes_of, open_session

MODEL = hand_made_model().SerializeToString()
IMAGES = np.random.default_rng(1).standard_normal((6, 1, 4, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).standard_normal((16, 3)).astype(np.float32)
LABELS = (IMAGES.reshape(6, 16) @ WEIGHTS).argmax(axis=1)


def config(*settings: str) -> ValidateConfig:
    return build_config({}, settings).validate_


def plan(device: str = "cpu", **changes: Any) -> TimingPlan:
    modes = tuple(MODE_OPTIONS) if device == "cuda" else (PLAIN,)
    return TimingPlan(
        **{"batches": (2, 1), "samples": 12, "seconds": 0.05, "modes": modes, **changes}
    )


def right(images: Any) -> Any:
    """The reference's answers, row by row."""
    return np.stack([(image.reshape(16) @ WEIGHTS) for image in images])


REFERENCE = Reference(IMAGES, LABELS, right(IMAGES))


def check(
    session: OnnxSession, reference: Reference = REFERENCE, limits: Limits | None = None
) -> None:
    judge.check_mode(session, reference, limits, batches=(1, 2, 4))


def measured(
    monkeypatch: pytest.MonkeyPatch,
    situation: Situation,
    check: Callable[[OnnxSession], None] = check,
    **changes: Any,
) -> tuple[Latencies, list[str]]:
    fake_runtime.install(situation, monkeypatch)
    opened: list[str] = []

    def open_mode(mode: str) -> OnnxSession:
        opened.append(mode)
        session = open_session(MODEL, device="cuda", mode=mode)
        check(session)
        return session

    return time_modes(
        open_session(MODEL, device="cuda"), plan("cuda", **changes), open_mode
    ), opened


def test_a_gpu_is_measured_in_every_mode_on_the_device_and_from_host_to_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, opened = measured(monkeypatch, Situation(answer=right))
    assert opened == ["nhwc", "cuda-graph", "nhwc-cuda-graph"]
    assert not found.refused
    seen = {(r.mode, r.batch, r.transfers) for r in found.records}
    assert seen == {
        (mode, batch, transfers)
        for mode in ("plain", *opened)
        for batch in (1, 2)
        for transfers in ("none", "host")
    }
    assert {r.device.kind for r in found.records} == {"cuda"}
    report = found.to_dict()
    assert [entry["batch"] for entry in report["latency"]] == [1, 2]
    assert {entry["mode"] for entry in report["latency"]} == {found.best_mode}
    assert len(report["latency_modes"]) == len(found.samples()) == 16
    assert all(len(row["samples_ns"]) <= 12 for row in found.samples())


def test_only_chosen_modes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice("x", 0, None, proof=devices._PROOF)
    modes = modes_of(device, config('validate.modes=["nhwc"]').modes)
    assert modes == ("plain", "nhwc")
    assert modes_of(device) == tuple(MODE_OPTIONS)
    _, opened = measured(monkeypatch, Situation(answer=right), modes=modes)
    assert opened == ["nhwc"]


def test_a_mode_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(images: Any) -> Any:
        """What a captured graph would answer that never looks at new images."""
        return right(IMAGES[: len(images)])

    found, _ = measured(monkeypatch, Situation(answer=stuck))
    assert set(found.refused) == {"nhwc", "cuda-graph", "nhwc-cuda-graph"}
    assert {r.mode for r in found.records} == {"plain"}
    assert all("relative L2" in reason for reason in found.refused.values())
    # Control: nobody would have noticed without the comparison.
    found, _ = measured(monkeypatch, Situation(answer=stuck), lambda session: None)
    assert not found.refused


def test_a_mode_that_may_serve_is_judged_at_every_batch_size_and_on_all_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong_in_pairs(images: Any) -> Any:
        return right(images[::-1]) if len(images) == 2 else right(images)

    found, _ = measured(monkeypatch, Situation(answer=wrong_in_pairs))
    assert set(found.refused) == {"nhwc"}
    assert found.refused["nhwc"].startswith("parity failed: batch 2: ")
    assert (found.best_mode, {r.mode for r in found.records} >= {"cuda-graph"}) == ("plain", True)


def test_a_mode_that_may_serve_keeps_the_floor_of_accuracy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_runtime.install(Situation(answer=right), monkeypatch)
    session = open_session(MODEL, device="cuda", mode="nhwc")
    check(session)
    # Another network's answers, at limits that see no difference but in accuracy.
    other = Reference(IMAGES, (-right(IMAGES)).argmax(axis=1), -right(IMAGES))
    loose = Limits(relative_l2=10.0, top1_agreement=0.0, spread_factor=0.0)
    with pytest.raises(ValidationFailedError, match=r"accuracy 0\.\d{4} is below 0\.9990"):
        check(session, other, loose)
    check(session, other, replace(loose, accuracy_floor=0.0))


def test_memory_that_runs_out_in_another_mode_ends_that_mode_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = fake_runtime.Fail("CUDA error cudaErrorMemoryAllocation: out of memory")

    def no_room_for_nhwc(mode: str) -> OnnxSession:
        session = open_session(MODEL, device="cuda", mode=mode)
        session._session.situation = Situation(
            answer=right, run_error=full if mode == "nhwc" else None
        )
        return session

    fake_runtime.install(Situation(answer=right), monkeypatch)
    plain = open_session(MODEL, device="cuda")
    found = time_modes(plain, plan("cuda"), no_room_for_nhwc)
    assert set(found.refused) == {"nhwc"}
    assert "out of memory" in found.refused["nhwc"]
    plain._session.situation = Situation(answer=right, run_error=full)
    with pytest.raises(OutOfMemoryError):
        time_modes(plain, plan("cuda"), lambda mode: plain)


def test_a_mode_that_does_not_come_into_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    situation = Situation(answer=right, options_in_use={"prefer_nhwc": "0"})
    found, _ = measured(monkeypatch, situation)
    assert set(found.refused) == {"nhwc", "nhwc-cuda-graph"}
    assert "prefer_nhwc=1, the session runs with prefer_nhwc=0" in found.refused["nhwc"]


def test_a_cpu_has_one_mode() -> None:
    with pytest.raises(ConfigError, match="cpu has no mode nhwc"):
        open_session(MODEL, device="cpu", mode="nhwc")
    assert modes_of(CpuDevice("x", 1), ("plain", "nhwc")) == ("plain",)
    assert plan().num_steps == 2
    assert plan("cuda").num_steps == 8


def test_each_batch_size_has_a_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_runtime.install(Situation(answer=right), monkeypatch)
    entries: list[tuple[str, str]] = []
    fake.RunOptions = lambda: SimpleNamespace(
        log_severity_level=2, add_run_config_entry=lambda key, value: entries.append((key, value))
    )
    session = open_session(MODEL, device="cuda", mode="cuda-graph")
    for batch in (1, 6):
        session.bind(IMAGES[:batch])()
    assert entries == [("gpu_graph_id", "1"), ("gpu_graph_id", "6")]
    (provider, options), *_ = fake.requests[0][0]
    assert (provider, options["enable_cuda_graph"]) == (CUDA, "1")


def record(milliseconds: float, samples: int = 662, mode: str = "plain", batch: int = 1) -> Any:
    times = (int(milliseconds * 1e6),) * samples
    return CpuLatency(batch, "CPU", times, 20, mode, "host", CpuDevice("Test", 2))


def test_a_batch_size_has_one_memory_for_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runtime.install(Situation(answer=right), monkeypatch)
    session = open_session(MODEL, device="cuda", mode="cuda-graph")
    first = session.bind(IMAGES)
    second = session.bind(IMAGES[::-1].copy())
    second()
    assert second is first
    assert np.allclose(second.logits(), right(IMAGES[::-1]))
    assert session.bind(IMAGES[:2]) is not first
    plain = open_session(MODEL, device="cuda")
    assert plain.bind(IMAGES) is not plain.bind(IMAGES)


def test_the_best_mode_has_the_shortest_median_of_those_that_may_serve() -> None:
    records = [record(3.0), record(2.0, mode="nhwc"), record(1.0, mode="cuda-graph")]
    assert timing._best_mode(records, 1) == "nhwc"
    assert timing._best_mode(records[:1], 1) == "plain"


def test_the_gate_times_as_many_runs_as_its_p99_needs() -> None:
    session = open_session(MODEL, device="cpu", num_threads=1)
    steps: list[int] = []
    found = time_modes(
        session, plan(max_p99_ms=60000.0, gated_batch=1), done=lambda: steps.append(1)
    )
    assert len(steps) == 2
    runs = {(r.batch, r.transfers): len(r.samples_ns) for r in found.records}
    assert runs[1, "host"] == 662
    assert max(count for key, count in runs.items() if key != (1, "host")) <= 12
    require_fast(found.of(1, "host"), 60000.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["validate.gate_batch=2"], "gate_batch needs validate.max_p99_ms"),
        (["validate.max_p99_ms=5", "validate.gate_batch=65"], "gate_batch=65 is above 64"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*settings)


def test_the_gate_needs_a_p99_that_is_known_and_short_enough() -> None:
    require_fast(record(2.0), 2.0)
    with pytest.raises(ValidationFailedError, match=r"p99 2 ms > 1.9 ms for batch 1 on CPU Test"):
        require_fast(record(2.0), 1.9)
    with pytest.raises(ValidationFailedError, match="661 runs were timed, 662 are needed"):
        require_fast(record(2.0, samples=661), 100.0)


def test_a_gate_tells_what_passed_it_and_whether_that_is_steady() -> None:
    gated = plan(max_p99_ms=4.0, gated_batch=1)
    steady = Latencies([record(3.0), record(2.0, mode="nhwc")], best_mode="nhwc")
    steady.gate = timing.pass_gate(steady, gated)
    assert steady.gate == {
        "max_p99_ms": 4.0,
        "batch": 1,
        "transfers": "host",
        "p99_ms": 2.0,
        "mode": "nhwc",
        "device": "CPU Test, 2 threads",
        "kind": "cpu",
        "stable": True,
    }
    assert steady.warnings() == []
    assert timing.pass_gate(steady, plan()) is None
    drifting = (1_000_000,) * 400 + (3_000_000,) * 262
    wild = CpuLatency(1, "CPU", drifting, 20, "plain", "host", CpuDevice("Test", 2))
    found = Latencies([wild])
    found.gate = timing.pass_gate(found, gated)
    assert found.gate is not None
    assert found.gate["stable"] is False
    (line,) = found.warnings()
    assert "the p99 that passed the gate, 3 ms of 4 ms, is unstable" in line


def test_pytorch_beside_is_timed_on_the_same_device_with_as_many_threads() -> None:
    session = open_session(MODEL, device="cpu", num_threads=1)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    rows = list(measure_eager(network, session, 2, samples=12, seconds=0.05))  # type: ignore[arg-type]
    assert [row["runtime"] for row in rows] == [
        "PyTorch eager, contiguous",
        "PyTorch eager, channels-last",
    ]
    assert {row["device"] for row in rows} == {session.device.label}
    assert {row["kind"] for row in rows} == {"cpu"}
    assert network[0].weight.is_contiguous()
    network.to("meta")
    with pytest.raises(ConfigError, match="the network is on meta"):
        next(measure_eager(network, session, 2, samples=12, seconds=0.05))  # type: ignore[arg-type]


class FakeNvml(SimpleNamespace):
    """NVML as far as it is asked; ``refused`` answers are not supported by the device."""

    NVMLError = RuntimeError
    NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 2, 0

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        super().__init__(refused=refused, running=0)

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetHandleByPciBusId": lambda bus: f"handle of {bus.decode()}",
            "nvmlSystemGetDriverVersion": lambda: b"580.65",
            "nvmlDeviceGetClockInfo": lambda handle, kind: {0: 1980, 2: 2619}[kind],
            "nvmlDeviceGetTemperature": lambda handle, kind: 41,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                used=3 * 2**20, total=80 * 2**30
            ),
        }
        if name in self.refused:
            return lambda *arguments: (_ for _ in ()).throw(RuntimeError("not supported"))
        return answers[name]

    def nvmlInit(self) -> None:  # noqa: N802
        self.running += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running -= 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake_runtime.install(Situation(), monkeypatch)
    monkeypatch.setattr(devices, "_pci_bus_id", lambda index: f"0000:{index:02x}:00.0")
    return open_session(MODEL, device="cuda:3").device


def test_the_gpus_state_is_read_at_its_place_in_the_machine(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    asked: list[bytes] = []
    find = nvml.nvmlDeviceGetHandleByPciBusId
    nvml.nvmlDeviceGetHandleByPciBusId = lambda bus: (asked.append(bus), find(bus))[1]
    state = read_gpu_state(gpu)
    assert asked == [b"0000:03:00.0"]
    assert state == GpuState("Test GPU", "580.65", 1980, 2619, 41, 3, 81920)
    assert state.to_dict(None)["after"] is None
    assert nvml.running == 0


def test_what_the_driver_does_not_tell_is_not_guessed(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(("nvmlDeviceGetClockInfo",)))
    state = read_gpu_state(gpu)
    assert state is not None
    assert (state.graphics_clock_mhz, state.temperature_c) == (None, 41)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(("nvmlDeviceGetHandleByPciBusId",)))
    assert read_gpu_state(gpu) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert gpu_state.read_gpu_state(gpu) is None
    assert read_gpu_state(CpuDevice("x", 1)) is None


@pytest.mark.gpu
def test_every_mode_of_a_real_gpu_answers_alike() -> None:
    logits = open_session(MODEL, device="cpu", num_threads=1).run(IMAGES)
    reference = Reference(IMAGES, logits.argmax(axis=1), logits)

    def open_mode(mode: str) -> OnnxSession:
        session = open_session(MODEL, device="cuda", mode=mode)
        check(session, reference, Limits(relative_l2=1e-3))
        return session

    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to("cuda").eval()
    found = time_modes(
        open_session(MODEL, device="cuda"),
        plan("cuda"),
        open_mode,
        network=network,  # type: ignore[arg-type]
    )
    assert not found.refused
    assert torch.cuda.is_available()
    assert {row["kind"] for row in found.eager} == {"cuda"}

"""Sessions on the CPU, what loads on a machine, and the runtime kept quiet."""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_runtime
import numpy as np
import pytest
from fake_runtime import CPU, CUDA, TENSORRT, Fail, FakeRuntime, Situation
from onnx_models import hand_made_model

from d2nas.cpus import processor_name, usable_cpus
from d2nas.devices import driver_version
from d2nas.errors import ConfigError, DamagedArtifactError, ValidationFailedError
from pipeline.onnx_io import devices, runtime
from pipeline.onnx_io.devices import CpuDevice, placement
from pipeline.onnx_io.providers import loadable_providers, runtime_device
from pipeline.onnx_io.session import open_session

ROOT = Path(__file__).parents[3]
IMAGES = np.linspace(-1.0, 1.0, 5 * 16, dtype=np.float32).reshape(5, 1, 4, 4)
STRICT = "session.disable_cpu_ep_fallback"

Install = Callable[[Situation], FakeRuntime]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    return lambda situation: fake_runtime.install(situation, monkeypatch)


@pytest.fixture(scope="module")
def model() -> bytes:
    return hand_made_model().SerializeToString()


def expected_logits() -> Any:
    """The hand-made model in NumPy, float64."""
    kernel = np.linspace(-1.0, 1.0, 18).reshape(2, 3, 3)
    weight = np.linspace(1.0, -2.0, 6).reshape(3, 2)
    padded = np.pad(IMAGES[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    features = np.einsum("nxyab,cab->ncxy", windows, kernel)
    return np.maximum(features, 0.0).mean(axis=(2, 3)) @ weight.T


def test_cpu_session_computes_the_model_and_names_its_device(model: bytes) -> None:
    opened = open_session(model, device="cpu", num_threads=1)
    np.testing.assert_allclose(opened.run(IMAGES), expected_logits(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        opened.run(IMAGES[::-1]), expected_logits()[::-1], rtol=0, atol=1e-6
    )  # images need not be contiguous
    assert isinstance(opened.device, CpuDevice)
    assert opened.device.kind == "cpu"
    assert opened.device.label.startswith("CPU ")
    assert opened.device.label.endswith(", 1 thread")
    assert opened.provider == CPU
    opened.check_provider()


def test_cpu_label_tells_the_number_of_threads_the_session_was_given(install: Install) -> None:
    fake = install(Situation())
    label = open_session(hand_made_model().SerializeToString(), device="cpu").device.label
    (_, options, _) = fake.requests[-1]
    assert label.endswith(
        f", {options.intra_op_num_threads} thread" + "s" * (options.intra_op_num_threads != 1)
    )
    assert options.intra_op_num_threads == usable_cpus() >= 1
    assert CpuDevice("AMD EPYC", 2).label == "CPU AMD EPYC, 2 threads"


def test_bound_run_gives_what_run_gives(model: bytes) -> None:
    opened = open_session(model, device="cpu", num_threads=1)
    bound = opened.bind(IMAGES)
    bound()
    np.testing.assert_array_equal(bound.logits(), opened.run(IMAGES))


def test_placement_names_every_node_on_the_real_runtime(model: bytes) -> None:
    opened = open_session(model, device="cpu", num_threads=1)
    (nodes,) = placement(opened._session).values()
    assert sorted(nodes) == [
        "conv (Conv)",
        "flatten (Flatten)",
        "gemm (Gemm)",
        "pool (GlobalAveragePool)",
        "relu (Relu)",
    ]
    assert opened.num_nodes_placed == {CPU: 5}


@pytest.mark.parametrize(
    "images", [IMAGES.astype(np.float64), IMAGES[:, :, :3], IMAGES[0], IMAGES[:0], IMAGES[:, 0]]
)
def test_images_of_another_shape_or_type_are_refused(model: bytes, images: Any) -> None:
    opened = open_session(model, device="cpu", num_threads=1)
    for use in (opened.run, opened.bind):
        with pytest.raises(ConfigError, match=r"takes float32 images of shape \[N, 1, 4, 4\]"):
            use(images)


def test_a_model_that_is_refused_is_never_given_to_the_runtime(install: Install) -> None:
    fake = install(Situation())
    with pytest.raises(DamagedArtifactError, match="bundle: not an ONNX file"):
        open_session(b"junk", device="cpu", what="bundle")
    assert fake.requests == []


def test_a_failing_run_is_one_error_and_no_native_report(
    model: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = open_session(model, device="cpu", num_threads=1)
    wrong = {"images": np.zeros((1, 1, 4), np.float32)}

    def run_wrong() -> Any:
        return opened._session.run(["logits"], wrong, opened._run_options)

    with pytest.raises(ValidationFailedError, match=r"fails on CPU .*Invalid rank"):
        opened.attempt(run_wrong)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("device", ["auto", "gpu", "cuda:", "cuda:-1", "cuda:1 ", "CPU", ""])
def test_devices_that_are_not_resolved_names_are_refused(model: bytes, device: str) -> None:
    with pytest.raises(ConfigError, match="is not cpu, cuda or cuda:N"):
        open_session(model, device=device)


def test_thread_counts_below_one_are_refused(model: bytes) -> None:
    with pytest.raises(ConfigError, match="num_threads=0"):
        open_session(model, device="cpu", num_threads=0)


def test_the_runtime_is_quiet(install: Install, model: bytes) -> None:
    fake = install(Situation())
    open_session(model, device="cpu", num_threads=1)
    ((_, options, enable_fallback),) = fake.requests
    assert fake.severity == 3
    assert (options.log_severity_level, enable_fallback) == (3, 0)


def test_a_missing_runtime_is_an_error_with_a_hint(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="ONNX Runtime cannot be imported") as caught:
        open_session(model, device="cpu")
    assert "pip install onnxruntime-gpu" in str(caught.value.hint)


def test_auto_is_cuda_only_if_cuda_really_runs_a_model(install: Install) -> None:
    answers = {
        "works": Situation(answer=lambda images: np.zeros((len(images), 2), np.float32)),
        "does not load": Situation(cuda_loads=False),
        "is not built in": Situation(listed=[CPU]),
        "loads but does not run": Situation(run_error=Fail("CUDNN_STATUS_NOT_INITIALIZED")),
    }
    found = {}
    for name, situation in answers.items():
        install(situation)
        found[name] = runtime_device("auto")
    assert found == {name: "cuda" if name == "works" else "cpu" for name in answers}


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_an_explicit_device_is_left_alone(device: str) -> None:
    assert runtime_device(device) == device


def test_listed_is_told_apart_from_loads(
    install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install(Situation(cuda_loads=False))
    by_name = {status.name: status for status in loadable_providers()}
    assert [(s.name, s.listed, s.loads) for s in by_name.values()] == [
        (CUDA, True, False),
        (TENSORRT, True, False),
        (CPU, True, True),
    ]
    assert "libcublasLt.so.13" in str(by_name[CUDA].problem)
    assert "libcublasLt.so.13" in str(by_name[TENSORRT].problem)
    assert by_name[CPU].problem is None
    assert capfd.readouterr() == ("", "")

    install(Situation(listed=[CUDA, CPU]))
    assert [(s.name, s.loads) for s in loadable_providers()] == [(CUDA, True), (CPU, True)]
    install(Situation(listed=[CPU]))
    assert [(s.name, s.listed, s.loads) for s in loadable_providers()] == [
        (CUDA, False, False),
        (CPU, True, True),
    ]


def test_captured_log_holds_native_text_and_prints_and_restores(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with runtime.captured_log() as log:
        os.write(2, b"native text\n")
        sys.stdout.write("printed text\n")
    os.write(2, b"afterwards\n")
    sys.stdout.write("and this\n")
    assert "native text" in log[0]
    assert "printed text" in log[0]
    assert capfd.readouterr() == ("and this\n", "afterwards\n")


def test_captured_log_survives_an_exception(capfd: pytest.CaptureFixture[str]) -> None:
    logs: list[list[str]] = []

    def fail() -> None:
        with runtime.captured_log() as log:
            logs.append(log)
            os.write(2, b"before the failure\n")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    os.write(2, b"afterwards\n")
    assert logs == [["before the failure\n"]]
    assert capfd.readouterr().err == "afterwards\n"


def test_processor_name_is_read_where_linux_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: AMD  EPYC 9\n\nmodel name: x\n"
    )
    assert processor_name(tmp_path / "cpuinfo") == "AMD EPYC 9"
    assert processor_name(tmp_path / "absent")


def test_driver_version_is_read_where_the_driver_keeps_it(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == "580.65.06"
    assert driver_version(tmp_path / "absent") is None


def test_gpu_name_comes_from_the_driver_or_is_general() -> None:
    def driver(name: str) -> Any:
        functions = SimpleNamespace(
            cuInit=lambda flags: 0,
            cuDeviceGet=lambda device, index: setattr(device._obj, "value", index + 40) or 0,
            cuDeviceGetName=lambda buffer, size, device: (
                setattr(buffer, "value", f"GPU {device.value}".encode()) or 0
            ),
        )
        return functions

    def missing(name: str) -> Any:
        raise OSError(name)

    assert devices._gpu_name(2, driver) == "GPU 42"
    assert devices._gpu_name(2, missing) == "NVIDIA GPU"
    assert devices._gpu_name(2, lambda name: SimpleNamespace(cuInit=lambda flags: 100)) == (
        "NVIDIA GPU"
    )
    assert ctypes.sizeof(ctypes.c_int) == 4

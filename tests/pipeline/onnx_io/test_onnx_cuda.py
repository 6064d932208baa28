"""CUDA was asked for: a session that is wholly on the GPU, or an error; never quietly the CPU."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runtime
import numpy as np
import pytest
from fake_runtime import CPU, CUDA, TENSORRT, Fail, FakeRuntime, FakeValue, Situation
from onnx_models import hand_made_model

from d2nas.errors import ConfigError, D2NasError, OutOfMemoryError, ValidationFailedError
from pipeline.onnx_io import devices, session
from pipeline.onnx_io.devices import CudaDevice
from pipeline.onnx_io.providers import runtime_device
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


def test_cuda_that_works_is_asked_for_strictly_and_named(install: Install, model: bytes) -> None:
    fake = install(Situation())
    FakeValue.made.clear()
    opened = open_session(model, device="cuda:1")
    ((providers, options, enable_fallback),) = fake.requests
    assert providers == [
        (CUDA, {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    ]
    assert options.entries == {STRICT: "1", "session.record_ep_graph_assignment_info": "1"}
    assert enable_fallback == 0
    assert isinstance(opened.device, CudaDevice)
    assert (opened.device.kind, opened.device.index, opened.provider) == ("cuda", 1, CUDA)
    assert opened.device.label == "CUDA Test GPU (cuda:1, driver 580.65)"
    assert opened.run(IMAGES).shape == (5, 3)
    opened.bind(IMAGES)()
    assert FakeValue.made == [("cuda", 1), ("cuda", 1)]


def test_a_cuda_device_cannot_be_claimed_without_a_checked_session() -> None:
    with pytest.raises(TypeError, match="made by prove_cuda"):
        CudaDevice("H100", 0, None, proof=None)
    with pytest.raises(TypeError):
        CudaDevice("H100", 0, None)  # type: ignore[call-arg]


NO_CHECK: dict[str, Any] = {
    "check_provider": lambda session, provider: None,
    "_check_options": lambda session, index, asked: None,
    "_check_placement": lambda session: None,
}

MISBEHAVIOUR = {
    # Each is caught by one check alone, so that the control can take just that one away.
    "the CPU won although it was forbidden": (
        Situation(cuda_loads=False, strict_is_obeyed=False, placed={CUDA: ["conv"]}),
        "CUDA was asked for, but ONNX Runtime uses CPU",
        "check_provider",
    ),
    "another provider won": (
        Situation(cuda_providers=(TENSORRT, CUDA, CPU), placed={CUDA: ["conv"]}),
        "CUDA was asked for, but ONNX Runtime uses Tensorrt, CUDA, CPU",
        "check_provider",
    ),
    "another provider may take part": (
        Situation(cuda_providers=(CUDA, TENSORRT), placed={CUDA: ["conv"]}),
        "CUDA was asked for, but ONNX Runtime uses CUDA, Tensorrt",
        "check_provider",
    ),
    "part of the nodes are on the CPU": (
        Situation(placed={CUDA: ["conv", "gemm"], CPU: ["maxpool"]}),
        r"1 of 3 nodes are on CPU instead: maxpool \(Maxpool\)",
        "_check_placement",
    ),
    "all nodes are on the CPU and the provider says otherwise": (
        Situation(
            cuda_loads=False, strict_is_obeyed=False, admits_fallback=False, placed={CPU: ["conv"]}
        ),
        r"1 of 1 nodes are on CPU instead: conv \(Conv\)",
        "_check_placement",
    ),
    "the place of the nodes is not told": (
        Situation(placed={}),
        "does not tell where its nodes are placed",
        "_check_placement",
    ),
    "reduced precision": (
        Situation(options_in_use={"use_tf32": "1"}),
        "asked for with use_tf32=0, the session runs with use_tf32=1",
        "_check_options",
    ),
    "another GPU": (
        Situation(options_in_use={"device_id": "3"}),
        "asked for with device_id=0, the session runs with device_id=3",
        "_check_options",
    ),
}


@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_a_session_that_is_not_wholly_on_cuda_is_refused(
    case: str, install: Install, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    situation, reason, check = MISBEHAVIOUR[case]
    fake = install(situation)
    with pytest.raises(ValidationFailedError, match=reason):
        open_session(model, device="cuda")
    assert all(providers[0][0] == CUDA for providers, _, _ in fake.requests)
    assert runtime_device("auto") == "cpu"
    monkeypatch.setattr(devices, check, NO_CHECK[check])
    assert isinstance(open_session(model, device="cuda").device, CudaDevice)


def test_cuda_that_is_not_in_the_build_is_refused(install: Install, model: bytes) -> None:
    fake = install(Situation(listed=[CPU]))
    with pytest.raises(ConfigError, match="built without CUDA") as caught:
        open_session(model, device="cuda")
    assert "onnxruntime-gpu" in str(caught.value.hint)
    assert fake.requests == []


def test_cuda_that_is_listed_but_does_not_load_is_refused_with_the_reason(
    install: Install,
    model: bytes,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install(Situation(cuda_loads=False))
    reason = r"CUDA was asked for \(cuda:2\), but it does not load \(libcublasLt.so.13: cannot open"
    with pytest.raises(ValidationFailedError, match=reason) as caught:
        open_session(model, device="cuda:2")
    assert "cpu as device" in str(caught.value.hint)
    assert capfd.readouterr() == ("", "")
    assert len(fake.requests) == 1
    # Without the capture, native text reaches the terminal and the reason is lost.
    monkeypatch.setattr(session, "captured_log", lambda: contextlib.nullcontext([]))
    with pytest.raises(ValidationFailedError) as uncaptured:
        open_session(model, device="cuda:2")
    assert "libcublasLt" not in str(uncaptured.value)
    output = capfd.readouterr()
    assert "libcublasLt" in output.err
    assert "Failed to load" in output.out


def test_strictness_is_what_makes_a_fallback_fail_at_once(
    install: Install, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(Situation(cuda_loads=False, admits_fallback=False, placed={CUDA: ["conv"]}))
    with pytest.raises(ValidationFailedError, match="does not load"):
        open_session(model, device="cuda")
    assert fake.requests[0][1].entries[STRICT] == "1"
    monkeypatch.setattr(session, "strict_options", session._session_options)
    assert isinstance(open_session(model, device="cuda").device, CudaDevice)


def test_nodes_that_make_a_strict_session_fail_are_named(install: Install, model: bytes) -> None:
    fake = install(Situation(placed={CUDA: ["conv"], CPU: ["maxpool", "resize"]}))
    create = fake.InferenceSession

    def strict_or_not(model: bytes, options: Any, **request: Any) -> Any:
        created = create(model, options, **request)
        if options.entries.get(STRICT) == "1":
            raise Fail("nodes are assigned to the default CPU EP")
        return created

    fake.InferenceSession = strict_or_not
    with pytest.raises(ValidationFailedError, match="2 of 3 nodes are on CPU instead: maxpool"):
        open_session(model, device="cuda")


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (
            RuntimeError("CUDA failure 100: no CUDA-capable device ; GPU=0 ; hostname=here ; x"),
            ValidationFailedError,
            r"CUDA failure 100: no CUDA-capable device$",
        ),
        (ValueError("Unknown option"), ValidationFailedError, "Unknown option"),
        (Fail("CUDA failure 2: out of memory ; GPU=0"), OutOfMemoryError, "memory on cuda:0"),
    ],
)
def test_what_creating_a_cuda_session_raises_is_told_in_one_line(
    error: Exception, kind: type[D2NasError], reason: str, install: Install, model: bytes
) -> None:
    install(Situation(error=error))
    with pytest.raises(kind, match=reason) as caught:
        open_session(model, device="cuda")
    assert "hostname" not in str(caught.value)
    assert "cuda" in str(caught.value).lower()


def test_a_provider_that_changes_during_use_is_refused(
    install: Install, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Situation(providers_after_run=[CPU]))
    opened = open_session(model, device="cuda")
    with pytest.raises(ValidationFailedError, match="but ONNX Runtime uses CPU"):
        opened.run(IMAGES)

    bound = open_session(model, device="cuda")
    bound.check_provider()
    bound.bind(IMAGES)()
    with pytest.raises(ValidationFailedError, match="but ONNX Runtime uses CPU"):
        bound.check_provider()

    monkeypatch.setattr(session, "check_provider", NO_CHECK["check_provider"])
    unchecked = open_session(model, device="cuda")
    unchecked.run(IMAGES)
    assert unchecked.device.kind == "cuda"  # the lie that the check prevents


def test_memory_that_runs_out_in_a_run_is_told_as_such(install: Install, model: bytes) -> None:
    install(Situation(run_error=Fail("Failed to allocate memory for requested buffer of size 9")))
    opened = open_session(model, device="cuda")
    with pytest.raises(OutOfMemoryError, match="out of memory on CUDA Test GPU"):
        opened.run(IMAGES)
    with pytest.raises(OutOfMemoryError):
        opened.bind(IMAGES)()


HIDDEN_GPU_PROGRAM = """
import sys
from d2nas.errors import D2NasError
from pipeline.gate import parity
from pipeline.onnx_io import latency, model_file
from pipeline.onnx_io.providers import _probe_model, loadable_providers, runtime_device
from pipeline.onnx_io.session import open_session

said = [runtime_device("auto")]
said += [f"{status.name} {status.loads}" for status in loadable_providers()]
try:
    open_session(_probe_model(), device="cuda")
except D2NasError as error:
    said += [str(error.exit_code), str(error), str(error.hint)]
said.append(f"torch {'torch' in sys.modules}")
open(sys.argv[1], "w").write(chr(10).join(said))
"""


def test_real_runtime_without_a_visible_gpu_refuses_cuda_silently(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN_GPU_PROGRAM, str(tmp_path / "said")],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    auto, *statuses, code, message, hint, torch = (tmp_path / "said").read_text().splitlines()
    assert auto == "cpu"
    assert f"{CUDA} False" in statuses
    assert f"{CPU} True" in statuses
    assert code in ("2", "3")
    assert "CUDA" in message
    assert "cpu" in hint
    assert torch == "torch False"  # devices can be looked at without waiting for torch


@pytest.mark.gpu
def test_real_runtime_on_a_gpu(model: bytes) -> None:
    if runtime_device("auto") != "cuda":
        pytest.skip("ONNX Runtime does not load CUDA here")
    opened = open_session(model, device="cuda")
    wanted = open_session(model, device="cpu", num_threads=1).run(IMAGES)
    np.testing.assert_allclose(opened.run(IMAGES), wanted, rtol=0, atol=1e-5)
    assert opened.num_nodes_placed == {CUDA: 5}
    bound = opened.bind(IMAGES)
    bound()
    opened.check_provider()
    np.testing.assert_allclose(bound.logits(), wanted, rtol=0, atol=1e-5)

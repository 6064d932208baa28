"""From the trained network to its answers on a real GPU: validate, verify, serve, keep a budget.

Where there is none, each test says why it skips.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from served import INFER, ask_once, binary_request, running
from toy import TRAINING_BEGINS, Place, end_before_training

from pipeline.bundle.reader import open_bundle
from pipeline.cli import run
from pipeline.onnx_io.providers import cuda_problem
from pipeline.serving.lifecycle import open_service

pytestmark = pytest.mark.gpu

KIND, PROVIDER = "cuda", "CUDAExecutionProvider"
KINDS_OF_MODELS = pytest.mark.parametrize(
    "words", [(), ("--precision", "fp16", "--input", "uint8")], ids=["fp32", "fp16 of pixels"]
)


@pytest.fixture(autouse=True)
def runtime() -> None:
    """PyTorch has a GPU; ONNX Runtime must have it, too."""
    problem = cuda_problem()
    if problem is not None:
        pytest.skip(f"ONNX Runtime runs no model on CUDA here: {problem}")


@pytest.fixture
def validated(finished: Place) -> Callable[..., Path]:
    """Exports the toy's real network as told, validates it on the GPU, returns the bundle."""

    def validate(*words: str) -> Path:
        assert finished.run("export", "toy", *words) == 0
        assert finished.run("validate", "toy", "--device", KIND) == 0
        return finished.exported / "toy"

    return validate


@KINDS_OF_MODELS
def test_a_real_network_passes_the_whole_gate(
    validated: Callable[..., Path], words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = validated(*words)
    report = json.loads((bundle / "report.json").read_text())
    assert (report["device"]["kind"], report["device"]["provider"]) == (KIND, PROVIDER)
    assert report["parity"]["passed"]
    assert report["self_test"]["passed"]
    measured = [*report["latency"], *report["latency_modes"], *report["eager"]]
    assert {row["kind"] for row in measured} == {KIND}
    assert {row["mode"] for row in report["latency"]} == {report["best_mode"]}
    assert report["best_mode"] in ("plain", "nhwc")
    assert report["model"]["precision"] == ("fp16" if words else "fp32")
    assert "KIND_GPU" in (bundle / "config.pbtxt").read_text()
    capfd.readouterr()
    assert run(["verify", str(bundle), "--device", KIND, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["mode"] == report["best_mode"]
    assert row["device"] == report["device"]["label"]
    assert run(["verify", str(bundle), "--device", "cpu"]) == 0


@KINDS_OF_MODELS
def test_a_bundle_is_served_where_it_was_validated(
    validated: Callable[..., Path], words: tuple[str, ...]
) -> None:
    bundle = open_bundle(validated(*words))
    warned: list[str] = []
    service = open_service(bundle, "auto", warned.append)
    service.warm_up()
    assert (warned, service.server_metadata()["provider"]) == ([], PROVIDER)
    images, logits = bundle.golden["images"], bundle.golden["logits"]
    with running(service, warm_up=lambda: None) as url:
        body, headers = binary_request(images)
        reply = ask_once(url, "POST", INFER, body, headers)
    np.testing.assert_allclose(reply.logits, logits, rtol=1e-2 if words else 1e-4, atol=1e-3)


def test_a_run_tries_the_gpu_before_the_search_and_keeps_its_budget(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end_before_training(monkeypatch)
    words = ("--set", f"validate.device={KIND}", "--max-p99-ms", "60000")
    assert place.run("run", str(place.preset), *words) == 3
    said = capfd.readouterr().err.splitlines()
    assert f"validation will run on {KIND}, which has all 7 operations of the space" in said
    (line,) = (line for line in said if line.startswith("budget: "))
    assert f" on {KIND.upper()} " in line
    assert any(TRAINING_BEGINS in line for line in said)

"""What is served: half precision, pixels as input, the gate on latency, what the server is told."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from toy import Place

from pipeline.bundle.triton import triton_config
from pipeline.gate import judge
from pipeline.onnx_io.session import open_session


def bundle_of(place: Place) -> Path:
    return place.exported / "toy"


def deployed(place: Place, capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """Export the finished toy again, validate it, and return the report."""
    assert place.run("export", "toy", *words) == 0
    capfd.readouterr()
    assert place.run("validate", "toy") == 0, capfd.readouterr().err
    report = json.loads((bundle_of(place) / "report.json").read_text())
    assert isinstance(report, dict)
    return report


@pytest.mark.parametrize("words", [("--precision", "fp16"), ("--input", "uint8"), ()])
def test_every_kind_of_model_passes_the_whole_gate_and_serves_its_golden_inputs(
    finished: Place, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    report = deployed(finished, capfd, *words)
    number = 2 if words else 1
    data = (bundle_of(finished) / str(number) / "model.onnx").read_bytes()
    model = onnx.ModelProto.FromString(data)
    half, pixels = "fp16" in words, "uint8" in words
    weights = {t.data_type for t in model.graph.initializer if len(t.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT}
    assert report["parity"]["limits"]["relative_l2"] == (5e-3 if half else 1e-5)
    assert report["accuracy"]["floor"] == (0.99 if half else 0.999)
    assert report["model"]["precision"] == ("fp16" if half else "fp32")
    assert report["model"]["input_type"] == ("uint8" if pixels else "float32")
    assert set(report["self_test"]["rejected"]) == {
        "classifier weight + 1 %",
        "two classes swapped",
        "stem weight + 1 %",
        "two channels swapped",
        "last convolution zeroed",
        "a normalisation skipped",
    }
    golden = safetensors.numpy.load_file(bundle_of(finished) / "golden.safetensors")
    assert golden["images"].dtype == (np.uint8 if pixels else np.float32)
    assert golden["images"].shape[1:] == ((8, 8, 1) if pixels else (1, 8, 8))
    assert len(set(golden["labels"].tolist())) == 8  # of ten classes
    assert report["sampled_images"]["golden"] == 8
    assert len(set(report["sampled_images"]["indices"])) == 64
    answered = open_session(data, device="cpu", num_threads=1).run(golden["images"])
    np.testing.assert_allclose(answered, golden["logits"], rtol=1e-4, atol=1e-5)
    preprocess = json.loads((bundle_of(finished) / "preprocess.json").read_text())
    assert preprocess["layout"] == ("NHWC" if pixels else "NCHW")
    assert preprocess["dtype"] == ("uint8" if pixels else "float32")
    triton = (bundle_of(finished) / "config.pbtxt").read_text()
    assert ("TYPE_UINT8 dims: [ 8, 8, 1 ]" in triton) == pixels
    assert f"versions: [ {number} ]" in triton
    card = (bundle_of(finished) / "MODEL_CARD.md").read_text()
    assert ("float16" in card, "uint8 [batch, 8, 8, 1]" in card) == (half, pixels)


def test_pytorch_stands_beside_and_every_run_is_kept(finished: Place) -> None:
    report = json.loads((bundle_of(finished) / "report.json").read_text())
    assert {(row["batch"], row["runtime"]) for row in report["eager"]} == {
        (batch, f"PyTorch eager, {layout}")
        for batch in (1, 4)
        for layout in ("contiguous", "channels-last")
    }
    assert {(row["batch"], row["transfers"]) for row in report["latency_modes"]} == {
        (batch, transfers) for batch in (1, 4) for transfers in ("none", "host")
    }
    assert (report["best_mode"], report["gpu"]) == ("plain", None)
    (stored,) = finished.store.glob("versions/*/latency.json")
    kept = json.loads(stored.read_text())
    measured = {(row["batch"], row["transfers"]): row["samples"] for row in report["latency_modes"]}
    assert {(row["batch"], row["transfers"]): len(row["samples_ns"]) for row in kept} == measured


def test_the_gate_on_latency_is_3_and_leaves_no_version(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("validate", "toy", "--set", "validate.compare_eager=false", "--batch", "2")
    assert finished.run(*words, "--max-p99-ms", "0.0001") == 3
    assert " ms > 0.0001 ms for batch 2 on CPU " in capfd.readouterr().err
    rows = finished.json(capfd, "ls")
    assert [row["ref"] for row in rows if "/validate@" in row["ref"]] == ["toy/validate@v1"]
    # Control: with a limit that any machine keeps, the same measurement passes.
    assert finished.run(*words, "--max-p99-ms", "60000") == 0
    report = json.loads((bundle_of(finished) / "report.json").read_text())
    gate = report["latency_gate"]
    assert (gate["max_p99_ms"], gate["batch"], gate["transfers"]) == (60000.0, 2, "host")
    (decided,) = (
        row for row in report["latency_modes"] if (row["batch"], row["transfers"]) == (2, "host")
    )
    names = ("p99_ms", "mode", "device", "kind", "stable")
    assert {name: gate[name] for name in names} == {name: decided[name] for name in names}
    shown = finished.json(capfd, *words, "--max-p99-ms", "60000")
    assert (shown["executed"], shown["latency_gate"]) == ([], gate)
    assert shown["latency_modes"] == report["latency_modes"]
    card = (bundle_of(finished) / "MODEL_CARD.md").read_text()
    assert "- Gate on latency passed: p99 of batch 2, from host to host, mode plain" in card
    assert {row["batch"] for row in report["latency"]} == {1, 2, 4}


def test_accuracy_below_the_floor_is_3(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parity may pass and accuracy may not: one of many images tips over."""
    real = judge.accuracy_of
    answers = iter([1.0, 0.99])
    monkeypatch.setattr(judge, "accuracy_of", lambda logits, labels: next(answers))
    words = ("validate", "toy", "--fresh")
    assert finished.run(*words) == 3
    assert "accuracy 0.9900 is below 0.9990, 99.9 % of PyTorch's 1.0000" in capfd.readouterr().err
    answers = iter([1.0, 0.99])
    assert finished.run(*words, "--set", "validate.accuracy_floor=0.99") == 0
    monkeypatch.setattr(judge, "accuracy_of", real)


def test_one_answer_for_all_images_is_inconclusive_and_3(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def constant(reference: object, labels: np.ndarray) -> str:  # type: ignore[type-arg]
        seen.append(len(labels))
        return "the network answers 99.7 % of the images with one class"

    monkeypatch.setattr("pipeline.gate.parity._constant", constant)
    assert finished.run("validate", "toy", "--fresh") == 3
    assert seen == [359]
    assert "parity inconclusive: batch 64: the network answers 99.7 %" in capfd.readouterr().err


def test_an_accuracy_that_may_be_chance_is_told_everywhere(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate judges the copy: it passes, and nobody who looks at it can miss the rest."""
    words = ("validate", "toy", "--fresh", "--set", "validate.compare_eager=false")
    assert finished.run(*words) == 0
    assert "chance" not in capfd.readouterr().err
    assert "chance" not in (bundle_of(finished) / "MODEL_CARD.md").read_text()
    monkeypatch.setattr(judge, "is_near_chance", lambda *_: True)
    assert finished.run(*words) == 0
    told = capfd.readouterr()
    assert "warning: accuracy " in told.err
    assert " % may be chance: the largest class has 10.31 % of the images" in told.err
    assert "caution: accuracy " in told.out
    report = json.loads((bundle_of(finished) / "report.json").read_text())
    assert report["accuracy"]["near_chance"] is True
    assert "may be chance" in (bundle_of(finished) / "MODEL_CARD.md").read_text()
    assert "but its accuracy may be chance" in (bundle_of(finished) / "report.html").read_text()


def report_of(kind: str, mode: str) -> dict[str, object]:
    return {
        "model": {"input_type": "float32", "input_shape": [3, 32, 32], "num_classes": 10},
        "parity": {"batches": [{"batch": 1}, {"batch": 64}]},
        "device": {"kind": kind},
        "best_mode": mode,
    }


def test_the_server_runs_the_best_mode_on_the_validated_kind_of_device() -> None:
    cpu = triton_config("m", 1, report_of("cpu", "plain"))
    assert "KIND_CPU" in cpu
    assert "execution_accelerators" not in cpu
    plain, nhwc = (triton_config("m", 1, report_of("cuda", mode)) for mode in ("plain", "nhwc"))
    assert "KIND_GPU" in plain
    assert ("prefer_nhwc" in plain, "prefer_nhwc" in nhwc) == (False, True)
    assert all("enable_cuda_graph" not in text for text in (plain, nhwc))
    for text in (cpu, nhwc):
        assert text.count("model_warmup [") == 2
        assert ("batch_size: 1\n" in text, "batch_size: 64\n" in text) == (True, True)

"""Models in 8-bit integers: from the training images to a bundle, and not where they are slower."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from toy import Place

from d2nas.config import build_config
from d2nas.data.images import ImageSet, load_data
from pipeline.cli import run
from pipeline.gate.comparison import PRECISION_LIMITS
from pipeline.latency.limits import serving_of
from pipeline.latency.timing import InTurns
from pipeline.stages import BY_NAME, original
from pipeline.stages.calibration import Calibration

FAULTS = {
    "classifier weight + 1 %",
    "two classes swapped",
    "stem weight + 1 %",
    "two channels swapped",
    "last convolution zeroed",
    "a normalisation skipped",
}
NO_EAGER = ("--set", "validate.compare_eager=false")


def take(monkeypatch: pytest.MonkeyPatch, int8_ms: float, float32_ms: float) -> None:
    """Let the two models take these times; no test depends on the clock."""

    def timed(sessions: Sequence[Any], batch: int) -> list[InTurns]:
        types = [len(session.description.input_shape) for session in sessions]
        assert (types, batch) == ([3, 3], 1)
        assert sessions[0].description.num_nodes > sessions[1].description.num_nodes
        return [InTurns((int8_ms, 2 * int8_ms)), InTurns((float32_ms, float32_ms))]

    monkeypatch.setattr(original, "time_in_turns", timed)


def exported_facts(place: Place, capfd: pytest.CaptureFixture[str]) -> Any:
    return place.json(capfd, "show", "toy/export")["facts"]


@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_a_faster_one_passes_the_whole_gate_and_is_told_everywhere(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    input_type: str,
) -> None:
    take(monkeypatch, 1.5, 2.0)
    words = ("--precision", "int8", "--input", input_type)
    assert finished.run("export", "toy", *words) == 0, capfd.readouterr().err
    assert finished.run("validate", "toy", *NO_EAGER) == 0, capfd.readouterr().err
    bundle = finished.exported / "toy"
    report = json.loads((bundle / "report.json").read_text())
    assert report["model"]["precision"] == "int8"
    assert report["model"]["input_type"] == input_type
    assert report["model"]["calibration"]["images"] == 256
    assert report["parity"]["limits"]["relative_l2"] == 0.1
    assert report["accuracy"]["floor"] == 0.99
    assert set(report["self_test"]["rejected"]) == FAULTS
    quantisation = report["quantisation"]
    assert quantisation["largest_steps"] <= 0.501
    assert quantisation["float32"]["relative_l2"] <= quantisation["float32"]["limit"] == 1e-5
    assert set(quantisation["float32"]["rejected"]) == FAULTS
    times = quantisation["latency"]
    assert (times["int8_ms"], times["float32_ms"], times["batch"]) == (1.5, 2.0, 1)
    for name in ("MODEL_CARD.md", "report.html"):
        text = (bundle / name).read_text()
        assert "computes in 8-bit integers" in text
        assert "ranges from 256 training images" in text
        assert "0.75 of it: 1.50 ms against 2.00 ms in turns, batch 1" in text
    model = onnx.ModelProto.FromString((bundle / "2" / "model.onnx").read_bytes())
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert not list(bundle.glob("**/float32.onnx"))
    capfd.readouterr()
    assert finished.run("verify", str(bundle)) == 0, capfd.readouterr().err
    assert run(["predict", str(bundle), str(bundle / "golden.png")]) == 0
    assert finished.run("bench", "profile", "toy") == 0, capfd.readouterr().err


def test_one_that_is_not_faster_is_3_with_both_times(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.run("export", "toy", "--precision", "int8") == 0
    for own in (2.0, 2.5, float("nan")):
        take(monkeypatch, own, 2.0)
        capfd.readouterr()
        assert finished.run("validate", "toy", *NO_EAGER) == 3
        told = capfd.readouterr().err
        assert f"int8 is not faster than fp32: {own:.3g} ms against 2 ms at batch 1 on CPU" in told
        assert "hint: export it as fp32 or fp16: d2nas export RUN --precision fp32" in told
    rows = finished.json(capfd, "ls")
    assert [row["ref"] for row in rows if "/validate@" in row["ref"]] == ["toy/validate@v1"]


def test_one_that_is_not_its_float32_model_is_3(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole gate, with a quantiser that gets one scale wrong."""
    from onnx import numpy_helper

    from pipeline.onnx_io import quantisation

    real = quantisation.quantise

    def wrong(*given: Any, **options: Any) -> bytes:
        model = onnx.ModelProto.FromString(real(*given, **options))
        names = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        (tensor, *_) = (
            t for t in model.graph.initializer if t.name in names and "stem" in t.name and t.dims
        )
        values = numpy_helper.to_array(tensor) * 1.2
        tensor.CopyFrom(numpy_helper.from_array(values.astype("float32"), tensor.name))
        return bytes(model.SerializeToString())

    monkeypatch.setattr(quantisation, "quantise", wrong)
    assert finished.run("export", "toy", "--precision", "int8") == 0
    capfd.readouterr()
    assert finished.run("validate", "toy", *NO_EAGER) == 3
    assert "quantisation: 'stem/conv': a weight is " in capfd.readouterr().err


def test_ranges_are_those_of_training_images_by_seed(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    count = ("--set", "export.calibration_images=40")
    assert finished.run("export", "toy", "--precision", "int8", *count) == 0
    capfd.readouterr()
    facts = exported_facts(finished, capfd)
    data = load_data("digits")
    known = {image.numpy().tobytes() for image in data.train.pixels(slice(None))}
    unseen = {image.numpy().tobytes() for image in data.test.pixels(slice(None))} - known
    assert unseen
    from d2nas.data.subsample import spread_sample

    chosen = spread_sample(
        len(data.train), 40, purpose="calibration", seed=0, labels=data.train.labels_N.tolist()
    )
    images = data.train.select(torch.tensor(chosen)).pixels(slice(None))
    assert not unseen & {image.numpy().tobytes() for image in images}
    assert len(set(data.train.labels_N[chosen].tolist())) == 10
    digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
    assert facts["calibration"]["digest"] == digest
    assert facts["calibration"]["images"] == 40
    # The same again is the same model.
    (first,) = finished.store.glob("versions/*/float32.onnx")
    model = (first.parent / "model.onnx").read_bytes()
    assert finished.run("export", "toy", "--precision", "int8", *count, "--fresh") == 0
    models = {path.parent / "model.onnx" for path in finished.store.glob("versions/*/float32.onnx")}
    assert {path.read_bytes() for path in models} == {model}


def test_another_split_is_refused_before_it_calibrates(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its training images could be the trained network's test images."""
    words = ("export", "toy", "--precision", "int8", "--set", "data.split_seed=7")
    assert finished.run(*words) == 2
    assert "the network was trained with other data.split_seed" in capfd.readouterr().err
    assert not list(finished.store.glob("versions/*/float32.onnx"))


def test_pixels_are_looked_at_a_few_at_a_time(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(ImageSet):
        def pixels(self, part: slice) -> torch.Tensor:
            found = super().pixels(part)
            seen.append(len(found))
            return found

    images = Watched(
        torch.zeros(70, 1, 8, 8, dtype=torch.uint8), torch.zeros(70, dtype=torch.int64)
    )
    shapes = [batch.shape for batch in Calibration(images, None).batches()]
    assert seen == [32, 32, 6]
    assert shapes[0] == (32, 8, 8, 1)


def test_the_limits_hold_for_what_was_measured_with_room() -> None:
    file = Path(__file__).parents[3] / "benchmarks" / "int8.json"
    limits = PRECISION_LIMITS["int8"]
    found = [
        row[bits]
        for row in json.loads(file.read_text())["rows"]
        for bits in ("8 bits", "7 bits")
        if bits in row
    ]
    assert len(found) == 6
    for one in found:
        assert one["relative_l2"] < limits.relative_l2 / 3
        assert one["top1_agreement"] > limits.top1_agreement
        assert one["spread"] > limits.spread


def test_latency_is_predicted_by_float32() -> None:
    """An upper bound: an int8 model that is not faster is not served."""
    for precision, wanted in (("int8", "fp32"), ("fp32", "fp32"), ("fp16", "fp16")):
        config = build_config({"export": {"precision": precision}})
        serving = serving_of(config, channels=1, image_size=8, num_classes=10, batch=1)
        assert serving.precision == wanted


def test_other_precisions_keep_their_keys() -> None:
    """As before there was a number of calibration images, and without looking at images."""
    stage = BY_NAME["export"]
    for precision in ("fp32", "fp16"):
        for images in (256, 64):
            values = {"precision": precision, "calibration_images": images}
            config = build_config({"export": values})
            wanted = {"opset": 20, "precision": precision, "input": "float32"}
            assert stage.config(config) == {"export": wanted}
    found = stage.config(build_config({"export": {"precision": "int8"}}))
    assert found["export"]["calibration_images"] == 256
    assert {"data", "run"} <= found.keys()

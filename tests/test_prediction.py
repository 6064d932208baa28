"""Pictures get the answers that validation gave them, or none at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from test_bundle_reader import bundle_of
from toy import Place

from d2nas.config import build_config
from d2nas.data import load_data
from d2nas.errors import ConfigError
from pipeline.bench.profile import find_model
from pipeline.bundle import prediction
from pipeline.bundle.reader import open_bundle
from pipeline.store import Store


def pictures(place: Place, folder: Path) -> tuple[list[Path], Any]:
    """The toy's golden images as files, and their logits out of the validation."""
    store = Store(place.store)
    version = store.open("toy/validate")
    assert version.note is not None
    config = build_config(version.note["config"])
    data = load_data(config.data, seed=config.run.seed, default_root=folder)
    sampled = json.loads(version.read("report.json"))["sampled_images"]
    paths = []
    for index in sampled["indices"][: sampled["golden"]]:
        path = folder / f"{index}.png"
        Image.fromarray(data.test.images_NCHW[index, 0].numpy()).save(path)
        paths.append(path)
    golden = safetensors.numpy.load(version.read("golden.safetensors"))
    return paths, golden["logits"]


@pytest.mark.parametrize("words", [(), ("--input", "uint8"), ("--precision", "fp16")])
def test_a_picture_gets_the_answer_that_validation_gave_it(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    if words:
        assert finished.run("export", "toy", *words) == 0
        assert finished.run("validate", "toy") == 0
    paths, logits = pictures(finished, tmp_path)
    found = finished_json(finished, capfd, *map(str, paths))
    for prediction_, wanted in zip(found, logits, strict=True):
        np.testing.assert_allclose(prediction_["logits"], wanted, rtol=1e-5, atol=1e-5)
        best = [entry["class"] for entry in prediction_["predictions"]]
        assert best == [str(index) for index in np.argsort(-wanted, kind="stable")[:5]]
        shares = [entry["probability"] for entry in prediction_["predictions"]]
        exponents = np.exp(wanted.astype(np.float64))
        assert shares[0] == pytest.approx(exponents.max() / exponents.sum(), rel=1e-4)
        assert shares == sorted(shares, reverse=True)


def finished_json(place: Place, capfd: pytest.CaptureFixture[str], *images: str) -> Any:
    from pipeline.cli import run

    capfd.readouterr()
    assert run(["predict", str(bundle_of(place)), *images, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_predictions_are_a_table_and_one_bad_picture_is_one_line(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import run

    paths, _ = pictures(finished, tmp_path)
    assert run(["predict", str(bundle_of(finished)), str(paths[0]), "--top", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["image", "class", "probability"]
    assert len(lines) == 3
    assert lines[1].endswith(" %")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    assert run(["predict", str(bundle_of(finished)), str(paths[0]), str(bad)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""  # never half a result
    assert "bad.png: cannot be read as an image" in captured.err
    missing = str(tmp_path / "missing.png")
    assert run(["predict", str(bundle_of(finished)), missing]) == 2
    assert run(["predict", str(tmp_path), str(paths[0])]) == 2


def test_more_pictures_than_a_batch_are_answered_in_parts(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = pictures(finished, tmp_path)
    bundle = open_bundle(bundle_of(finished))
    session = prediction.open_model(bundle, "cpu")
    whole = prediction.predict(bundle, session, paths)
    object.__setattr__(bundle, "max_batch", 3)
    sizes: list[int] = []
    run = session.run
    monkeypatch.setattr(session, "run", lambda images: (sizes.append(len(images)), run(images))[1])
    parts = prediction.predict(bundle, session, paths)
    assert sizes == [3, 3, 2]
    assert [p.classes for p in parts] == [p.classes for p in whole]


def test_a_picture_that_never_ends_is_refused(finished: Place, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a file"):
            prediction.prepare(open_bundle(bundle_of(finished)), [path])


def test_the_model_that_is_profiled_is_the_one_that_is_served(finished: Place) -> None:
    assert finished.run("export", "toy", "--input", "uint8") == 0
    assert finished.run("validate", "toy") == 0
    assert finished.run("validate", "toy/export@v1") == 0
    bundle = open_bundle(bundle_of(finished))
    assert (bundle.number, (bundle.folder / "2").is_dir()) == (1, True)
    name, model = find_model(str(bundle.folder), finished.store)
    assert name.endswith("/1/model.onnx")
    assert model == bundle.model

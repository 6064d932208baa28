"""The product as a library: ``run`` and ``load_bundle``."""

import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import bundle_of
from PIL import Image
from toy import Place

from d2nas import load_bundle, run
from d2nas.config import Config
from d2nas.errors import ConfigError, DamagedArtifactError
from pipeline.bundle.prediction import Prediction


def test_a_run_that_is_up_to_date_gives_its_bundle(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = run(str(finished.preset), store=finished.store, exported=finished.exported)
    assert bundle.folder == bundle_of(finished)
    assert 0 <= bundle.report["accuracy"]["onnx"] <= 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "up to date" in err


def test_settings_are_the_configurations_keys(finished: Place) -> None:
    with pytest.raises(ConfigError, match="epoch_count"):
        run(str(finished.preset), {"search.epoch_count": 1}, store=finished.store)


def test_a_picture_is_answered_alike_in_every_form(finished: Place, tmp_path: Path) -> None:
    bundle = load_bundle(bundle_of(finished))
    pixels = np.random.default_rng(3).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    found = bundle.predict([path, str(path), Image.fromarray(pixels), pixels], top=2)
    assert [prediction.image for prediction in found] == [str(path), str(path), "2", "3"]
    first: Prediction = found[0]
    assert set(first.classes) <= set(bundle.labels)
    for prediction in found[1:]:
        assert prediction.logits == first.logits


def test_one_picture_alone_and_a_folder_are_answered(finished: Place, tmp_path: Path) -> None:
    bundle = load_bundle(bundle_of(finished))
    for name in ("b.png", "a.png"):
        Image.new("L", (9, 7), 80).save(tmp_path / name)
    (alone,) = bundle.predict(str(tmp_path / "a.png"))
    found = bundle.predict(tmp_path)
    assert [Path(prediction.image).name for prediction in found] == ["a.png", "b.png"]
    assert found[0] == alone
    (pixels,) = bundle.predict(np.full((7, 9), 80, np.uint8))
    assert pixels.logits == alone.logits


def test_nothing_floods_a_terminal(finished: Place) -> None:
    bundle = load_bundle(bundle_of(finished))
    assert repr(bundle) == f"LoadedBundle({str(bundle.folder)!r}, device='cpu', classes=10)"
    assert len(repr(bundle.bundle)) < 300


def test_what_is_no_picture_is_told(finished: Place) -> None:
    bundle = load_bundle(bundle_of(finished))
    with pytest.raises(ConfigError, match="picture 0: uint8 pixels"):
        bundle.predict([np.zeros((4, 4), np.float32)])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"missing\.png: there is no such file"):
        bundle.predict(["missing.png"])
    with pytest.raises(ConfigError, match=r"picture 1: a path, .* not int"):
        bundle.predict([np.zeros((4, 4), np.uint8), 7])  # type: ignore[list-item]


def test_a_damaged_bundle_is_not_loaded(place: Place, finished: Place) -> None:
    copy = shutil.copytree(bundle_of(finished), place.folder / "copy")
    (copy / "labels.txt").write_text("other")
    with pytest.raises(DamagedArtifactError, match=r"labels\.txt"):
        load_bundle(copy)


def test_a_run_in_another_thread_leaves_signals_to_the_caller(finished: Place) -> None:
    found: list[object] = []

    def work() -> None:
        found.append(run(finished.preset, store=finished.store, exported=finished.exported))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(300)
    assert [str(bundle) for bundle in found] == [str(load_bundle(bundle_of(finished)))]


def test_settings_are_values_of_python(finished: Place) -> None:
    values = {
        "retrain.auxiliary": False,
        "validate.max_p99_ms": None,
        "validate.parity_batches": (1, 4),
        "retrain.lr": "high",
    }
    with pytest.raises(ConfigError, match=r"retrain\.lr") as raised:
        run(finished.preset, values, store=finished.store)
    assert "auxiliary" not in str(raised.value)


def test_a_run_takes_a_target_latency_and_the_store_of_the_environment(
    finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, float | None, int | None, bool]] = []
    budgets: list[float | None] = []

    def bring(
        _run: str, config: Config, store: Path, *, fresh: bool, fits: bool, budget: Any
    ) -> None:
        budgets.append(None if budget is None else budget.seconds)
        asked.append((store, config.validate_.max_p99_ms, config.validate_.gated_batch, fits))
        raise ConfigError("far enough")

    monkeypatch.setattr("pipeline.commands.run.bring_up_to_date", bring)
    monkeypatch.setenv("D2NAS_STORE", "elsewhere")
    for values, options in (
        ({}, {"max_p99_ms": 3.0, "batch": 4}),
        ({"retrain.init_channels": 8}, {"max_p99_ms": 3.0}),
        ({"validate.max_p99_ms": 2.0}, {"store": "here"}),
        ({}, {"time": "1h30m"}),
    ):
        with pytest.raises(ConfigError, match="far enough"):
            run(finished.preset, values, exported=finished.exported, **options)  # type: ignore[arg-type]
    assert asked == [
        (Path("elsewhere"), 3.0, 4, True),
        (Path("elsewhere"), 3.0, 1, False),
        (Path("here"), 2.0, 1, False),
        (Path("elsewhere"), None, None, False),
    ]
    assert budgets == [None, None, None, 5400.0]


def test_filters_of_warnings_outlast_threads(finished: Place) -> None:
    bundle, before = load_bundle(bundle_of(finished)), list(warnings.filters)
    pictures = [np.zeros((9, 7), np.uint8)] * 3
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: bundle.predict(pictures), range(12)))
    assert found == [found[0]] * 12
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        Image.new("L", (0, 0)),
        None,
        "a\0b",
    ],
    ids=["empty", "one channel", "channels first", "empty picture", "none", "a path with a zero"],
)
def test_odd_pictures_are_told(finished: Place, picture: object) -> None:
    with pytest.raises(ConfigError):
        load_bundle(bundle_of(finished)).predict([picture])  # type: ignore[list-item]


def test_a_device_that_is_not_there_is_told_at_once(finished: Place) -> None:
    with pytest.raises(ConfigError):
        load_bundle(bundle_of(finished), device="tpu")

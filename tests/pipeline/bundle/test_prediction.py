"""Pictures get the answers that validation gave them, or none at all."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from bundles import bundle_of
from image_files import noise
from PIL import Image
from toy import Place

from d2nas.config import build_config
from d2nas.data.images import load_data
from d2nas.data.preprocess import FORMATS
from d2nas.errors import ConfigError, D2NasError, ValidationFailedError
from pipeline.bench.profile import find_model
from pipeline.bundle import prediction
from pipeline.bundle.pictures import Picture
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
    words = ["predict", str(bundle_of(finished)), "--top", "2"]
    assert run([*words, str(bad), str(paths[0])]) == 2
    captured = capfd.readouterr()
    assert captured.out.splitlines() == lines  # the others are answered all the same
    assert captured.err.splitlines() == [
        f"error: {bad}: cannot be read as an image (none of {', '.join(FORMATS)})",
        "hint: repair or remove it",
    ]
    missing = str(tmp_path / "missing.png")
    assert run(["predict", str(bundle_of(finished)), missing]) == 2
    assert run(["predict", str(tmp_path), str(paths[0])]) == 2
    assert capfd.readouterr().out == ""


def a_folder(folder: Path) -> dict[str, int]:
    """Pictures of all sorts in a folder; the path of each that is one, and a seed of its pixels."""
    good = {"a.png": 0, "b/c.JPG": 1, "b/d/e.gif": 2, "b-.png": 3, "z.jfif": 4}
    for name, seed in good.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if path.suffix.lower() in (".jpg", ".jfif") else path.suffix[1:]
        Image.fromarray(noise(seed, 9, 7)).save(path, kind)
    for hidden in (".hidden/a.png", ".a.png", "__MACOSX/a.png", "b/Thumbs.db"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"no picture")
    for other in ("notes.txt", "b/more.txt", "b/f.heic"):
        (folder / other).touch()
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "outside").symlink_to("/")
    os.mkfifo(folder / "pipe.png")
    return good


def test_a_folder_is_answered_in_order_and_what_is_no_picture_is_named(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import run

    folder = tmp_path / "photos"
    good = a_folder(folder)
    (tmp_path / "empty").mkdir()
    other = tmp_path / "-"
    Image.fromarray(noise(9, 9, 7)).save(other, "PNG")
    words = ["predict", str(bundle_of(finished)), str(folder), str(other), str(tmp_path / "empty")]
    assert run([*words, "--json"]) == 2
    captured = capfd.readouterr()
    found = [row["image"] for row in json.loads(captured.out)]
    assert found == [*(str(folder / name) for name in sorted(good)), str(other)]
    told = captured.err.splitlines()
    assert told[0] == f"files left out: 3 of {folder} (2 .txt, 1 .heic)"
    errors = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
    assert [line.split(": ")[0] for line in errors] == [
        *(str(folder / name) for name in ("b/broken.png", "dangling.png", "outside", "pipe.png")),
        str(tmp_path / "empty"),
    ]
    assert "no picture in this folder" in errors[-1]
    for name, seed in good.items():
        if name.endswith((".png", ".gif")):
            row = json.loads(captured.out)[found.index(str(folder / name))]
            Image.fromarray(noise(seed, 9, 7)).save(tmp_path / "alone.png")
            (alone,) = finished_json(finished, capfd, str(tmp_path / "alone.png"))
            np.testing.assert_allclose(row["logits"], alone["logits"], rtol=1e-5, atol=1e-5)


def test_the_first_problem_decides_the_exit_code(
    finished: Place,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.cli import run

    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name in ("unreadable.png", "good.png"):
        Image.new("L", (9, 7)).save(tmp_path / name)
    real = os.open

    def refuse(path: Any, *words: Any, **more: Any) -> int:
        if str(path).endswith("unreadable.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *words, **more)

    monkeypatch.setattr(os, "open", refuse)
    names = {"unreadable.png": 7, "bad.png": 2, "missing.png": 2, "x" * 300: 7}
    for first, code in names.items():
        others = [name for name in names if name != first]
        paths = [str(tmp_path / name) for name in ("good.png", first, *others)]
        assert run(["predict", str(bundle_of(finished)), *paths]) == code
        captured = capfd.readouterr()
        assert len({line.split("\t")[0] for line in captured.out.splitlines()}) == 2
        assert captured.err.count("error: ") == 4


@pytest.mark.parametrize("content", ["picture", "text", "nothing", "endless"])
def test_a_picture_comes_from_stdin(
    finished: Place,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str,
) -> None:
    from pipeline.cli import run

    path = tmp_path / "a.png"
    Image.fromarray(noise(1, 9, 7)).save(path)
    given = {"picture": path.read_bytes(), "text": b"no picture", "nothing": b""}
    monkeypatch.setattr("pipeline.bundle.pictures.MAX_FILE_BYTES", 10_000)
    stdin = io.BytesIO(given.get(content, bytes(20_000)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
    words = ["predict", str(bundle_of(finished)), "-", str(path), "--json"]
    assert run(words) == (0 if content == "picture" else 2)
    captured = capfd.readouterr()
    answers = json.loads(captured.out)
    assert [row["image"] for row in answers] == ["-", str(path)][content != "picture" :]
    if content == "picture":
        assert answers[0]["logits"] == pytest.approx(answers[1]["logits"], rel=1e-5)
    assert stdin.tell() <= 10_001
    assert run([*words, "-"]) == 2
    assert "- is given more than once" in capfd.readouterr().err


def test_an_answer_that_is_not_finite_is_named_and_the_others_are_given(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = pictures(finished, tmp_path)
    bundle = open_bundle(bundle_of(finished))
    session = prediction.open_model(bundle, "cpu")
    run = session.run

    def answer(images: Any) -> Any:
        logits = run(images)
        logits[1] = np.nan
        return logits

    monkeypatch.setattr(session, "run", answer)
    told: list[D2NasError] = []
    parts = prediction.predictions(bundle, session, map(Picture, paths), told.append)
    assert [row.image for part in parts for row in part] == [str(paths[0]), *map(str, paths[2:])]
    assert [(error.exit_code, paths[1].name in str(error)) for error in told] == [(3, True)]
    with pytest.raises(ValidationFailedError, match="not finite"):
        prediction.predict(bundle, session, paths)


class Slow(list[Any]):
    """Pictures that count how many of them were asked for."""

    asked = 0

    def __iter__(self) -> Any:
        for item in super().__iter__():
            self.asked += 1
            yield item


def test_answers_are_given_while_later_pictures_are_not_read_yet(
    finished: Place, tmp_path: Path
) -> None:
    paths, _ = pictures(finished, tmp_path)
    bundle = open_bundle(bundle_of(finished))
    session = prediction.open_model(bundle, "cpu")
    many = Slow(Picture(path) for path in paths * 100)
    parts = prediction.predictions(bundle, session, many, lambda error: None)
    assert many.asked == 0
    assert len(next(parts)) == many.asked == min(prediction.BATCH, bundle.max_batch)


HOSTILE_FILES = ["a\x1b]0;title\x07.png", "b\x1b[2J.png", "c\n\td.png", "e\u202egnp.png"]
HOSTILE_FILES += ["f\u2028g.png", os.fsdecode(b"h\xff.png")]


@pytest.mark.parametrize("way", ["as it is", "control"])
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_hostile_file_names_are_text(
    finished: Place,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    way: str,
) -> None:
    from pipeline.cli import run

    folder = tmp_path / "0"
    folder.mkdir()
    for name in HOSTILE_FILES:
        Image.new("L", (9, 7), 80).save(folder / name)
        (folder / f"bad {name}").write_bytes(b"no picture")
        (folder / f"{name}.\x1bother").touch()
    words = [command, str(bundle_of(finished)), str(tmp_path)]
    capfd.readouterr()
    if way == "control":
        for place in ("pipeline.console", "d2nas.data.faults", "d2nas.data.decoding"):
            monkeypatch.setattr(f"{place}.shown", str)
        assert run(words) == 2
        captured = capfd.readouterr()
        assert "\x1b" in captured.err
        assert ("\x1b" in captured.out) == (command == "predict")
        return
    assert run(words) == 2
    captured = capfd.readouterr()
    for line in [*captured.out.split("\n"), *captured.err.split("\n")]:
        assert all(cell.isprintable() for cell in line.split("\t"))
    assert captured.err.count("error: ") == len(HOSTILE_FILES)
    if command == "predict":
        rows = captured.out.splitlines()
        assert len(rows) == 1 + 5 * len(HOSTILE_FILES)
        assert len({row.split("\t")[0] for row in rows[1:]}) == len(HOSTILE_FILES)
        assert run([*words, "--json"]) == 2
        found = [row["image"] for row in json.loads(capfd.readouterr().out)]
        assert sorted(found) == sorted(str(folder / name) for name in HOSTILE_FILES)


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
            prediction.read_pictures([path], open_bundle(bundle_of(finished)).preprocess)


def test_the_model_that_is_profiled_is_the_one_that_is_served(finished: Place) -> None:
    assert finished.run("export", "toy", "--input", "uint8") == 0
    assert finished.run("validate", "toy") == 0
    assert finished.run("validate", "toy/export@v1") == 0
    bundle = open_bundle(bundle_of(finished))
    assert (bundle.number, (bundle.folder / "2").is_dir()) == (1, True)
    name, model = find_model(str(bundle.folder), finished.store)
    assert name.endswith("/1/model.onnx")
    assert model == bundle.model

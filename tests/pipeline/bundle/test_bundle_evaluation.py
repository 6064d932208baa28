"""A bundle evaluated on a labelled folder: scores as counted by hand, and what was not counted."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import bundle_of
from image_files import noise
from PIL import Image
from toy import Place

from d2nas.config import build_config
from d2nas.data.images import load_data
from d2nas.errors import ConfigError
from d2nas.measure.scores import NUM_BINS, Scores, wilson_interval
from pipeline.bundle import evaluation
from pipeline.cli import run
from pipeline.store import Store


def labelled(place: Place, root: Path, *, left_out: str = "") -> int:
    """Write the toy's test images as ROOT/<class>/*.png, but for one class; return how many."""
    note = Store(place.store).open("toy/validate").note
    assert note is not None
    config = build_config(note["config"])
    data = load_data(config.data, seed=config.run.seed, default_root=root)
    count = 0
    for index, label in enumerate(data.test.labels_N.tolist()):
        name = data.class_names[label]
        if name != left_out:
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = data.test.images_NCHW[index, 0].numpy()
            Image.fromarray(pixels).save(root / name / f"{index:04}.png")
            count += 1
    return count


def evaluated(
    place: Place, capfd: pytest.CaptureFixture[str], root: Path, code: int = 0
) -> tuple[Any, str]:
    capfd.readouterr()
    assert run(["evaluate", str(bundle_of(place)), str(root), "--json"]) == code
    captured = capfd.readouterr()
    return json.loads(captured.out), captured.err


def test_the_test_images_get_the_accuracy_of_the_validation(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    count = labelled(finished, tmp_path)
    found, told = evaluated(finished, capfd, tmp_path)
    assert told == ""
    report = json.loads((bundle_of(finished) / "report.json").read_text())["accuracy"]
    assert found["images"] == count == report["test_images"]
    assert found["accuracy"] == pytest.approx(report["onnx"], abs=1e-12)

    # The same again from what predict says of each picture.
    words = ["predict", str(bundle_of(finished)), str(tmp_path), "--json"]
    assert run(words) == 0
    answers = json.loads(capfd.readouterr().out)
    truth = np.array([int(Path(row["image"]).parent.name) for row in answers])
    logits = np.array([row["logits"] for row in answers])
    said = logits.argmax(axis=1)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    confusion = [[int(((truth == t) & (said == s)).sum()) for s in range(10)] for t in range(10)]
    assert found["confusion"] == confusion
    recalls = [(said[truth == label] == label).mean() for label in range(10)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-12)
    ece = 0.0
    for low in range(NUM_BINS):
        inside = (sure > low / NUM_BINS) & (sure <= (low + 1) / NUM_BINS)
        if inside.any():
            ece += inside.mean() * abs((said == truth)[inside].mean() - sure[inside].mean())
    assert found["ece"] == pytest.approx(ece, abs=1e-6)
    for label, row in enumerate(found["per_class"]):
        hits = ((truth == label) & (said == label)).sum()
        assert row["class"] == str(label)
        assert row["images"] == (truth == label).sum()
        assert row["recall"] == pytest.approx(recalls[label])
        precision = hits / (said == label).sum()
        assert row["precision"] == pytest.approx(precision)
        assert row["f1"] == pytest.approx(
            2 * precision * recalls[label] / (precision + recalls[label])
        )


@pytest.mark.parametrize("way", ["as it is", "control"])
def test_a_class_that_is_missing_moves_no_other(
    finished: Place,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    count = labelled(finished, tmp_path, left_out="0")
    if way == "control":  # labels counted over the folders that are there
        numbered = {str(label): label - 1 for label in range(1, 10)}
        monkeypatch.setattr(evaluation, "labels_by_folder", lambda bundle: numbered)
    found, told = evaluated(finished, capfd, tmp_path)
    if way == "control":
        assert found["accuracy"] < 0.3
        return
    assert found["without_images"] == ["0"]
    assert "classes without answered pictures: 0" in told
    assert found["images"] == count
    assert found["accuracy"] > 0.5
    first = found["per_class"][0]
    assert (first["images"], first["recall"]) == (0, None)
    recalls = [row["recall"] for row in found["per_class"][1:]]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_what_cannot_be_answered_is_named_and_not_counted(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for label in range(10):
        (tmp_path / str(label) / "more").mkdir(parents=True)
        for index, folder in enumerate(("", "more")):
            pixels = noise(10 * label + index, 9, 7)
            Image.fromarray(pixels).save(tmp_path / str(label) / folder / "a.png")
    (tmp_path / "3" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "3" / "link.png").symlink_to("nowhere")
    (tmp_path / "3" / "notes.txt").touch()
    (tmp_path / "outside.png").write_bytes((tmp_path / "0" / "a.png").read_bytes())
    (tmp_path / "__MACOSX").mkdir()
    found, told = evaluated(finished, capfd, tmp_path, code=2)
    assert found["images"] == 20
    assert found["left_out"] == {".txt": 1, "pictures outside the class folders": 1}
    assert len(found["unanswered"]) == 2
    assert [line for line in told.splitlines() if not line.startswith("hint")] == [
        f"files left out: 2 of {tmp_path} (1 .txt, 1 pictures outside the class folders)",
        *(f"error: {problem}" for problem in found["unanswered"]),
    ]
    assert run(["evaluate", str(bundle_of(finished)), str(tmp_path)]) == 2
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("accuracy: ")
    assert "without an answer: 2, not counted" in lines
    header = next(i for i, line in enumerate(lines) if line.startswith("class\t"))
    assert len(lines) == header + 11
    recalls = [float(line.split("\t")[2].removesuffix(" %")) for line in lines[header + 1 :]]
    assert recalls == sorted(recalls)


def test_a_folder_that_is_not_labelled_as_the_bundle_is_refused(
    finished: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> str:
        capfd.readouterr()
        assert run(["evaluate", str(bundle_of(finished)), str(path)]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        return captured.err

    assert "there is no such file" in refused(tmp_path / "missing")
    file = tmp_path / "file.png"
    Image.new("L", (9, 7)).save(file)
    assert "not a folder" in refused(file)
    assert "no folders of classes; its classes: 0, 1, 2" in refused(tmp_path)
    for name in ("0", "cat", "dog"):
        (tmp_path / name).mkdir()
    told = refused(tmp_path)
    assert "no classes of toy: cat, dog; its classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in told
    assert "labels.txt" in told
    (tmp_path / "whole" / "train" / "0").mkdir(parents=True)
    (tmp_path / "whole" / "test" / "0").mkdir(parents=True)
    assert f"hint: one split is evaluated: {tmp_path / 'whole' / 'test'}\n" in refused(
        tmp_path / "whole"
    )
    assert "no picture of a class was answered" in refused(tmp_path / "whole" / "test")


def test_where_no_picture_is_answered_the_first_problem_decides(
    finished: Place,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "0").mkdir()
    Image.new("L", (9, 7)).save(tmp_path / "0" / "unreadable.png")
    real = os.open

    def refuse(path: Any, *words: Any, **more: Any) -> int:
        if str(path).endswith("unreadable.png"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *words, **more)

    monkeypatch.setattr(os, "open", refuse)
    capfd.readouterr()
    assert run(["evaluate", str(bundle_of(finished)), str(tmp_path), "--json"]) == 7
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "unreadable.png: Input/output error" in captured.err


def test_many_unknown_folders_are_told_in_one_line(tmp_path: Path) -> None:
    for index in range(50):
        (tmp_path / f"folder\x1b{index:02}").mkdir()
    names = [f"class{index}" for index in range(1000)]
    bundle: Any = SimpleNamespace(
        name="wide", labels=tuple(names), preprocess={"class_names": names}
    )
    with pytest.raises(ConfigError) as caught:
        evaluation.labelled_folder(bundle, str(tmp_path))
    told = str(caught.value)
    assert told.isprintable()
    assert "folder\\x1b00" in told
    assert "and 30 more; its classes: class0" in told
    assert told.endswith("class19 and 980 more")


def test_a_folder_is_named_as_in_training_or_as_in_the_labels() -> None:
    bundle: Any = SimpleNamespace(
        labels=("a b", "a b", "c d"), preprocess={"class_names": ["a  b", "a b", "c\td"]}
    )
    assert evaluation.labels_by_folder(bundle) == {"a  b": 0, "a b": 1, "c\td": 2, "c d": 2}


def test_scores_are_those_counted_by_hand() -> None:
    scores = Scores(4)
    shares = np.array([[0.6, 0.4, 0, 0], [0.6, 0.4, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 1.0, 0]])
    scores.add(np.array([0, 1]), shares[:2])
    scores.add(np.array([1, 2]), shares[2:])
    scores.add(np.array([], np.int64), shares[:0])
    assert scores.confusion.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    found = scores.overall()
    assert (found["images"], found["correct"], found["accuracy"]) == (4, 3, 0.75)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    # Two answers at 0.6 of which one is right, one at 0.8, one at 1: all in bins of their own.
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.6) + 0.2 + 0.0) / 4)
    assert scores.by_class() == [
        {"images": 1, "recall": 1.0, "precision": 0.5, "f1": pytest.approx(2 / 3)},
        {"images": 2, "recall": 0.5, "precision": 1.0, "f1": pytest.approx(2 / 3)},
        {"images": 1, "recall": 1.0, "precision": 1.0, "f1": 1.0},
        {"images": 0, "recall": None, "precision": None, "f1": None},
    ]


def test_wilsons_interval_is_its_formula() -> None:
    # The bounds are where a normal test of the share would just not reject it.
    for count in (1, 10, 359):
        for correct in {0, 1, count // 2, count}:
            share = correct / count
            for bound in wilson_interval(share, count):
                distance = 1.96 * (bound * (1 - bound) / count) ** 0.5
                assert abs(share - bound) == pytest.approx(distance, abs=1e-12)

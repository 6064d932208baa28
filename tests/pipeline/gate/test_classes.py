"""The gate by class, and the mistakes that a report shows."""

import json
from typing import Any

import numpy as np
import pytest
from toy import Place

from d2nas.errors import ValidationFailedError
from pipeline.gate.classes import MOST_CLASSES, ClassVerdict, class_verdict
from pipeline.stages import open_store


def sure_logits(answers: list[int], strength: list[float], classes: int) -> np.ndarray[Any, Any]:
    logits = np.zeros((len(answers), classes), np.float32)
    logits[np.arange(len(answers)), answers] = strength
    return logits


def verdict(labels: list[int], answers: list[int], *names: str, mistakes: int = 9) -> ClassVerdict:
    """Answers, each surer than the one before."""
    logits = sure_logits(answers, [1.0 + number for number in range(len(answers))], len(names))
    return class_verdict(logits, np.array(labels), names, num_mistakes=mistakes)


def test_the_surest_mistakes_come_first() -> None:
    found = verdict([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], "a", "b", "c")
    assert [(one.index, one.label, one.answer) for one in found.mistakes] == [
        (4, 2, 0),
        (2, 1, 0),
        (1, 0, 1),
    ]
    confidences = [one.confidence for one in found.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    few = verdict([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], "a", "b", "c", mistakes=1)
    assert few.mistakes == found.mistakes[:1]
    assert not verdict([0, 1], [1, 0], "a", "b", mistakes=0).mistakes
    assert not verdict([0, 1], [0, 1], "a", "b").mistakes


def test_pairs_that_are_confused_most_come_first() -> None:
    found = verdict([0, 0, 0, 1, 2, 2], [1, 1, 0, 0, 0, 1], "a", "b", "c").to_dict()
    assert found["confused"][0] == {"class": "a", "answer": "b", "images": 2}
    assert {(one["class"], one["answer"]) for one in found["confused"]} == {
        ("a", "b"),
        ("b", "a"),
        ("c", "a"),
        ("c", "b"),
    }
    assert found["confusion"] == [[1, 2, 0], [1, 0, 0], [1, 1, 0]]
    json.dumps(found, allow_nan=False)


def test_of_many_classes_the_matrix_is_left_out() -> None:
    names = [str(number) for number in range(MOST_CLASSES + 1)]
    logits = sure_logits([0, 1, 1], [3.0] * 3, len(names))
    found = class_verdict(logits, np.array([0, 1, 2]), names, num_mistakes=0).to_dict()
    assert found["confusion"] is None
    assert found["confused"] == [{"class": "2", "answer": "1", "images": 1}]


LABELS, ANSWERS = [0] * 8 + [1] * 100, [0] * 2 + [1] * 106
"""A class of eight images of which two are recognised; accuracy 94 %, balanced 62.5 %."""


def test_a_class_that_is_not_recognised_fails() -> None:
    found = verdict(LABELS, ANSWERS, "rare", "frequent", "unseen")
    found.require(None, None)
    found.require(0.25, 0.625)
    with pytest.raises(ValidationFailedError, match="recall of 1 class < 30 %") as caught:
        found.require(0.3, None)
    assert caught.value.details == ("rare: recall 25.0 % of 8, precision 100.0 %",)
    assert "validate.min_recall" in str(caught.value.hint)
    with pytest.raises(
        ValidationFailedError, match=r"^balanced accuracy 62\.50 % < 63 %$"
    ) as caught:
        found.require(None, 0.63)
    assert caught.value.details == ("rare: recall 25.0 % of 8, precision 100.0 %",)
    with pytest.raises(ValidationFailedError, match=r"accuracy 62\.50 % < 63 %; recall of 1 class"):
        found.require(0.3, 0.63)


def test_of_many_classes_the_lowest_are_named_first() -> None:
    labels = [number for number in range(80) for _ in range(2)]
    answers = [label if index % 2 or label < 60 else 79 for index, label in enumerate(labels)]
    found = verdict(labels, answers, *map(str, range(80)))
    with pytest.raises(ValidationFailedError, match="recall of 19 classes < 90 %") as caught:
        found.require(0.9, None)
    assert len(caught.value.details) == 19
    assert caught.value.details[0].startswith("60: recall 50.0 % of 2")
    none = verdict(labels, [0] * 160, *map(str, range(80)))
    with pytest.raises(ValidationFailedError, match="recall of 79 classes") as caught:
        none.require(0.9, None)
    assert len(caught.value.details) == 50


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("validate.min_recall=1.0", " < 100 %"),
        ("validate.min_balanced_accuracy=1.0", "balanced accuracy "),
    ],
)
def test_what_fails_leaves_no_version(
    finished: Place, capfd: pytest.CaptureFixture[str], limit: str, told: str
) -> None:
    before = finished.json(capfd, "ls")
    assert finished.run("validate", "toy", "--set", limit) == 3
    assert told in capfd.readouterr().err
    assert finished.json(capfd, "ls") == before


def test_the_report_has_what_each_class_has(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("validate", "toy", "--set", "validate.min_recall=0.01") == 0
    validated = open_store(finished.store).latest("toy", "validate")
    assert validated is not None
    report = json.loads(validated.read("report.json"))
    names = [row["class"] for row in report["per_class"]]
    assert names == [str(digit) for digit in range(10)]
    images = [row["images"] for row in report["per_class"]]
    assert sum(images) == report["accuracy"]["test_images"]
    right = sum(row["images"] * row["recall"] for row in report["per_class"])
    assert right / sum(images) == pytest.approx(report["accuracy"]["onnx"])
    recalls = [row["recall"] for row in report["per_class"]]
    assert report["balanced_accuracy"] == pytest.approx(sum(recalls) / 10)
    assert validated.manifest.facts["balanced_accuracy"] == report["balanced_accuracy"]
    assert sum(map(sum, report["confusion"])) == sum(images)
    wrong = sum(images) - round(right)
    assert len(report["mistakes"]) == min(12, wrong) > 0
    drawing = validated.read("mistakes.svg").decode()
    assert drawing.count("<image ") == len(report["mistakes"])
    told = finished.json(capfd, "run", str(finished.preset))
    assert [row["class"] for row in told["per_class"]] == names
    assert {"balanced_accuracy", "ece"} <= {*told}


def test_images_stay_out_where_none_are_to_be_shown(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("validate", "toy", "--set", "validate.shown_mistakes=0") == 0
    validated = open_store(finished.store).latest("toy", "validate")
    assert validated is not None
    assert "mistakes.svg" not in validated.manifest.files
    assert json.loads(validated.read("report.json"))["mistakes"] == []
    page = (finished.exported / "toy" / "report.html").read_text()
    assert "Mistakes made with the most confidence" not in page
    assert "Calibration error" in page

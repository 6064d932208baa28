"""A retraining that stops by held-out images: what the command, the curves and the facts tell."""

import json
from typing import Any

import pytest
from page_facts import MANIFESTS, PREPROCESS, REPORT
from tiny import STEPS_PER_EPOCH, TinyPlace

from d2nas.config import build_config
from d2nas.train.retrain import Retraining
from pipeline.report.facts import Facts
from pipeline.report.sections import last_epoch
from pipeline.report.training_curves import RETRAIN_PANELS, retrain_panels
from pipeline.stages import BY_NAME

STOPPING = {
    "best_epoch": 16,
    "epochs": 19,
    "train_images": 1295,
    "held_out_images": 143,
    "validation_loss": 0.3,
    "validation_accuracy": 0.9,
}


def facts_of(stopping: Any = None, **retrain: Any) -> Facts:
    recorded = MANIFESTS["retrain"]
    made = recorded | {"facts": recorded["facts"] | {"stopping": stopping}}
    report = REPORT | {"retrain": REPORT["retrain"] | retrain}
    return Facts(
        "x", 1, report, PREPROCESS, MANIFESTS | ({} if stopping is None else {"retrain": made})
    )


def told(facts: Facts) -> dict[str, str]:
    rows = [*facts.data, *facts.conditions]  # whose "training" counts
    return {name: str(value) for name, value in rows} | {
        stage: line for stage, line, _ in facts.lineage
    }


def test_the_report_says_which_epoch_and_by_how_many_images() -> None:
    found = told(facts_of(STOPPING, patience=2))
    assert found["weights"] == (
        "of epoch 17 of 19, the best by the loss on 143 training images that were held out; none "
        "was chosen by these images"
    )
    assert found["training"] == "19 epochs on 1,295 training images on a CPU"
    assert found["protocol"].endswith("are not test images but 143, held out to choose the epoch")
    assert found["in the search"].endswith("sees all but 143, held out to choose the epoch")
    assert "patience 2" in found["beside DARTS's recipe"]
    assert "19 epochs of 1,295 images" in found["retrain"]
    assert last_epoch(facts_of(STOPPING), "retrain").startswith("Best epoch: ")
    averaged = told(facts_of(STOPPING, ema=0.99))["weights"]
    assert averaged.startswith("a moving average (of 0.99) up to that of epoch 17 of 19, the best")


@pytest.mark.parametrize("stopping", [None, {}, {**STOPPING, "epochs": "<b>"}, [1]])
def test_control_without_it_the_last_epoch_is_told(stopping: Any) -> None:
    found = told(facts_of(stopping))
    assert found["weights"].startswith("of the last epoch")
    assert found["training"] == "20 epochs on 1,438 training images on a CPU"
    assert "held out" not in str(found)
    assert last_epoch(facts_of(stopping), "retrain").startswith("Last epoch: ")


def test_the_search_of_a_stopped_retraining_tells_its_last_epoch() -> None:
    found = last_epoch(facts_of(STOPPING), "search")
    assert found == "Last epoch: 42.0 % on the architecture half."


def test_a_part_that_nothing_holds_out_is_no_part_of_the_key() -> None:
    def key(*settings: str) -> str:
        return BY_NAME["retrain"].key(build_config({}, list(settings)), {}, "0" * 64)

    part = "retrain.validation_fraction=0.2"
    assert key(part) == key()
    # Control: with patience it decides which images are trained on.
    assert key("retrain.patience=3", part) != key("retrain.patience=3") != key()


def test_curves_have_a_line_of_what_was_held_out() -> None:
    row = {"loss": 1.0, "accuracy": 0.5}
    assert retrain_panels([row]) is RETRAIN_PANELS
    panels = retrain_panels([row | {"validation_loss": 1.1, "validation_accuracy": 0.4}])
    assert panels["loss"] == {"training": "loss", "held out": "validation_loss"}
    assert panels["accuracy"]["held out"] == "validation_accuracy"


def test_a_command_stops_and_records_it(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retraining, "_validate", lambda made, _: (1.0 + len(made.metrics), 0.5))
    words = ("--set", "retrain.patience=1", "--set", "retrain.batch_size=15")
    assert tiny.run("retrain", "tiny", *words) == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "10 training images are held out, by which the best epoch is chosen" in told
    assert f"retrain: now {2 * STEPS_PER_EPOCH} steps, 2 epochs" in told
    shown = tiny.json(capfd, "show", "tiny/retrain")
    assert shown["facts"]["steps"] == 2 * STEPS_PER_EPOCH
    stopping = shown["facts"]["stopping"]
    assert (stopping["best_epoch"], stopping["epochs"]) == (0, 2)
    assert (stopping["train_images"], stopping["held_out_images"]) == (54, 10)
    version = tiny.latest("retrain")
    assert version is not None
    rows = version.read("metrics.jsonl").decode().splitlines()
    assert shown["facts"]["train_accuracy"] == pytest.approx(json.loads(rows[0])["accuracy"])
    assert b"held out" in version.read("curves.svg")

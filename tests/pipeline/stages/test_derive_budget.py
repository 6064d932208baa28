"""``derive`` with a budget: what it writes, what its key holds, and a stop at any moment."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyPlace

from d2nas.config import TEACHER_FIELDS, Config, build_config
from d2nas.config.effects import without_effect
from d2nas.errors import ConfigError
from d2nas.train.retrain import Retraining
from pipeline.commands.configuration import configure
from pipeline.preflight.plan import make_plan
from pipeline.running import runner
from pipeline.running.other_ranks import Silence
from pipeline.running.runner import Runner
from pipeline.running.signals import StopFlag
from pipeline.stages import BY_NAME
from pipeline.stages.stage import LATER_SETTINGS, training_settings
from pipeline.store import Store, Version

BUDGET, STEPS = 8, 2  # of 30 images in batches of 20, two epochs
SETTINGS = ("--set", f"derive.budget={BUDGET}", "--set", "derive.rank_epochs=2")


@pytest.fixture
def spent(tiny: TinyPlace) -> Version:
    """The derivation of a tiny run by a budget that nothing stopped."""
    return derived(tiny)


def derived(place: TinyPlace) -> Version:
    assert place.run("derive", "tiny", *SETTINGS) == 0
    version = place.latest("derive")
    assert version is not None
    return version


def test_the_best_of_the_last_round_is_derived_and_all_trainings_are_listed(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    version = derived(tiny)
    told = capfd.readouterr().err
    assert f"{BUDGET} trainings of 2 epochs" in told
    assert "a row per training" in told
    found = json.loads(version.read("candidates.json"))
    rows = [json.loads(line) for line in version.read("metrics.jsonl").splitlines()]
    cells = found["candidates"]
    assert len(rows) == BUDGET
    assert found["rounds"] == [[0, 1, 2, 3, 4, 5], [0, *found["rounds"][1][1:]]]
    assert [cell["origin"] for cell in cells[:5]] == ["most probable", *["sampled"] * 4]
    assert cells[5]["origin"].startswith("neighbour of ")
    for number, cell in enumerate(cells):
        trainings = cell["trainings"]
        assert [one["round"] for one in trainings] == [0, 1][: len(trainings)]
        assert (len(trainings) == 2) == (number in found["rounds"][1])
        losses = [one["calibrated_loss"] for one in trainings]
        assert losses == [row["calibrated_loss"] for row in rows if row["candidate"] == number]
        assert cell["mean_calibrated_loss"] == pytest.approx(sum(losses) / len(losses))
    last = {number: cells[number]["mean_calibrated_loss"] for number in found["rounds"][1]}
    assert found["chosen"] == min(last, key=lambda number: last[number])
    facts = version.manifest.facts
    assert facts["genotype"] == cells[found["chosen"]]["genotype"]
    assert (facts["candidates"], facts["trainings"]) == (6, BUDGET)
    assert facts["cpu"]["threads"] >= 1  # sums may decide
    assert tiny.json(capfd, "derive", "tiny", *SETTINGS)["executed"] == []


def test_progress_is_told_for_each_training(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.console.LINE_SECONDS", 0.0)
    derived(tiny)
    told = capfd.readouterr().err
    for number in range(1, BUDGET + 1):
        assert f"derive: training {number}/{BUDGET}, " in told
    assert "candidate 0, calibrated" in told.replace("\n  ", " ")


def stop_at(place: TinyPlace, step: int, number: int = signal.SIGTERM) -> None:
    """Derive until a signal comes in the middle of a step, counted from this command's start."""
    with pytest.MonkeyPatch.context() as once:
        real, left = Retraining.take_step, [step]

        def take_step(training: Retraining, own: int) -> None:
            if not left[0]:
                os.kill(os.getpid(), number)
            left[0] -= 1
            real(training, own)

        once.setattr(Retraining, "take_step", take_step)
        assert place.run("derive", "tiny", *SETTINGS) == 128 + number


@pytest.mark.parametrize("steps", [(0,), (1,), (6,), (15,), (3, 4, 0, 5)])
def test_a_stopped_derivation_goes_on_where_it_was_and_ends_with_the_same_version(
    spent: Version,
    derived_folder: Path,
    tmp_path: Path,
    steps: tuple[int, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = TinyPlace(derived_folder).copy(tmp_path)
    done = 0
    for step in steps:
        stop_at(place, step)
        done += step + 1
        if done < BUDGET * STEPS:
            assert place.checkpoints("derive")[-1] == done
    assert derived(place).id == spent.id
    if done < BUDGET * STEPS:
        assert f"continues at step {done}" in capfd.readouterr().err


def test_an_end_without_a_chance_to_save_costs_no_finished_training(
    spent: Version,
    derived_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = TinyPlace(derived_folder).copy(tmp_path)
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    made, real = list[int](), Retraining.take_step

    def take_step(training: Retraining, step: int) -> None:
        made.append(step)
        if len(made) == 10:
            raise KeyboardInterrupt  # nothing is saved any more
        real(training, step)

    monkeypatch.setattr(Retraining, "take_step", take_step)
    assert place.run("derive", "tiny", *SETTINGS) != 0
    assert place.checkpoints("derive")[-1] == 9
    assert derived(place).id == spent.id
    assert len(made) == 10 + BUDGET * STEPS - 9


def test_what_has_not_finished_is_shown_and_what_has_is_not(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_at(tiny, 5)
    shown = tiny.json(capfd, "show", "tiny")["unfinished"]
    assert shown["stage"] == "derive"
    assert shown["row"]["training"] == 2
    derived(tiny)
    assert "unfinished" not in tiny.json(capfd, "show", "tiny")
    assert tiny.run("derive", "tiny", "--set", "derive.candidates=2") == 0
    newest = tiny.latest("derive")
    assert newest is not None
    assert "metrics.jsonl" not in newest.manifest.files
    assert "unfinished" not in tiny.json(capfd, "show", "tiny")


def part_of(*settings: str) -> dict[str, Any]:
    return BY_NAME["derive"].config(build_config({}, settings))


def test_a_key_without_a_budget_is_as_before() -> None:
    assert part_of() == {
        "derive": {"genotype": None, "candidates": 1, "rank_by": "supernet", "rank_epochs": 5}
    }
    assert part_of("derive.candidates=2", "derive.temperature=1.0") == part_of(
        "derive.candidates=2"
    )
    assert part_of("derive.candidates=2", "derive.temperature=2.0") != part_of(
        "derive.candidates=2"
    )
    for settings in (
        [],
        ["derive.candidates=2"],
        ["derive.candidates=2", "derive.rank_by=training"],
    ):
        assert "budget" not in part_of(*settings)["derive"]
        assert "temperature" not in part_of(*settings)["derive"]
    trained = part_of("derive.candidates=2", "derive.rank_by=training")["retrain"]
    assert trained == training_settings(Config())
    left_out = {*LATER_SETTINGS, "teacher", *TEACHER_FIELDS}
    assert {*Config().to_dict()["retrain"]} - {*trained} == left_out


def test_a_key_with_a_budget_holds_what_the_trainings_read() -> None:
    budget = "derive.budget=12"
    for setting in (
        "derive.budget=13",
        "derive.rank_epochs=6",
        "derive.temperature=1.0",
        "retrain.lr=0.1",
        "retrain.num_cells=8",
        "data.flip=false",
        "run.seed=1",
    ):
        assert part_of(budget, setting) != part_of(budget)
    for setting in (
        "retrain.epochs=7",
        "retrain.seed=3",
        "retrain.device=cpu",
        "derive.rank_by=training",
    ):
        assert part_of(budget, setting) == part_of(budget)
    assert BY_NAME["derive"].reads_data(build_config({}, [budget]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["derive.budget=5"], r"derive\.budget=5: must be from 6 to 10000"),
        (["derive.budget=12", "derive.candidates=2"], "candidates of its own"),
        (["derive.budget=12", "derive.genotype=DARTS_V2"], r"derive\.budget compares cells of a"),
        (["derive.budget=12", "search.method=gdas"], r"derive\.budget: gdas learns no"),
        (["derive.budget=12", "search.method=random"], r"derive\.budget: random learns no"),
        (["derive.candidates=2", "search.method=gdas"], r"derive\.candidates: gdas learns no"),
    ],
)
def test_what_a_budget_does_not_go_with_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config({}, settings)
    build_config({}, [settings[0].replace("=5", "=6")])  # control


def test_keys_that_a_budget_does_not_read_are_told() -> None:
    keys = [f"derive.{key}" for key in ("candidates", "rank_by", "rank_epochs", "temperature")]
    assert without_effect(build_config({}, ["derive.budget=6"]), keys) == {
        "derive.budget=6": ["derive.candidates", "derive.rank_by"]
    }
    alone = without_effect(build_config({}), keys)
    assert alone == {"derive.candidates=1": keys[1:]}
    assert without_effect(build_config({}, ["derive.candidates=3"]), keys[3:]) == {}


def test_a_plan_counts_the_trainings_and_how_many_are_left(tiny: TinyPlace) -> None:
    made = Runner(Store(tiny.store), Silence(), StopFlag())
    config = configure(str(tiny.preset), SETTINGS[1::2])
    before = make_plan(made, "tiny", config)["stages"][1]
    assert before["steps"] == BUDGET * STEPS
    assert before["peak_bytes"] > 0
    assert before["disk_bytes"] > 0
    assert f"{BUDGET} short trainings" in before["note"]
    stop_at(tiny, 9)
    after = make_plan(made, "tiny", config)["stages"][1]
    assert after["state"] == "continues at step 10"
    assert after["steps"] == BUDGET * STEPS
    ranked = build_config(
        config.to_dict(), ["derive.budget=none", "derive.candidates=3", "derive.rank_by=training"]
    )
    assert make_plan(made, "tiny", ranked)["stages"][1]["steps"] == 3 * STEPS
    by_supernet = build_config(ranked.to_dict(), ["derive.rank_by=supernet"])
    assert make_plan(made, "tiny", by_supernet)["stages"][1]["steps"] == 1

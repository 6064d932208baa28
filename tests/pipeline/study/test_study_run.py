"""Studies: running one to the end, trial by trial, whatever comes between."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from children import ForkServer
from forgery import forge_version, reference_file, rewrite_reference
from printed_genotypes import printed
from studies import SMALL, write
from toy import Place

from d2nas import Genotype, load_network
from d2nas.config import build_config
from d2nas.data.images import Normalizer, load_data
from d2nas.errors import D2NasError
from d2nas.measure.calibration import calibrated_loss
from pipeline.commands import study as study_commands
from pipeline.console import Console
from pipeline.running import runner as runner_module
from pipeline.running.runner import Reuse, Runner
from pipeline.running.signals import StopFlag
from pipeline.stages import BY_NAME, STUDY_STAGES
from pipeline.store import Store
from pipeline.study.grid import read_study
from pipeline.study.run import StudyRun


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("study"))
    assert place.run("study", str(write(place))) == 0
    return place.folder


@pytest.fixture
def done(finished_study: Path, tmp_path: Path) -> Place:
    folder = tmp_path / "done"
    shutil.copytree(finished_study, folder)
    return Place(folder)


def study_rows(place: Place, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    rows = place.json(capfd, "study", str(place.folder / "small.toml"))
    assert isinstance(rows, list)
    return rows


def test_every_row_says_what_was_found_and_at_which_cost(done, capfd):
    rows = study_rows(done, capfd)
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("d2nas", 0),
        ("random", 0),
        ("d2nas", 1),
        ("random", 1),
    ]
    for row in rows:
        genotype = Genotype.from_dict(row["genotype"])
        assert row["genotype_digest"] == genotype.digest
        assert row["parameterless_normal"] == genotype.parameterless_normal
        assert (row["space"], row["data"], row["variant"]) == ("S0", "digits", "base")
        assert 0 <= row["accuracy"] <= 1
        assert (row["evaluation"], row["images"], row["error"]) == ("held-out", 150, None)
        assert row["params"] > 0
        assert row["macs"] > 0
        assert row["search_seconds"] > 0
        assert row["device"] in ("cpu", "cuda")
        assert row["settings"]["train_images"] == 400
        assert row["settings"]["retrain"]["epochs"] == 2
    # Halves x epochs x steps, one draw; a random cell costs none.
    assert [row["passes"] for row in rows] == [2 * 2 * (200 // 64), 0] * 2
    assert len({row["genotype_digest"] for row in rows}) == 4


def test_the_accuracy_is_that_of_the_network_in_evaluation_mode(done, capfd):
    row = study_rows(done, capfd)[0]
    store = Store(done.store)
    retrained, evaluated = (store.open(f"{row['run']}/{s}") for s in ("retrain", "evaluate"))
    config = build_config(retrained.note["config"])
    data = load_data(config.data, seed=0, default_root=done.folder)
    with torch.no_grad():
        logits = load_network(retrained.path)(
            Normalizer(data.mean, data.std)(data.test.images_NCHW)
        )
    correct = int((logits.argmax(dim=1) == data.test.labels_N).sum())
    loss, temperature = calibrated_loss(logits, data.test.labels_N)
    assert json.loads(evaluated.read("evaluation.json")) == {
        "accuracy": row["accuracy"],
        "calibrated_loss": pytest.approx(loss, rel=1e-5),
        "temperature": pytest.approx(temperature, rel=1e-5),
        "images": 150,
        "evaluation": "held-out",
        "data_digest": data.digest,
    }
    assert row["accuracy"] == pytest.approx(correct / 150)
    assert row["calibrated_loss"] == pytest.approx(loss, rel=1e-5)


def test_an_evaluation_depends_on_images_and_network_alone():
    config = build_config({"data": {"root": "/a"}, "run": {"seed": 3}})
    part = BY_NAME["evaluate"].config(config)
    assert set(part) == {"data", "run"}
    assert part["run"] == {"seed": 3}
    assert "root" not in part["data"]


def test_what_a_stage_does_not_use_is_not_part_of_its_key(tmp_path):
    files = [tmp_path / name / "mine.toml" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text('name = "mine"\nnormal = ["skip_connect"]\nreduce = ["max_pool_3x3"]\n')
    one, other = (build_config({"search": {"space": str(file)}}) for file in files)
    assert BY_NAME["search"].config(one) == BY_NAME["search"].config(other)
    derive = {"candidates": 2, "rank_by": "supernet"}
    assert "retrain" not in BY_NAME["derive"].config(build_config({"derive": derive}))
    derive["rank_by"] = "training"
    assert "retrain" in BY_NAME["derive"].config(build_config({"derive": derive}))


class _RanError(Exception):
    """A stage was executed."""


def refuse_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stage: str, _context: object) -> Mapping[str, Any]:
        raise _RanError(stage)

    monkeypatch.setattr(runner_module, "run_stage", refuse)


def test_a_second_call_runs_nothing(done, capfd, monkeypatch):
    first = study_rows(done, capfd)
    refuse_stages(monkeypatch)
    assert study_rows(done, capfd) == first


def test_control_a_changed_setting_does_run(done, capfd, monkeypatch):
    path = done.folder / "small.toml"
    path.write_text(path.read_text().replace('"retrain.epochs" = 2', '"retrain.epochs" = 1'))
    refuse_stages(monkeypatch)
    assert done.run("study", str(path)) == 1
    assert "_RanError: retrain" in capfd.readouterr().err


def test_a_bug_in_one_trial_does_not_cost_the_others(place, capfd, monkeypatch):
    ran = []
    run_stage = runner_module.run_stage

    def break_first(stage, context):
        ran.append((stage, context.config.run.seed))
        if context.config.run.seed == 0:
            raise _RanError(stage)
        return run_stage(stage, context)

    monkeypatch.setattr(runner_module, "run_stage", break_first)
    path = write(place, SMALL.replace('["d2nas"]', '["random"]'))
    assert place.run("study", str(path), "--json") == 1
    captured = capfd.readouterr()
    broken, fine = json.loads(captured.out)
    assert "_RanError" in broken["error"]
    assert fine["error"] is None
    assert {stage for stage, seed in ran if seed == 1} == set(STUDY_STAGES)


def test_a_second_call_loads_no_torch(done):
    arguments = done.arguments("study", str(done.folder / "small.toml"))
    script = (
        "import sys; from pipeline.cli import run; "
        f"code = run({arguments!r}); "
        "print(sorted({'torch'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0
    assert process.stderr.splitlines()[-1] == "[]"
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    assert lines[0][:5] == ["data", "variant", "space", "method", "n"]
    assert [line[:5] for line in lines[1:4]] == [
        ["digits", "base", "S0", *method]
        for method in (("d2nas", "2"), ("d2nas, best of 2", "1"), ("random", "2"))
    ]
    assert lines[1][3] == "d2nas"
    assert lines[1][11] == "too few (2 random)"
    assert "+-" in lines[1][6]
    assert "held-out" in lines[4][0]


def test_a_plan_lists_the_trials_and_runs_nothing(place, capfd, monkeypatch):
    refuse_stages(monkeypatch)
    plan = place.json(capfd, "study", str(write(place)), "--plan")
    assert [(trial["method"], trial["seed"]) for trial in plan] == [
        ("d2nas", 0),
        ("random", 0),
        ("d2nas", 1),
        ("random", 1),
    ]
    assert not any(trial["finished"] for trial in plan)
    assert {trial["state"] for trial in plan} == {"search is next"}
    assert not (place.store / "versions").exists()


def test_the_plan_of_a_finished_study_says_so(done, capfd, monkeypatch):
    refuse_stages(monkeypatch)
    plan = done.json(capfd, "study", str(done.folder / "small.toml"), "--plan")
    assert all(trial["finished"] for trial in plan)
    shutil.rmtree(done.store / "runs" / plan[0]["run"] / "evaluate")
    plan = done.json(capfd, "study", str(done.folder / "small.toml"), "--plan")
    assert [trial["state"] for trial in plan] == ["evaluate is next", *["finished"] * 3]


def forge_evaluation(place: Place, **facts: Any) -> None:
    """Give the first trial's evaluation other facts, by a new id."""
    store = Store(place.store)
    version = next(iter(store.open(one.name) for one in store.references(stage="evaluate")))
    forge_version(place.store, version.reference, {}, facts=version.manifest.facts | facts)


def test_a_forged_evaluation_is_a_damaged_trial_and_no_bug(done, capfd, monkeypatch):
    forge_evaluation(done, calibrated_loss="low")
    assert done.run("study", str(done.folder / "small.toml")) == 4
    assert "calibrated_loss" in capfd.readouterr().err
    monkeypatch.setattr(runner_module, "checked", lambda version: version)  # control
    assert done.run("study", str(done.folder / "small.toml")) == 1


def test_a_forged_duration_is_none(done, capfd):
    store = Store(done.store)
    for one in store.references(stage="search"):
        rewrite_reference(
            reference_file(done.store, one.name), note=dict(one.note) | {"seconds": "x"}
        )
    rows = study_rows(done, capfd)
    assert {row["search_seconds"] for row in rows} == {None}
    assert all(row["error"] is None for row in rows)
    assert done.run("study", str(done.folder / "small.toml")) == 0


def test_a_variant_reuses_the_search_and_not_the_training(done, capfd):
    path = done.folder / "small.toml"
    path.write_text(
        path.read_text()
        + '[[variant]]\nname = "base"\n[[variant]]\nname = "long"\nmethods = ["random"]\n'
        + 'seeds = [1]\n[variant.settings]\n"retrain.epochs" = 1\n'
        + '[[variant]]\nname = "twice"\nmethods = ["random"]\nseeds = [1]\ntrainings = 2\n'
    )
    rows = study_rows(done, capfd)
    base = next(r for r in rows if (r["method"], r["seed"]) == ("random", 1))
    (long,) = (row for row in rows if row["variant"] == "long")
    assert long["genotype_digest"] == base["genotype_digest"]
    assert long["accuracy"] != base["accuracy"]
    assert long["search_seconds"] == base["search_seconds"]
    store = Store(done.store)
    assert {reference.stage for reference in store.references(long["run"])} == {
        "retrain",
        "evaluate",
    }
    # Two trainings of it: the first is the base's, the second starts from other weights.
    first, second = (row for row in rows if row["variant"] == "twice")
    assert [r["genotype_digest"] for r in (first, second)] == [base["genotype_digest"]] * 2
    weights = [
        store.open(f"{row['run']}/retrain").read("weights.safetensors")
        for row in (base, first, second)
    ]
    assert weights[0] == weights[1] != weights[2]
    assert len(store.references(second["run"])) == 2  # retrain and evaluate


VARYING = ("search_seconds", "retrain_seconds")


def test_a_stopped_study_continues_and_ends_with_the_very_same_rows(
    done: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], fork_server: ForkServer
) -> None:
    parts = Place(tmp_path)
    path = write(parts, SMALL.replace("[0, 1]", "[0]"))
    command = parts.arguments("study", str(path))
    code, talk = fork_server.run(command, signals=[(3, signal.SIGTERM)])
    assert code == 143, talk
    plan = parts.json(capfd, "study", str(path), "--plan")
    assert plan[0]["state"] == "search continues at step 3"
    code, talk = fork_server.run(command, signals=[(9, signal.SIGINT)])
    assert code == 130, talk
    capfd.readouterr()
    assert parts.run("study", str(path)) == 0
    error = capfd.readouterr().err
    assert "continues at step" in error
    assert "trial 1 of 2" in error
    whole, pieces = study_rows(done, capfd)[:2], study_rows(parts, capfd)
    for row in (*whole, *pieces):
        for key in VARYING:
            assert row.pop(key) > 0
    assert whole == pieces


FAILING = """
[[variant]]
name = "broken"
seeds = [0]
[variant.settings]
"retrain.lr" = 100.0
"retrain.weight_decay" = 1.0
"retrain.clip_norm" = 1e6
[[variant]]
name = "base"
seeds = [0]
[variant.settings]
"data.evaluation" = "test"
"""


def test_a_failing_trial_is_reported_and_the_others_run(done, capfd):
    path = write(done, SMALL + FAILING, "failing")
    assert done.run("study", str(path), "--json") == 5
    captured = capfd.readouterr()
    rows = json.loads(captured.out)
    assert [(row["variant"], row["method"]) for row in rows] == [
        (variant, method) for variant in ("broken", "base") for method in ("d2nas", "random")
    ]
    for row in rows[:2]:
        assert row["accuracy"] is None
        assert "is not finite" in row["error"]
        assert "\n" not in row["error"]
        assert row["genotype"] is not None  # what was found is still said
    for row in rows[2:]:
        assert row["error"] is None
        assert row["accuracy"] is not None
        assert row["images"] == 359  # this variant's images, not those of the trials before
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "2 of 4 trials have no result" in errors[0]
    assert captured.err.count("warning: broken, digits, S0") == 2
    assert done.run("study", str(path)) == 5
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert ["digits", "broken", "S0", "d2nas", "0", "1", ""] in [line[:7] for line in lines]


def test_what_retraining_cannot_do_is_said_before_any_search(place, capfd):
    path = write(place, SMALL + '"retrain.auxiliary" = true\n')
    assert place.run("study", str(path), "--json") == 2
    rows = json.loads(capfd.readouterr().out)
    assert all("auxiliary head does not fit" in row["error"] for row in rows)
    assert not (place.store / "versions").exists()


def test_a_trial_that_another_process_holds_is_tried_again_at_the_end(done, capfd, monkeypatch):
    path = done.folder / "small.toml"
    first, _, third, _ = study_rows(done, capfd)
    for row in (first, third):
        shutil.rmtree(done.store / "runs" / row["run"] / "evaluate")
    run_stage = runner_module.run_stage
    with ExitStack() as held:
        held.enter_context(Store(done.store).lock_run(first["run"]))

        def release(stage: str, context: Any) -> Any:
            held.close()
            return run_stage(stage, context)

        monkeypatch.setattr(runner_module, "run_stage", release)
        assert done.run("study", str(path)) == 0
    assert "is in use by" in capfd.readouterr().err
    assert [row["accuracy"] for row in study_rows(done, capfd)][::2] == [
        first["accuracy"],
        third["accuracy"],
    ]


def test_a_trial_that_stays_busy_is_reported_with_code_8_and_the_rest_is_done(done, capfd):
    path = done.folder / "small.toml"
    first, _, third, _ = study_rows(done, capfd)
    for row in (first, third):
        shutil.rmtree(done.store / "runs" / row["run"] / "evaluate")
    with Store(done.store).lock_run(first["run"]):
        assert done.run("study", str(path), "--json") == 8
    rows = json.loads(capfd.readouterr().out)
    assert "is in use by" in rows[0]["error"]
    assert rows[0]["accuracy"] is None
    assert [row["error"] for row in rows[1:]] == [None] * 3
    assert all(row["error"] is None for row in study_rows(done, capfd))


def test_a_damaged_version_is_reported_and_fresh_makes_it_again(done, capfd):
    path = done.folder / "small.toml"
    before = study_rows(done, capfd)
    evaluated = Store(done.store).open(f"{before[1]['run']}/evaluate").path / "evaluation.json"
    evaluated.write_bytes(evaluated.read_bytes()[:-1])
    assert done.run("study", str(path), "--json") == 4
    captured = capfd.readouterr()
    rows = json.loads(captured.out)
    assert [row["error"] is None for row in rows] == [True, False, True, True]
    assert "evaluation.json" in rows[1]["error"]
    assert "--fresh" in captured.err
    half = write(done, SMALL.replace("[0, 1]", "[0]"), "half")
    assert done.run("study", str(half), "--fresh") == 0
    after = study_rows(done, capfd)
    assert [row["accuracy"] for row in after] == [row["accuracy"] for row in before]


class _StopError(D2NasError):
    """Ends a search from outside."""


def test_the_time_of_an_interrupted_search_is_the_sum_of_its_parts(place, monkeypatch):
    ticks = iter(range(10_000))
    trial = read_study(str(write(place))).trials[0]
    store, stop = Store(place.store), StopFlag()
    monkeypatch.setattr(runner_module, "CHECKPOINT_SECONDS", 0.0)

    def search(failing_step: int | None) -> float:
        runner = Runner(store, Console(), stop, clock=lambda: float(next(ticks)))
        advance = runner_module._StageHooks.advance

        def failing(hooks: Any, done: int, row: Any) -> None:
            advance(hooks, done, row)
            if done == failing_step:
                raise _StopError("stopped")

        with monkeypatch.context() as patch:
            patch.setattr(runner_module._StageHooks, "advance", failing)
            result = runner.run(trial.run, trial.config, STUDY_STAGES[:1], Reuse.EVERYTHING)
        return result.versions["search"].note["seconds"]

    with pytest.raises(_StopError):
        search(failing_step=4)
    saved = store.latest(trial.run, "search-state")
    assert saved.manifest.facts["step"] == 3
    before = next(ticks)
    total = search(failing_step=None)
    second_part = next(ticks) - before
    assert saved.note["seconds"] > 0
    # The second part's ticks, less those before its clock starts and after its commit.
    assert saved.note["seconds"] < total < saved.note["seconds"] + second_part
    assert total - saved.note["seconds"] > second_part - 8


GIVEN = """
genotypes = ["DARTS_V2", "Mine.txt"]
seeds = [0]
[settings]
"data.train_images" = 400
"retrain.epochs" = 1
"retrain.num_cells" = 2
"retrain.init_channels" = 4
"""


def test_a_study_of_given_genotypes_searches_nothing_and_finishes(place, capfd, monkeypatch):
    ran = []
    real = runner_module.run_stage
    monkeypatch.setattr(
        runner_module, "run_stage", lambda stage, context: ran.append(stage) or real(stage, context)
    )
    (place.folder / "Mine.txt").write_text(printed(Genotype.published("DARTS_V1")))
    path = str(write(place, GIVEN, "cells"))
    rows = place.json(capfd, "study", path)
    found = [(row["method"], row["genotype_name"], row["error"]) for row in rows]
    assert found == [
        ("given", "DARTS_V2", None),
        ("given", "Mine", None),
        ("random", None, None),
    ]
    assert [row["genotype_digest"] for row in rows[:2]] == [
        Genotype.published(name).digest for name in ("DARTS_V2", "DARTS_V1")
    ]
    assert [row["passes"] for row in rows] == [None, None, 0]
    assert ran.count("search") == 1  # of the random cell
    ran.clear()
    assert place.run("study", path) == 0
    assert ran == []
    shown = capfd.readouterr().out
    assert [line.split("\t")[3] for line in shown.splitlines()[1:4]] == [
        "given DARTS_V2",
        "given Mine",
        "random",
    ]
    assert "given: searched" not in shown
    assert place.run("study", path, "--plan") == 0
    plan = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert plan[1][3:] == ["given DARTS_V2", "0", "finished", "cells-base-given-darts-v2-digits-0"]
    # The cells decide, not how they are given.
    text = printed(Genotype.published("DARTS_V1"), start="Mine = ")
    again = GIVEN.replace('"Mine.txt"', json.dumps(text))
    assert place.json(capfd, "study", str(write(place, again, "cells"))) == rows
    assert ran == []


def test_a_row_without_a_result_and_without_a_failure_is_no_success(done, capfd, monkeypatch):
    monkeypatch.setattr(StudyRun, "_finished", lambda _self, _trial: {})
    monkeypatch.setattr(StudyRun, "_attempt", lambda _self, _trial, _reuse: True)
    assert done.run("study", str(write(done))) == 1
    assert "not finished, yet no stage failed" in capfd.readouterr().err


def test_a_scale_runs_the_rows_on_the_digits_and_says_so_everywhere(place, capfd):
    copied = '[[copied]]\nmethod = "X"\nerror = "2.08"\nsource = "a paper"\n'
    axes = 'methods = ["d2nas"]\nspaces = ["S1"]\ndata = ["svhn"]\nseeds = [7, 8]\n'
    path = str(write(place, axes + copied, "scaled"))
    threads = torch.get_num_threads()
    rows = place.json(capfd, "study", path, "--scale", "smoke")
    assert torch.get_num_threads() == threads
    found = [(row["method"], row["seed"], row["error"]) for row in rows]
    assert found == [("d2nas", 0, None), ("random", 0, None), ("random", 1, None)]
    for row in rows:
        assert (row["data"], row["stands_for"]) == ("digits", "svhn")
        assert (row["scale"], row["reduced"], row["evaluation"]) == ("smoke", True, "held-out")
    assert place.run("study", path, "--scale", "smoke") == 0
    shown = capfd.readouterr()
    assert shown.err.startswith("REDUCED PROTOCOL (--scale smoke)")
    assert "# REDUCED PROTOCOL (--scale smoke): " in shown.out
    assert "digits for svhn\tbase\tS1\td2nas" in shown.out
    assert "2.08" not in shown.out  # no full figure beside reduced ones
    assert place.run("study", path, "--scale", "smoke", "--plan") == 0
    assert "# REDUCED PROTOCOL" in capfd.readouterr().out
    assert place.run("study", path, "--scale", "tiny") == 2
    assert "unknown scale 'tiny'" in capfd.readouterr().err


def test_control_a_whole_study_is_not_called_reduced_and_shows_what_it_copies(done, capfd):
    rows = study_rows(done, capfd)
    assert {(row["scale"], row["reduced"], row["stands_for"]) for row in rows} == {
        ("paper", False, None)
    }
    path = done.folder / "small.toml"
    copied = '[[copied]]\nmethod = "X"\nspace = "its own"\nerror = "2.08"\nsource = "a paper"\n'
    path.write_text(path.read_text() + copied)
    assert done.run("study", str(path)) == 0
    shown = capfd.readouterr().out
    assert "digits\tits own\tX\t2.08\t\t\t\t\ta paper\n" in shown
    assert "REDUCED" not in shown


def test_table_4_is_the_measurement_of_memory(place, capfd, monkeypatch):
    called = []
    monkeypatch.setattr(study_commands, "show_memory", lambda *given, **_: called.append(given))
    assert place.run("study", "table-4", "--plan") == 0
    assert "bench memory" in capfd.readouterr().err
    assert called == []
    assert place.run("study", "table-4", "--scale", "smoke", "--json") == 0
    assert called == [("auto",)]

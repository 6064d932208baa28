"""Studies: the grid that a file means, what its numbers say together, and running it to the end."""

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
from toy import Place

from d2nas import Genotype, load_network
from d2nas.config import METHOD_NAMES, build_config
from d2nas.data import Normalizer, load_data
from d2nas.errors import ConfigError, D2NasError
from pipeline import runner as runner_module
from pipeline.console import Console
from pipeline.runner import Reuse, Runner, StopFlag
from pipeline.stages import STUDY_STAGES, stage_config
from pipeline.store import Store, safe_run_name
from pipeline.studies import study_names
from pipeline.study import Study, read_study, run_name
from pipeline.study_report import (
    correlation_line,
    percentile,
    rank_correlations,
    settings_line,
    summarise,
    table_rows,
)

SMALL = """
methods = ["d2nas"]
spaces = ["S0"]
seeds = [0, 1]

[settings]
"data.evaluation" = "held-out"
"data.held_out_images" = 150
"data.train_images" = 400
"data.split_seed" = 0
"search.epochs" = 2
"search.batch_size" = 64
"retrain.epochs" = 2
"retrain.batch_size" = 64
"""


def write(place: Place, text: str = SMALL, name: str = "small") -> Path:
    """Write a study that starts from the toy preset."""
    path = place.folder / f"{name}.toml"
    path.write_text(f"preset = {json.dumps(str(place.preset))}\n{text}")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def read(place: Place, text: str) -> Study:
    return read_study(str(write(place, text)))


def cells(study: Study) -> list[tuple[Any, ...]]:
    return [(c.variant, c.seed, c.data, c.space, c.method) for c in study.cells]


# --- the grid -----------------------------------------------------------------------------------


def test_a_file_without_variants_is_one_block_with_random_beside(place):
    study = read(place, 'methods = ["d2nas"]\nspaces = ["S0", "S3"]\nseeds = [4, 2]\n')
    assert study.name == "small"
    assert cells(study) == [
        ("base", seed, "digits", space, method)
        for seed in (4, 2)
        for method in ("d2nas", "random")
        for space in ("S0", "S3")
    ]


def test_random_is_not_added_where_the_file_names_it(place):
    study = read(place, 'methods = ["random", "d2nas"]\nspaces = ["S0"]\nseeds = [0]\n')
    assert [cell.method for cell in study.cells] == ["random", "d2nas"]


TWO = """
spaces = ["S0"]
seeds = [0]
[[variant]]
name = "one"
methods = ["d2nas"]
[[variant]]
name = "two"
methods = ["random"]
seeds = [0, 1, 2]
[variant.settings]
"""


@pytest.mark.parametrize(
    ("setting", "added"),
    [
        ("", False),
        ('"search.epochs" = 1', False),
        ('"retrain.device" = "cpu"', False),
        ('"retrain.epochs" = 1', True),
        ('"data.train_images" = 500', True),
    ],
)
def test_random_cells_serve_another_variant_with_the_same_data_and_retraining(
    place, setting, added
):
    study = read(place, TWO + setting)
    random = [cell for cell in study.cells if cell.method == "random"]
    expected = [("two", 0), ("two", 1), ("two", 2)]
    assert [(c.variant, c.seed) for c in random] == ([("one", 0)] if added else []) + expected


def test_random_of_another_space_or_data_set_does_not_serve(place):
    for line in ('spaces = ["S3"]', 'data = ["fashion-mnist"]'):
        text = TWO.replace("seeds = [0, 1, 2]", f"seeds = [0]\n{line}")
        assert [c.variant for c in read(place, text).cells if c.method == "random"] == [
            "one",
            "two",
        ]


def test_two_variants_without_random_share_the_added_cells(place):
    study = read(place, TWO.replace('"random"', '"d2nas"') + '"search.epochs" = 1')
    assert [c.variant for c in study.cells if c.method == "random"] == ["one"]


def test_variants_lie_over_the_top_and_the_top_over_the_preset(place):
    study = read(
        place,
        """
        methods = ["random"]
        spaces = ["S0"]
        seeds = [0]
        data = ["digits"]
        [settings]
        "retrain.epochs" = 5
        retrain.batch_size = 32
        [[variant]]
        name = "a"
        [[variant]]
        name = "b"
        seeds = [7]
        spaces = ["S2"]
        [variant.settings]
        "retrain.epochs" = 6
        """,
    )
    first, second = (cell.config for cell in study.cells)
    assert (first.retrain.epochs, second.retrain.epochs) == (5, 6)
    assert first.retrain.batch_size == second.retrain.batch_size == 32
    assert first.retrain.init_channels == 8  # the preset's
    assert (first.run.seed, second.run.seed) == (0, 7)
    assert (first.search.space, second.search.space) == ("S0", "S2")
    assert {cell.config.search.method for cell in study.cells} == {"random"}


def test_the_data_set_is_the_presets_unless_the_file_names_some(place):
    text = 'methods = ["random"]\nspaces = ["S0"]\nseeds = [0]\n'
    assert [cell.config.data.name for cell in read(place, text).cells] == ["digits"]
    study = read(place, text + 'data = ["cifar10", "digits"]\n')
    assert [cell.config.data.name for cell in study.cells] == ["cifar10", "digits"]


def test_the_data_root_is_every_cells(place):
    study = read_study(str(write(place)), data_root="/somewhere")
    assert {cell.config.data.root for cell in study.cells} == {"/somewhere"}


def test_a_search_that_variants_share_is_held_once(place):
    text = TWO.replace("seeds = [0, 1, 2]", "seeds = [0]").replace('"random"', '"d2nas"')
    shared = read(place, text + '"retrain.epochs" = 1')
    runs = {(c.variant, c.method): (c.run, c.search_run) for c in shared.cells}
    assert runs["two", "d2nas"] == ("small-two-d2nas-s0-digits-0", "small-one-d2nas-s0-digits-0")
    assert runs["one", "d2nas"][0] == runs["one", "d2nas"][1]
    own = read(place, text + '"search.epochs" = 1')
    assert all(cell.run == cell.search_run for cell in own.cells)


def test_run_names_are_names_the_store_takes(place):
    names = [cell.run for cell in read(place, SMALL).cells]
    assert len(set(names)) == len(names)
    long = [run_name("A study of_everything" * 4, "base", str(seed)) for seed in (0, 1)]
    assert len(set(long)) == 2
    for name in (*names, *long, run_name("x", "spaces/my own.toml")):
        assert safe_run_name(name) == name


GOOD = {"methods": ["d2nas"], "spaces": ["S0"], "seeds": [0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('methods = ["gdsa"]', ["'gdsa'", "hint: did you mean gdas?"]),
        ('spaces = ["S9"]', ["'S9'"]),
        ('data = ["digit"]', ["'digit'", "hint: did you mean digits?"]),
        ("seeds = [0, 1, 0]", ["seeds", "0 is there twice", "hint: "]),
        ('methods = ["d2nas", "d2nas"]', ["'d2nas' is there twice"]),
        ("seeds = []", ["seeds"]),
        ('seeds = ["0"]', ["seeds.0", "hint: "]),
        ("seeds = [true]", ["seeds.0", "hint: "]),
        ("seeds = [-1]", ["run.seed=-1"]),
        ("sedes = [0]", ["'sedes'", "hint: did you mean seeds?"]),
        (
            '[settings]\n"retrain.epoch" = 1',
            ["retrain.epoch", "hint: did you mean retrain.epochs?"],
        ),
        ('[settings]\n"retrain.epochs" = "many"', ["retrain.epochs='many'"]),
        ("[settings]\nepochs = 1", ["'epochs'", 'hint: for example "retrain.epochs"']),
        ('[settings]\n"run.seed" = 1', ["run.seed is an axis", "hint: name it in seeds"]),
        (
            '[settings]\nsearch.method = "d2nas"',
            ["search.method is an axis", "hint: name it in methods"],
        ),
        ('[[variant]]\nname = "a"\n[[variant]]\nname = "a"', ["'a' is there twice"]),
        ('[[variant]]\nname = "A b"', ["variant.0.name", "hint: "]),
        ('[[variant]]\nsedes = [0]\nname = "a"', ["variant 1", "hint: did you mean seeds?"]),
        ("[[variant]]\nseeds = [0]", ["variant.0.name", "hint: "]),
        ("[variant]\nseeds = [0]", ["variant"]),
        ('preset = "toy"', ["'toy'"]),
        ("seeds = ", ["not valid TOML"]),
    ],
)
def test_a_faulty_file_is_one_line_with_a_hint(place, capfd, text, words):
    key = text.partition(" = ")[0]
    lines = [f"{name} = {json.dumps(value)}" for name, value in GOOD.items() if name != key]
    path = place.folder / "faulty.toml"
    path.write_text("\n".join([*lines, text]))
    assert place.run("study", str(path)) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in captured.err
    assert not place.store.exists()


def test_control_the_same_file_without_the_fault_is_read(tmp_path):
    path = tmp_path / "good.toml"
    path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in GOOD.items()))
    assert {cell.method for cell in read_study(str(path)).cells} == {"d2nas", "random"}


@pytest.mark.parametrize("axis", GOOD)
def test_a_missing_axis_is_named(tmp_path, axis):
    path = tmp_path / "missing.toml"
    path.write_text(
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in GOOD.items() if name != axis)
    )
    with pytest.raises(ConfigError, match=f"{axis} is missing"):
        read_study(str(path))


def test_every_method_of_the_configuration_can_be_a_cell(place):
    text = f'methods = {json.dumps(METHOD_NAMES)}\nspaces = ["S0"]\nseeds = [0]\n'
    study = read(place, text)
    assert [cell.config.search.method for cell in study.cells] == list(METHOD_NAMES)
    assert "random" in METHOD_NAMES


# --- what the numbers say together --------------------------------------------------------------


def row(method: str, accuracy: float | None, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A made row: what a report looks at."""
    shape = {"num_cells": 4, "init_channels": 8, "epochs": 3, "batch_size": 64}
    made = {
        "variant": "base",
        "method": method,
        "space": "S0",
        "data": "digits",
        "seed": seed,
        "accuracy": accuracy,
        "genotype_digest": f"{method}-{seed}",
        "params": 1000 + seed,
        "macs": 50_000,
        "parameterless_normal": seed,
        "passes": 20,
        "search_seconds": 1.5,
        "device": "cpu",
        "evaluation": "held-out",
        "images": 5000,
        "settings": {"search": shape, "retrain": shape, "train_images": 10_000},
        "setting": "a",
        "error": None if accuracy is not None else "broken",
    }
    return made | values


def test_means_spreads_and_percentiles_by_hand():
    rows = [
        row("d2nas", 0.5, 0),
        row("random", 0.25, 0),
        row("d2nas", 0.75, 1),
        row("random", 0.625, 1),
        row("d2nas", None, 2, params=None),
        row("random", 0.75, 2),
        row("random", 0.5, 3),
    ]
    d2nas, random = summarise(rows)
    assert (d2nas["method"], d2nas["n"], d2nas["failed"]) == ("d2nas", 2, 1)
    assert d2nas["error"] == 37.5
    assert d2nas["error_sd"] == pytest.approx(312.5**0.5)  # 12.5 off each, one degree
    assert d2nas["parameterless_normal"] == 0.5
    assert d2nas["params"] == 1000.5
    assert d2nas["search_seconds"] == 1.5
    # The mean 0.625 is above two of four and ties with one.
    assert d2nas["percentile"] == 62.5
    assert d2nas["num_random"] == 4
    assert (random["n"], random["failed"], random["percentile"]) == (4, 0, None)
    assert random["error"] == 46.875


def test_random_cells_count_only_where_data_space_and_setting_are_the_same():
    rows = [
        row("d2nas", 0.9),
        row("random", 0.8, variant="other"),
        row("random", 0.7, variant="long", setting="b"),
        row("random", 0.7, space="S1"),
        row("random", 0.7, data="cifar10"),
        row("random", None),
    ]
    line = summarise(rows)[0]
    assert (line["method"], line["percentile"], line["num_random"]) == ("d2nas", 100.0, 1)


def test_one_value_has_no_spread_and_none_has_no_mean():
    (one,) = summarise([row("d2nas", 0.9)])
    assert one["error"] == pytest.approx(10)
    assert (one["error_sd"], one["percentile"]) == (None, None)
    (none,) = summarise([row("d2nas", None)])
    assert (none["n"], none["failed"], none["error"], none["params"]) == (0, 1, None, None)
    assert table_rows([none])[0][6] == ""


def test_an_unknown_search_time_is_not_averaged_away():
    (line,) = summarise([row("d2nas", 0.9), row("d2nas", 0.9, 1, search_seconds=None)])
    assert line["search_seconds"] is None


def test_all_methods_of_a_space_stand_together():
    rows = [
        row("d2nas", 0.9),
        row("d2nas", 0.9, space="S1"),
        row("random", 0.9),
        row("random", 0.9, space="S1"),
    ]
    order = [(line["space"], line["method"]) for line in summarise(rows)]
    assert order == [("S0", "d2nas"), ("S0", "random"), ("S1", "d2nas"), ("S1", "random")]


def test_percentiles_by_hand():
    assert percentile(0.5, [0.1, 0.5, 0.5, 0.9]) == 50.0
    assert percentile(0.05, [0.1, 0.5]) == 0.0
    assert percentile(0.95, [0.1, 0.5]) == 100.0
    assert percentile(0.5, []) is None


def both(ones: list[float], others: list[float], **values: Any) -> list[dict[str, Any]]:
    rows = [row("random", value, seed) for seed, value in enumerate(ones)]
    return rows + [
        row("random", value, seed, variant="long") | values for seed, value in enumerate(others)
    ]


ONES = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([1, 2, 3, 4, 90], 1.0),
        ([5, 4, 3, 2, 1], -1.0),
        ([2, 1, 3, 4, 5], 0.9),  # 1 - 6 * (1 + 1) / (5 * 24)
        ([2, 4, 1, 5, 3], 0.3),  # 1 - 6 * (1 + 4 + 4 + 1 + 4) / (5 * 24)
        ([7, 7, 7, 7, 7], None),
    ],
)
def test_rank_correlation_by_hand(others, expected):
    (found,) = rank_correlations(both(ONES, [value / 100 for value in others]))
    assert (found["variants"], found["data"], found["n"]) == (("base", "long"), "digits", 5)
    if expected is None:
        assert found["spearman"] is None
        assert "undefined" in correlation_line(found)
    else:
        assert found["spearman"] == pytest.approx(expected)
        assert f"{expected:.2f} over 5 genotypes" in correlation_line(found)


def test_rank_correlation_needs_five_equal_genotypes_of_equal_cells():
    assert rank_correlations(both(ONES[:4], ONES[:4])) == []
    assert rank_correlations(both(ONES, ONES, genotype_digest="another")) == []
    assert rank_correlations(both(ONES, ONES, space="S1")) == []
    assert rank_correlations(both(ONES, ONES, method="d2nas")) == []
    assert rank_correlations(both(ONES, ONES, data="cifar10")) == []
    failed = both(ONES, ONES)
    failed[7] |= {"accuracy": None, "error": "broken"}
    assert rank_correlations(failed) == []


def test_the_line_under_a_table_names_what_was_trained_and_on_what_it_was_measured():
    line = settings_line(row("d2nas", 0.9))
    for words in (
        "4 cells x 8 channels, 3 epochs, batch 64",
        "10,000 training images",
        "5,000 held-out images, not the test images",
    ):
        assert words in line
    line = settings_line(row("d2nas", 0.9, evaluation="test", images=10_000))
    assert "10,000 test images" in line
    assert "held-out" not in line


# --- running ------------------------------------------------------------------------------------


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
    assert json.loads(evaluated.read("evaluation.json")) == {
        "accuracy": row["accuracy"],
        "images": 150,
        "evaluation": "held-out",
        "data_digest": data.digest,
    }
    assert row["accuracy"] == pytest.approx(correct / 150)


def test_an_evaluation_depends_on_images_and_network_alone():
    config = build_config({"data": {"root": "/a"}, "run": {"seed": 3}})
    part = stage_config("evaluate", config)
    assert set(part) == {"data", "run"}
    assert part["run"] == {"seed": 3}
    assert "root" not in part["data"]


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


def test_a_second_call_loads_neither_torch_nor_scikit_learn(done):
    arguments = done.arguments("study", str(done.folder / "small.toml"))
    script = (
        "import sys; from pipeline.cli import run; "
        f"code = run({arguments!r}); "
        "print(sorted({'torch', 'sklearn'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0
    assert process.stderr.splitlines()[-1] == "[]"
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    assert lines[0][:5] == ["data", "variant", "space", "method", "n"]
    assert [line[:5] for line in lines[1:3]] == [
        ["digits", "base", "S0", method, "2"] for method in ("d2nas", "random")
    ]
    assert "of 2 random" in lines[1][10]
    assert "+-" in lines[1][6]
    assert "held-out" in lines[3][0]


def test_a_plan_lists_the_cells_and_runs_nothing(place, capfd, monkeypatch):
    refuse_stages(monkeypatch)
    plan = place.json(capfd, "study", str(write(place)), "--plan")
    assert [(cell["method"], cell["seed"]) for cell in plan] == [
        ("d2nas", 0),
        ("random", 0),
        ("d2nas", 1),
        ("random", 1),
    ]
    assert not any(cell["finished"] for cell in plan)
    assert {cell["state"] for cell in plan} == {"search is next"}
    assert not (place.store / "versions").exists()


def test_the_plan_of_a_finished_study_says_so(done, capfd, monkeypatch):
    refuse_stages(monkeypatch)
    plan = done.json(capfd, "study", str(done.folder / "small.toml"), "--plan")
    assert all(cell["finished"] for cell in plan)
    shutil.rmtree(done.store / "runs" / plan[0]["run"] / "evaluate")
    plan = done.json(capfd, "study", str(done.folder / "small.toml"), "--plan")
    assert [cell["state"] for cell in plan] == ["evaluate is next", *["finished"] * 3]


def test_a_variant_reuses_the_search_and_not_the_training(done, capfd):
    path = done.folder / "small.toml"
    path.write_text(
        path.read_text()
        + '[[variant]]\nname = "base"\n[[variant]]\nname = "long"\nmethods = ["random"]\n'
        + 'seeds = [1]\n[variant.settings]\n"retrain.epochs" = 1\n'
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


def stopped(place: Place, path: Path, stop_after: int, number: signal.Signals) -> int:
    """Run the study in a process of its own that gets a signal after some steps."""
    script = (
        "import os, sys, torch; torch.set_num_threads(1)\n"
        "from pipeline import runner; from pipeline.cli import run\n"
        "advance = runner._StageHooks.advance; count = 0\n"
        "def counted(hooks, done, row):\n"
        "    global count; advance(hooks, done, row); count += 1\n"
        f"    if count == {stop_after}: os.kill(os.getpid(), {int(number)})\n"
        "runner._StageHooks.advance = counted\n"
        f"sys.exit(run({place.arguments('study', str(path))!r}))"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode


VARYING = ("search_seconds", "retrain_seconds")


def test_a_stopped_study_continues_and_ends_with_the_very_same_rows(
    done: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = Place(tmp_path)
    path = write(parts, SMALL.replace("[0, 1]", "[0]"))
    assert stopped(parts, path, 3, signal.SIGTERM) == 143
    plan = parts.json(capfd, "study", str(path), "--plan")
    assert plan[0]["state"] == "search continues at step 3"
    assert stopped(parts, path, 9, signal.SIGINT) == 130
    capfd.readouterr()
    assert parts.run("study", str(path)) == 0
    error = capfd.readouterr().err
    assert "continues at step" in error
    assert "cell 1 of 2" in error
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
"retrain.lr" = 1e30
[[variant]]
name = "base"
seeds = [0]
[variant.settings]
"data.evaluation" = "test"
"""


def test_a_failing_cell_is_reported_and_the_others_run(place, capfd):
    path = write(place, SMALL + FAILING)
    assert place.run("study", str(path), "--json") == 5
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
        assert row["images"] == 359  # this variant's images, not those of the cells before
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "2 of 4 cells have no result" in errors[0]
    assert captured.err.count("warning: broken, digits, S0") == 2
    assert place.run("study", str(path)) == 5
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert ["digits", "broken", "S0", "d2nas", "0", "1", ""] in [line[:7] for line in lines]


def test_what_retraining_cannot_do_is_said_before_any_search(place, capfd):
    path = write(place, SMALL + '"retrain.auxiliary" = true\n')
    assert place.run("study", str(path), "--json") == 2
    rows = json.loads(capfd.readouterr().out)
    assert all("auxiliary head does not fit" in row["error"] for row in rows)
    assert not (place.store / "versions").exists()


def test_a_cell_that_another_process_holds_is_tried_again_at_the_end(done, capfd, monkeypatch):
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


def test_a_cell_that_stays_busy_is_reported_with_code_8_and_the_rest_is_done(done, capfd):
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
    assert done.run("study", str(path), "--fresh") == 0
    after = study_rows(done, capfd)
    assert [row["accuracy"] for row in after] == [row["accuracy"] for row in before]


class _StopError(D2NasError):
    """Ends a search from outside."""


def test_the_time_of_an_interrupted_search_is_the_sum_of_its_parts(place, monkeypatch):
    ticks = iter(range(10_000))
    cell = read_study(str(write(place))).cells[0]
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
            result = runner.run(cell.run, cell.config, STUDY_STAGES[:1], Reuse.EVERYTHING)
        return result.versions["search"].note["seconds"]

    with pytest.raises(_StopError):
        search(failing_step=4)
    saved = store.latest(cell.run, "search-state")
    assert saved.manifest.facts["step"] == 3
    before = next(ticks)
    total = search(failing_step=None)
    second_part = next(ticks) - before
    assert saved.note["seconds"] > 0
    # The second part's ticks, less those before its clock starts and after its commit.
    assert saved.note["seconds"] < total < saved.note["seconds"] + second_part
    assert total - saved.note["seconds"] > second_part - 6


def test_the_studies_that_come_along_are_whole() -> None:
    """Every one can be read, has random cells, and the tables' sizes are R-DARTS's and DARTS's."""
    assert study_names() == ["table-1", "table-2", "table-3", "table-5"]
    for name in study_names():
        study = read_study(name)
        assert "random" in {cell.method for cell in study.cells}
        assert len({cell.run for cell in study.cells}) == len(study.cells)
    sizes = {
        cell.data: (cell.config.retrain.num_cells, cell.config.retrain.init_channels)
        for cell in read_study("table-5").cells
    }
    assert sizes == {"cifar10": (20, 36), "cifar100": (8, 16), "svhn": (8, 16)}
    with pytest.raises(ConfigError, match="unknown study"):
        read_study("table-4")


def test_a_selection_step_is_for_searches_and_leaves_random_cells_alone(place: Place) -> None:
    text = (
        'methods = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n[settings]\n"derive.candidates" = 4\n'
    )
    found = {cell.method: cell.config.derive.candidates for cell in read(place, text).cells}
    assert found == {"d2nas": 4, "random": 1}

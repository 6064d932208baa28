"""Keys without effect are told; what is said to change nothing changes nothing, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_classes, write_fashion_mnist, write_image
from rivals import make_cheap
from searches import config_of, search_by
from toy import Place

from d2nas.config import TRAINING_KEYS, Config, SearchConfig, build_config, override_key
from d2nas.config import effects as config_effects
from d2nas.config.effects import (
    UNREAD,
    _unread_by_method,
    effect_line,
    preset_line,
    without_effect,
)
from d2nas.config.registry import data_sets, search_methods
from d2nas.data.images import load_data
from d2nas.data.sources import content_digest
from d2nas.errors import ConfigError
from d2nas.spaces import SearchSpace
from d2nas.train.search import search_step
from pipeline.commands.configuration import configure
from pipeline.presets import values_of_presets
from pipeline.stages import stages_of_run

SEARCH_VALUES = {
    "search.draws": 3,
    "search.branch_length": 2,
    "search.branch_head": "separable",
    "search.edge_gate_scale": 2,
    "search.clip": "branch",
    "search.estimator": "mixed",
    "search.reward": "loss",
    "search.class_weights": "balanced",
    "search.recipe": "paper",
    "search.weight_optimizer": "rmsprop",
    "search.temperature_start": 5.0,
    "search.temperature_end": 2.0,
    "search.training_epochs": 1,
    "search.population": 2,
    "search.sample_size": 1,
    "search.drop_path": 0.5,
    "search.warmup_epochs": 2,
    "search.arch_lr": 0.5,
    "search.arch_beta1": 0.1,
    "search.arch_beta2": 0.9,
    "search.arch_weight_decay": 0.5,
}
"""Other values than ``searches`` has."""

# No noise among the candidates: search.draws numbers the random numbers, as a seed would.
PLAIN = SearchSpace(
    "plain",
    (("max_pool_3x3", "dil_conv_3x3"), ("skip_connect",)) * 7,
    (("max_pool_3x3", "skip_connect"), ("skip_connect",)) * 7,
)


def settings_of(keys: Any) -> list[str]:
    return [f"{key}={SEARCH_VALUES[key]}" for key in keys]


def state_of(method: str, *settings: str) -> dict[str, torch.Tensor]:
    """Logits and weights after the first step of the second epoch of two."""
    search = search_by(method, *settings, space=PLAIN)
    search_step(search, search.steps_per_epoch)
    return {**search.logits.state_dict(), **search.supernet.state_dict()}


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_every_choice_is_in_the_table() -> None:
    keys = {
        f"{section}.{field}" for section, fields in Config().to_dict().items() for field in fields
    }
    assert set(UNREAD) <= keys
    by_data_set = [data_sets.find(name).unread for name in data_sets.names()]
    by_method = [_unread_by_method(name) for name in search_methods.names()]
    by_value = [
        keys for values in UNREAD.values() if not callable(values) for keys in values.values()
    ]
    for unread in (*by_data_set, *by_method, *by_value):
        assert set(unread) <= keys


@pytest.mark.parametrize(
    "method",
    [name for name in search_methods.names() if name not in ("d2nas", "entangled", "random")],
)
def test_what_a_method_does_not_read_changes_no_bit_of_its_search(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cheap(monkeypatch)
    unread = list(_unread_by_method(method))
    if method in (
        "gdas",
        "fairnas",
        "few-shot",
        "p-darts",
        "rsws",
        "spos",
        "sdarts-rs",
        "sdarts-adv",
        "snas",
        "zarts",
    ):
        unread.remove("search.draws")  # numbers random draws; their count is looked at below
    assert is_equal(state_of(method), state_of(method, *settings_of(unread)))


CONTROLLED_ELSEWHERE = {
    *(f"search.{key}" for key in TRAINING_KEYS),  # methods/test_trained_cells.py
    "search.class_weights",  # train/test_class_weights.py: these images are of balanced classes
}


@pytest.mark.parametrize("key", [key for key in SEARCH_VALUES if key not in CONTROLLED_ELSEWHERE])
def test_control_it_changes_the_search_of_the_method_that_reads_it(key: str) -> None:
    # In the second epoch of two the temperature is the end's, of three half of the start's too.
    bases = {
        "search.temperature_start": ["epochs=3"],
        "search.warmup_epochs": ["epochs=3"],
        "search.reward": ["estimator=score"],
        "search.recipe": ["epochs=7"],  # of which two are of warm-up, or none
    }
    base = [f"search.{setting}" for setting in bases.get(key, [])]
    method = "darts" if key == "search.drop_path" else "d2nas"
    one, other = state_of(method, *base), state_of(method, *base, *settings_of([key]))
    assert not is_equal(one, other)


def test_gdas_draws_one_network_however_many_are_asked_for() -> None:
    one, other = search_by("gdas"), search_by("gdas", "search.draws=9")
    assert one.method.passes == other.method.passes == (1, 1)
    assert search_by("rsws", "search.draws=9").method.passes == (0, 1)
    assert search_by("d2nas", "search.draws=9").method.passes == (9, 9)


def test_a_random_cell_depends_on_nothing_of_the_search_but_its_space() -> None:
    values = {"num_cells": 5, "init_channels": 8, "epochs": 3, "batch_size": 4, "weight_lr": 0.3}
    other = [f"search.{field}={value}" for field, value in values.items()]
    genotype = search_by("random").method.derive()
    assert genotype == search_by("random", *other).method.derive()
    assert genotype != search_by("random", space="S2").method.derive()
    assert set(_unread_by_method("random")) == {
        f"search.{field}"
        for field in SearchConfig.model_fields
        if field not in ("method", "space", "device", "max_latency_ms", "max_macs", "max_params")
    }


def test_what_a_data_set_does_not_read_leaves_its_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def data_of(*settings: str) -> Any:
        config = build_config({"data": {"name": "fashion-mnist"}}, settings).data
        return load_data(config, seed=0, default_root=tmp_path)

    write_fashion_mnist(tmp_path, monkeypatch)
    sets = [f"data.{text}" for text in ("test_fraction=0.7", "stream=always", "workers=3")]
    one, other = data_of(), data_of(*sets, "data.held_out_images=3", "data.color_jitter=0.0")
    for part in ("weight_half", "arch_half", "test"):
        assert torch.equal(getattr(one, part).images_NCHW, getattr(other, part).images_NCHW)
    config = build_config({}, ["data.root=nowhere"]).data
    plain = content_digest(build_config({}).data, default_root=tmp_path)
    assert content_digest(config, default_root=tmp_path) == plain
    changed = data_of("data.evaluation=held-out", "data.held_out_images=10")
    assert len(changed.test) == 10  # control: with its choice the key is read


def test_a_fit_that_pads_keeps_the_whole_picture(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 6, "b": 6})
    write_image(tmp_path / "a" / "long.png", size=(60, 20))

    def images_of(*settings: str) -> torch.Tensor:
        values = {"data": {"name": "folder", "root": str(tmp_path), "image_size": 16}}
        data = load_data(build_config(values, settings).data, seed=0, default_root=tmp_path)
        return data.train.images_NCHW

    pad, crop = "data.fit=pad", "data.crop_fraction=0.5"
    assert torch.equal(images_of(pad), images_of(pad, crop))
    assert not torch.equal(images_of(), images_of(crop))


def test_a_given_genotype_leaves_the_search_out() -> None:
    config = build_config({"derive": {"genotype": "DARTS_V2"}})
    assert "search" not in stages_of_run(config)
    assert without_effect(config, ["search.epochs", "retrain.epochs"]) == {
        "derive.genotype=DARTS_V2": ["search.epochs"]
    }
    assert without_effect(config_of("d2nas"), ["search.epochs"]) == {}


def test_a_key_is_told_once_with_what_makes_it_so() -> None:
    config = build_config({"search": {"method": "darts"}, "data": {"root": "x"}})
    keys = ["search.draws", "data.root", "derive.rank_epochs", "run.seed", "search.draws"]
    assert effect_line(without_effect(config, keys)) == (
        "has no effect: data.root (data.name=digits); search.draws (search.method=darts); "
        "derive.rank_epochs (derive.candidates=1)"
    )
    assert effect_line(without_effect(config, ["run.seed"])) is None


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    lines = capfd.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("has no effect: ")]


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is planned, searched or run."""
    data = {"image_size": 8, "image_size_from": "the data set's", "pictures": None, "notes": []}
    plan = {"run": "toy", "data": data, "stages": [], "executes": [], "seconds": 0.0}
    monkeypatch.setattr("pipeline.preflight.plan.make_plan", lambda *_: plan)
    monkeypatch.setattr("pipeline.preflight.plan.plan_rows", lambda _: [])
    monkeypatch.setattr("pipeline.commands.run.run_all", lambda *_, **__: None)
    for name in ("with_runner", "show_stage"):
        monkeypatch.setattr(f"pipeline.commands.execution.{name}", lambda *_, **__: None)


@pytest.mark.parametrize("command", [["run"], ["run", "--plan"], ["search"]])
def test_what_the_user_set_in_vain_is_told_and_nothing_else(
    capfd: pytest.CaptureFixture[str], place: Place, stubs: None, command: list[str]
) -> None:
    mine = place.folder / "mine.toml"
    mine.write_text('preset = "quickstart"\n[data]\nworkers = 2\n')
    given = ["--data-root", "x", "--set", "search.method=gdas", "--set", "search.draws=3"]
    assert place.run(command[0], str(mine), *command[1:], *given) == 0
    reasons = "data.workers, data.root (data.name=digits); search.draws (search.method=gdas)"
    assert told(capfd) == [f"has no effect: {reasons}"]
    # What a preset sets in vain (draws, for gdas) is not the user's.
    assert place.run(command[0], "quickstart", *command[1:], "--set", "search.method=gdas") == 0
    assert told(capfd) == []


def test_a_plan_has_it_in_its_data(
    capfd: pytest.CaptureFixture[str], place: Place, stubs: None
) -> None:
    plan = place.json(capfd, "run", str(place.preset), "--plan", "--data-root", "x")
    assert plan["without_effect"] == {"data.name=digits": ["data.root"]}


@pytest.mark.parametrize(("stream", "lines"), [("auto", 1), ("never", 1), ("always", 0)])
def test_workers_are_told_where_nothing_streams(
    capfd: pytest.CaptureFixture[str], place: Place, stubs: None, stream: str, lines: int
) -> None:
    root = write_classes(place.folder / "pictures", {"a": 6, "b": 6})
    given = ["--data-root", str(root), "--set", "data.workers=1", "--set", f"data.stream={stream}"]
    assert place.run("run", "small", *given) == 0
    assert len(told(capfd)) == lines


def test_control_an_empty_table_tells_nothing(
    capfd: pytest.CaptureFixture[str],
    place: Place,
    stubs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config_effects, "UNREAD", {})
    assert place.run("run", str(place.preset), "--data-root", "x") == 0
    assert told(capfd) == []


# --- a preset's values in place of a method's own -----------------------------------------------

OVER_FAIR_DARTS = (
    "search.batch_size=64 (quickstart) in place of fair-darts's own 128; "
    "search.arch_lr=0.03 (quickstart) in place of fair-darts's own 0.003"
)


def over_method(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if " in place of " in line]


@pytest.mark.parametrize("command", [["run"], ["run", "--plan"], ["search"]])
def test_a_preset_that_beats_a_methods_own_default_is_told(
    capfd: pytest.CaptureFixture[str], place: Place, stubs: None, command: list[str]
) -> None:
    mine = place.folder / "mine.toml"
    mine.write_text('preset = "quickstart"\n[search]\nepochs = 5\n')
    for preset in ("quickstart", str(mine)):
        given = ("--set", "search.method=fair-darts")
        assert place.run(command[0], preset, *command[1:], *given) == 0
        assert over_method(capfd) == [OVER_FAIR_DARTS]
    assert configure("quickstart", ["search.method=fair-darts"]).search.batch_size == 64


@pytest.mark.parametrize(
    "settings",
    [
        ["search.method=fair-darts", "search.batch_size=8", "search.arch_lr=0.1"],  # own
        ["search.method=entangled"],  # its own default is the fields'
        ["search.method=random"],  # does not read it
        ["search.method=fair-darts", "derive.genotype=DARTS_V2"],  # no search
        [],
    ],
)
def test_control_nothing_is_told_where_the_preset_decides_nothing(settings: list[str]) -> None:
    keys = [override_key(setting) for setting in settings]
    config = configure("quickstart", settings)
    assert preset_line(config, values_of_presets("quickstart"), keys) is None


def test_control_a_file_of_the_users_own_knows_what_it_sets(
    capfd: pytest.CaptureFixture[str], place: Place, stubs: None
) -> None:
    mine = place.folder / "mine.toml"
    mine.write_text(
        'preset = "quickstart"\n[search]\nmethod = "fair-darts"\nbatch_size = 8\narch_lr = 0.1\n'
    )
    assert place.run("run", str(mine)) == 0
    assert over_method(capfd) == []


def test_an_equal_value_is_not_told() -> None:
    config = build_config({}, ["search.method=gdas"])
    assert preset_line(config, {"search.warmup_epochs": (0, "some")}, []) is None
    assert preset_line(config, {"search.warmup_epochs": (1, "some")}, []) is not None


# --- sections that contradict each other --------------------------------------------------------

CONTRADICTIONS = {
    ("search.epochs=1", "search.warmup_epochs=2"): "random",
    ("search.temperature_start=1.0", "search.temperature_end=2.0"): "darts",
    ("search.num_cells=3", "search.branch_length=4"): "gdas",
}


@pytest.mark.parametrize("settings", CONTRADICTIONS)
def test_settings_that_a_method_does_not_read_contradict_nothing(settings: tuple[str, ...]) -> None:
    assert build_config({}, [*settings, f"search.method={CONTRADICTIONS[settings]}"])
    with pytest.raises(ConfigError, match="must"):
        build_config({}, settings)  # control: d2nas reads them


def test_a_random_cell_is_found_and_planned_with_a_warm_up_beyond_its_epochs(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    given = ["--set", "search.warmup_epochs=9", "--set", "search.method=random"]
    plan = place.json(capfd, "run", str(place.preset), "--plan", *given)
    assert min(row.get("seconds", 0.0) for row in plan["stages"]) >= 0.0
    assert place.run("search", str(place.preset), *given) == 0


def test_a_choice_that_is_not_read_makes_nothing_ineffective() -> None:
    keys = ["search.estimator", "search.reward", "search.temperature_start"]
    gdas = build_config({"search": {"method": "gdas", "estimator": "score"}})
    assert without_effect(gdas, keys) == {"search.method=gdas": keys[:2]}
    given = build_config({"search": {"estimator": "score"}, "derive": {"genotype": "DARTS_V2"}})
    assert without_effect(given, keys) == {"derive.genotype=DARTS_V2": keys}
    score = build_config({"search": {"estimator": "score"}})  # control
    assert without_effect(score, keys) == {"search.estimator=score": keys[2:]}


def test_an_estimator_that_is_not_read_refuses_nothing() -> None:
    one_draw = {"estimator": "score", "draws": 1}
    for method in ("gdas", "random"):
        build_config({"search": {"method": method, **one_draw}})
    build_config({"search": one_draw, "derive": {"genotype": "DARTS_V2"}})
    with pytest.raises(ConfigError, match=r"needs search\.draws of at least 2"):
        build_config({"search": one_draw})

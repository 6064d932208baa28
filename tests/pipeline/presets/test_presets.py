"""Presets and defaults: every value is explained, and none is explained that is not there."""

import json
from pathlib import Path

import pytest

from d2nas.config import Config, build_config, sources_of
from d2nas.errors import ConfigError
from d2nas.train.schedules import linear_by_epoch
from pipeline.cli import run
from pipeline.commands.configuration import configure
from pipeline.presets import keys_of_own_files, preset_names, preset_sources, read_preset
from pipeline.stages.search import STAGE
from pipeline.study.grid import read_study

DEFAULT_SOURCES = sources_of({})


def test_every_default_has_a_source() -> None:
    keys = {
        f"{section}.{field}" for section, fields in Config().to_dict().items() for field in fields
    }
    assert keys == set(DEFAULT_SOURCES)
    assert all(DEFAULT_SOURCES.values())


def test_a_default_without_a_named_source_is_ours() -> None:
    assert DEFAULT_SOURCES["retrain.lr"] == "DARTS's code"
    assert DEFAULT_SOURCES["data.image_size"].startswith("the data set's own")
    assert DEFAULT_SOURCES["validate.latency_seconds"] == "ours"


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_where_each_of_its_values_comes_from(name: str) -> None:
    sources = preset_sources(name)
    assert sources
    assert name not in sources.values()  # what the file itself would stand for


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_can_be_shown(capfd: pytest.CaptureFixture[str], name: str) -> None:
    assert run(["show", "--config", name, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    sources = shown.pop("sources")
    assert shown == build_config(read_preset(name)).to_dict()
    assert set(sources) == set(DEFAULT_SOURCES)


def test_what_is_shown_names_overrides_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--config", "imagenet", "--set", "retrain.lr=0.1", "--json"]) == 0
    sources = json.loads(capfd.readouterr().out)["sources"]
    assert sources["retrain.lr"] == "--set"
    assert sources["retrain.lr_schedule"] == "PC-DARTS's code"
    assert sources["retrain.momentum"] == DEFAULT_SOURCES["retrain.momentum"]
    assert run(["show", "--config", "imagenet"]) == 0
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert ["retrain.lr", "0.5", "D2NAS, PC-DARTS's code"] in rows


def test_a_file_of_ones_own_is_its_own_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[retrain]\nlr = 0.1\nepochs = 3\n[sources]\n"retrain.lr" = "a friend"\n')
    assert preset_sources(str(path)) == {"retrain.lr": "a friend", "retrain.epochs": str(path)}
    assert read_preset(str(path)) == {"retrain": {"lr": 0.1, "epochs": 3}}


TEXT_OF_THE_PAPER = {
    "warmup_epochs": 0,
    "weight_optimizer": "sgd",
    "weight_lr": 0.05,
    "weight_lr_min": 0.001,
    "weight_momentum": 0.9,
    "clip": "sum",
    "arch_lr": 3e-4,
    "edge_gate_scale": 1,
    "estimator": "straight-through",
    "temperature_start": 10.0,
    "temperature_end": 0.1,
    "branch_length": 1,
}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_searched_as_the_paper_says(name: str) -> None:
    config = configure(name, ["search.recipe=paper"])
    search = config.search.model_dump()
    assert {key: search[key] for key in TEXT_OF_THE_PAPER} == TEXT_OF_THE_PAPER
    assert config.search.draws == (3 if name == "imagenet" else 7)
    recommended = configure(name, ["search.recipe=recommended"])
    assert recommended == configure(name, [])
    assert recommended.search.warmup_epochs > 0
    sizes = ("num_cells", "init_channels", "epochs", "batch_size")
    assert all(getattr(config.search, key) == getattr(recommended.search, key) for key in sizes)
    others = {"search": config.search}
    assert config == recommended.model_copy(update=others)


def test_a_recipe_does_not_touch_the_published_searches_of_others() -> None:
    for method in ("darts", "gdas", "pc-darts-4"):
        one, other = (
            build_config({"search": {"method": method, "recipe": recipe}}).search
            for recipe in ("recommended", "paper")
        )
        assert one.model_dump(exclude={"recipe"}) == other.model_dump(exclude={"recipe"})
    assert build_config({"search": {"method": "pc-darts-4"}}).search.warmup_epochs == 15


def test_a_recipe_itself_is_no_part_of_what_a_search_is_known_by() -> None:
    config = build_config({})
    same = build_config({"search": {"recipe": "paper", "warmup_epochs": 15}})
    assert STAGE.config(config) == STAGE.config(same)
    assert STAGE.config(config) != STAGE.config(build_config({"search": {"recipe": "paper"}}))


def test_a_file_may_hold_what_is_set_with_one_recipe_only(tmp_path: Path) -> None:
    path, study = tmp_path / "mine.toml", tmp_path / "study.toml"
    path.write_text(
        'preset = "quickstart"\n[search]\nepochs = 9\n[paper.search]\nepochs = 4\n'
        '[recommended.retrain]\nlr = 0.3\n[sources]\n"retrain.lr" = "a friend"\n'
    )
    assert configure(str(path), []).search.epochs == 9
    assert configure(str(path), []).retrain.lr == 0.3
    assert preset_sources(str(path))["retrain.lr"] == "a friend"
    paper = configure(str(path), ["search.recipe=paper"])
    assert (paper.search.epochs, paper.search.draws, paper.retrain.lr) == (4, 7, 0.1)
    study.write_text(
        f'preset = "{path}"\nmethods = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n[[variant]]\n'
        'name = "one"\n[[variant]]\nname = "other"\n[variant.settings]\n"search.recipe" = "paper"\n'
    )
    trials = read_study(str(study)).trials
    found = {trial.variant: trial.config for trial in trials if trial.method == "d2nas"}
    assert found["one"].search.draws == 2
    assert found["other"].search == paper.search
    path.write_text('[search]\nrecipe = "paper"\n[paper.search]\nepochs = 4\n')
    assert configure(str(path), []).search.epochs == 4
    path.write_text("paper = 3\n")
    with pytest.raises(ConfigError, match="paper must hold sections"):
        configure(str(path), [])


START = 'preset = "folder"\n[data]\nroot = "pictures"\n[retrain]\nepochs = 3\n'


def test_a_file_starts_from_the_preset_at_its_top(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(START)
    assert run(["show", "--config", str(path), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert run(["show", "--config", "folder", "--set", "data.root=pictures", "--json"]) == 0
    folder = json.loads(capfd.readouterr().out)
    assert shown["retrain"].pop("epochs") == 3
    assert folder["retrain"].pop("epochs") == 100
    assert shown["sources"].pop("retrain.epochs") == str(path)
    assert shown["sources"].pop("data.root") == str(path)
    del folder["sources"]["retrain.epochs"], folder["sources"]["data.root"]
    assert shown == folder


def test_control_without_its_start_the_file_is_another_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(START)
    values = read_preset(str(path))
    path.write_text(START.partition("\n")[2])
    assert (
        values
        != read_preset(str(path))
        == {
            "data": {"root": "pictures"},
            "retrain": {"epochs": 3},
        }
    )


def test_a_file_starts_from_another_file_and_a_study_from_either(tmp_path: Path) -> None:
    first, second, study = (tmp_path / name for name in ("first.toml", "second.toml", "study.toml"))
    first.write_text('preset = "quickstart"\n[retrain]\nepochs = 3\nlr = 0.3\n')
    second.write_text(f'preset = "{first}"\n[retrain]\nlr = 0.2\n')
    values = read_preset(str(second))
    quickstart = read_preset("quickstart")
    assert values == quickstart | {"retrain": {**quickstart["retrain"], "epochs": 3, "lr": 0.2}}
    assert preset_sources(str(second))["retrain.epochs"] == str(first)
    assert sorted(keys_of_own_files(str(second))) == ["retrain.epochs", "retrain.lr", "retrain.lr"]
    assert keys_of_own_files("quickstart") == []
    study.write_text(f'preset = "{second}"\nmethods = ["random"]\nspaces = ["S0"]\nseeds = [0]\n')
    retrain = read_study(str(study)).trials[0].config.retrain
    assert (retrain.epochs, retrain.lr, retrain.num_cells) == (3, 0.2, 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset = 3\n", "must be the name of a preset"),
        ('[preset]\nname = "folder"\n', "must be the name of a preset"),
        ('preset = "fodler"\n', "did you mean folder?"),
        ('preset = "other.toml"\n', "other.toml: No such file"),
        ('preset = "mine.toml"\n', "starts from itself"),
    ],
)
def test_a_start_that_is_none_is_a_usage_error(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(text)
    assert run(["run", "mine.toml", "--plan"]) == 2
    assert words in capfd.readouterr().err


def test_files_that_start_from_each_other_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text('preset = "b.toml"')
    Path("b.toml").write_text('preset = "a.toml"')
    with pytest.raises(ConfigError, match="starts from itself"):
        read_preset("a.toml")
    for number in range(30):
        Path(f"{number}.toml").write_text(f'preset = "{number + 1}.toml"')
    with pytest.raises(ConfigError, match="each starting from the next"):
        read_preset("0.toml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[retrain]\nlr = 0.1\n[sources]\n"retrain.lr" = 3\n', "one text per key"),
        ('[retrain]\nlr = 0.1\n[sources]\n"retrain.epochs" = "x"\n', "names retrain.epochs"),
        ("sources = 3\n[retrain]\nlr = 0.1\n", "one text per key"),
    ],
)
def test_sources_that_explain_nothing_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_preset(str(path))


def test_the_recipes_are_the_published_ones() -> None:
    """Written down a second time, from the papers' codes: a preset that drifts is noticed."""
    cifar = build_config(read_preset("cifar10")).retrain
    assert (cifar.num_cells, cifar.init_channels, cifar.epochs, cifar.batch_size) == (
        20, 36, 600, 96,
    )  # fmt: skip
    assert (cifar.lr, cifar.momentum, cifar.weight_decay, cifar.clip_norm) == (0.025, 0.9, 3e-4, 5)
    assert (cifar.cutout, cifar.drop_path, cifar.auxiliary_weight) == (16, 0.2, 0.4)
    for name in ("cifar100", "svhn", "fashion-mnist", "r-darts-cifar10"):
        assert build_config(read_preset(name)).retrain == cifar
    for name in ("r-darts-cifar100", "r-darts-svhn"):
        small = build_config(read_preset(name)).retrain
        assert small == cifar.model_copy(update={"num_cells": 8, "init_channels": 16})
    net = build_config(read_preset("imagenet")).retrain
    assert (net.num_cells, net.init_channels, net.epochs, net.batch_size) == (14, 48, 250, 1024)
    assert (net.lr, net.lr_schedule, net.warmup_epochs, net.weight_decay) == (
        0.5, "linear", 5, 3e-5,
    )  # fmt: skip
    assert (net.label_smoothing, net.auxiliary, net.drop_path, net.cutout) == (0.1, True, 0, 0)


def test_the_linear_schedule_is_pc_darts() -> None:
    rates = [linear_by_epoch(epoch, 250, 5, 0.5) for epoch in range(250)]
    for epoch in range(5):
        assert rates[epoch] == pytest.approx(0.5 * (245 - epoch) / 245 * (epoch + 1) / 5)
    for epoch in range(5, 245):
        assert rates[epoch] == pytest.approx(0.5 * (245 - epoch) / 245)
    for epoch in range(245, 250):
        assert rates[epoch] == pytest.approx(0.5 * (250 - epoch) / (245 * 5))
    assert [linear_by_epoch(epoch, 4, 0, 1.0) for epoch in range(4)] == [1.0, 0.75, 0.5, 0.25]
    with pytest.raises(ConfigError, match="lr_min must be 0"):
        build_config({"retrain": {"lr_schedule": "linear", "lr_min": 0.1}})


@pytest.mark.parametrize(
    ("method", "epochs", "warmup"),
    [
        ("d2nas", 50, 15),
        ("entangled", 50, 15),
        ("pc-darts-4", 50, 15),
        ("d2nas", 3, 0),
        ("d2nas", 1, 0),
        ("gdas", 240, 0),
        ("darts", 50, 0),
        ("random", 50, 0),
    ],
)
def test_the_architecture_rests_as_long_as_method_and_epochs_say(
    method: str, epochs: int, warmup: int
) -> None:
    words = [f"search.method={method}", f"search.epochs={epochs}"]
    assert build_config({}, words).search.warmup_epochs == warmup
    if epochs > 2:
        assert build_config({}, [*words, "search.warmup_epochs=2"]).search.warmup_epochs == 2

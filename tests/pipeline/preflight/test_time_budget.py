"""A budget of wall time: the epochs that fit, kept as ordinary keys, whatever happens meanwhile."""

from typing import Any

import pytest
from made_up_times import REST, make_up_times
from searches import config_of
from tiny import TinyPlace
from toy import Place, end_before_training

from d2nas.config import Config, build_config
from d2nas.errors import ConfigError
from pipeline.preflight.plan import Estimates
from pipeline.preflight.plan_times import as_time, read_duration
from pipeline.preflight.time_budget import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    SPARE,
    Epochs,
    TimeBudget,
)
from pipeline.presets import read_preset

HOUR = 3600.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86_400),
        ("1d2h3m4s", 93_784),
        (" 5m ", 300),
    ],
)
def test_a_time_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds
    assert read_duration(as_time(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "90", "h", "0s", "-5m", "1.5h", "30m1h", "2 h", "9999999h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid time") as raised:
        read_duration(text)
    assert "1h30m" in str(raised.value.hint)


def fitting(text: str, config: Config, spent: float = 0.0) -> Epochs:
    ticks = iter([0.0, *[spent] * 1000])
    return TimeBudget(text, clock=lambda: next(ticks)).fitting(config, Estimates(config))


QUICKSTART = build_config(read_preset("quickstart"))
"""12 epochs of search, 3 of them warm-up, and 20 of retraining, 2 of them warm-up."""


def seconds_of(epochs: Epochs, search: float, retrain: float) -> float:
    return search * epochs.search + retrain * epochs.retrain + 3 * REST


@pytest.mark.parametrize("hours", [1, 2, 5, 7])
def test_a_budget_is_used_and_kept(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_times(monkeypatch, search=200.0, retrain=150.0)
    spent = 60.0
    found = fitting(f"{hours}h", QUICKSTART, spent)
    planned = (1 - SPARE) * hours * HOUR
    assert found.seconds == pytest.approx(spent + seconds_of(found, 200.0, 150.0))
    assert found.seconds <= planned
    more = Epochs(found.search + 1, found.retrain + 1)
    assert spent + seconds_of(more, 200.0, 150.0) > planned
    # Control: in the preset's own proportion, to an epoch.
    assert abs(found.search / 12 - found.retrain / 20) < 1 / 12


def test_epochs_have_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_times(monkeypatch, search=1.0, retrain=1.0)
    found = fitting("100d", QUICKSTART)
    assert (found.search, found.retrain) == (MOST_EPOCHS["search"], MOST_EPOCHS["retrain"])
    # What reaches its end leaves the rest to the other.
    found = fitting("10m", QUICKSTART)
    assert found.search == MOST_EPOCHS["search"]
    assert 20 * 50 / 12 < found.retrain < MOST_EPOCHS["retrain"]
    long = build_config(read_preset("quickstart"), ["search.epochs=90", "retrain.epochs=2"])
    found = fitting("100d", long)
    assert (found.search, found.retrain) == (90, MOST_EPOCHS["retrain"])


def test_what_is_too_short_is_refused_with_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_times(monkeypatch, search=10.0, retrain=5.0)
    least = 10.0 * FEWEST_EPOCHS + 5.0 * FEWEST_EPOCHS + 3 * REST
    with pytest.raises(ConfigError, match=r"--time 5m is too short: search.epochs=4 and") as raised:
        fitting("5m", QUICKSTART)
    assert raised.value.exit_code == 2
    enough = str(raised.value.hint).split()[1]
    assert least / (1 - SPARE) <= read_duration(enough) < 1.1 * least / (1 - SPARE)
    assert (fitting(enough, QUICKSTART).search, fitting(enough, QUICKSTART).retrain) == (4, 4)
    few = build_config(read_preset("quickstart"), ["retrain.epochs=2", "retrain.warmup_epochs=0"])
    assert fitting(enough, few).retrain == 2


def test_a_random_or_given_cell_leaves_all_to_the_retraining(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_up_times(monkeypatch, search=0.0, retrain=100.0)
    for setting in ("search.method=random", "derive.genotype=DARTS_V2"):
        config = build_config(read_preset("quickstart"), [setting])
        found = fitting("1h", config)
        assert found.search == config.search.epochs
        assert found.retrain == int(((1 - SPARE) * HOUR - 3 * REST) / 100)


@pytest.mark.parametrize(
    ("epochs", "warmups"),
    [((4, 4), (1, 1)), ((12, 20), (3, 2)), ((13, 21), (3, 3)), ((50, 600), (12, 60))],
)
def test_warm_ups_stay_in_proportion(epochs: tuple[int, int], warmups: tuple[int, int]) -> None:
    found = Epochs(*epochs).applied(QUICKSTART)
    assert (found.search.epochs, found.retrain.epochs) == epochs
    assert (found.search.warmup_epochs, found.retrain.warmup_epochs) == warmups
    build_config(found.to_dict())  # and it is a configuration
    none = build_config({}, ["search.warmup_epochs=0"])
    found = Epochs(4, 4).applied(none)
    assert (found.search.warmup_epochs, found.retrain.warmup_epochs) == (0, 0)
    steep = build_config({}, ["retrain.epochs=5", "retrain.warmup_epochs=9"])
    assert Epochs(4, 4).applied(steep).retrain.warmup_epochs == 3


def chosen_of(place: TinyPlace, capfd: pytest.CaptureFixture[str], run: str) -> tuple[int, int]:
    capfd.readouterr()
    found = [
        place.json(capfd, "show", f"{run}/{stage}")["config"][stage]["epochs"]
        for stage in ("search", "retrain")
    ]
    return found[0], found[1]


def test_a_choice_is_the_runs_until_it_is_made_anew(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_up_times(monkeypatch, search=1000.0, retrain=2000.0)
    words = ("run", str(tiny.preset), "--name", "timed", "--time", "10h")
    with monkeypatch.context() as patch:
        end_before_training(patch)
        assert tiny.run(*words) == 3
    told = capfd.readouterr().err
    assert "search.epochs=10 and retrain.epochs=10 in place of 4 and 4: about 8h25m" in told
    # The search took no time, so there is more left: (0.85 x 10 h - 2 x 100 s) / 2000 s.
    assert "retrain.epochs=15 in place of 10, by the derived cell" in told
    # Interrupted: a machine that has become slow changes nothing.
    make_up_times(monkeypatch, search=2000.0, retrain=4000.0)
    assert tiny.run(*words) in (0, 3)
    told = capfd.readouterr().err
    assert "search.epochs=10 and retrain.epochs=15, as chosen before" in told
    assert "search: up to date" in told
    assert chosen_of(tiny, capfd, "timed") == (10, 15)
    # Control: --fresh chooses by what it is now.
    assert tiny.run(*words, "--fresh") in (0, 3)
    assert chosen_of(tiny, capfd, "timed")[0] < 10


def test_the_run_is_the_one_with_these_epochs(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_up_times(monkeypatch, search=2000.0, retrain=1000.0)
    longer = tiny.preset.read_text().replace(
        "epochs = 4\nbatch_size = 20\ndrop_path = 0.3", "epochs = 24\nbatch_size = 20"
    )
    tiny.preset.write_text(longer)
    words = ("run", str(tiny.preset), "--name", "timed")
    assert tiny.run(*words, "--time", "12h") == 0
    told = capfd.readouterr().err
    assert "search.epochs=4 and retrain.epochs=28 in place of 4 and 24" in told
    assert "retrain.epochs=36 in place of 28" in told
    closing = [line for line in told.splitlines() if line.startswith("time: ")][-1]
    assert closing.endswith("predicted before search and retraining, of 12h")
    epochs = chosen_of(tiny, capfd, "timed")
    settings = ("--set", f"search.epochs={epochs[0]}", "--set", f"retrain.epochs={epochs[1]}")
    assert tiny.json(capfd, *words, *settings)["executed"] == []
    assert tiny.json(capfd, *words, "--time", "720m")["executed"] == []
    assert "in this command; " in tiny_told(tiny, capfd, *words, "--time", "12h")


def tiny_told(place: TinyPlace, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    assert place.run(*words) == 0
    return capfd.readouterr().err


def test_a_plan_shows_the_choice_and_keeps_none(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_up_times(monkeypatch, search=100.0, retrain=100.0)
    words = ("run", str(place.preset), "--plan", "--name", "planned")
    own = place.json(capfd, *words)["seconds"]
    for text in ("1h", "2h"):
        plan = place.json(capfd, *words, "--time", text)
        assert 0.7 * read_duration(text) < plan["seconds"] <= (1 - SPARE) * read_duration(text)
        assert plan["seconds"] > own
        assert place.run(*words, "--time", text) == 0
        assert "in place of" in capfd.readouterr().err
    assert place.run(*words, "--time", "1m") == 2
    assert "is too short" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "search.epochs=3"),
        ("--set", "retrain.epochs=3"),
        ("--set", "derive.model=torchvision:resnet18"),
        ("--set", "retrain.teacher=timm:resnet18"),
        ("--baseline", "torchvision:resnet18"),
    ],
)
def test_what_a_time_does_not_go_with_is_refused(
    words: tuple[str, str], place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert place.run("run", str(place.preset), "--time", "1h", *words) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert "not supported with" in told
    assert words[1].partition("=")[0] in told or words[0] in told


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("retrain.patience=2", "retrain.validation_fraction=0.3"),
        ("retrain.batch_size=100", "retrain.accumulate=3"),
    ],
)
def test_an_estimate_of_other_epochs_is_of_what_was_timed(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real configuration: steps as the training counts them, the time in proportion."""
    small = ("retrain.num_cells=2", "retrain.init_channels=4", "retrain.auxiliary=false")
    config = config_of("d2nas", *small, "retrain.epochs=3", *settings)
    estimates = Estimates(config)
    found = estimates.of("retrain", 0)
    images = 1438 if "patience" not in str(settings) else 1438 - round(0.3 * 1438)
    assert found["steps"] == 3 * (images // config.retrain.batch_size)
    timed: list[Any] = []
    monkeypatch.setattr("pipeline.preflight.plan.time_steps", lambda *_: timed.append(1))
    longer = Epochs(config.search.epochs, 6).applied(config)
    again = estimates.of_epochs(longer).of("retrain", 0)
    assert again["steps"] == 2 * found["steps"]
    assert again["seconds"] == pytest.approx(2 * found["seconds"])
    assert timed == []


def test_micro_batches_take_less_memory_in_a_plan() -> None:
    def peak(*settings: str) -> int:
        config = build_config(
            {"data": {"name": "cifar10"}},
            ["retrain.num_cells=3", "retrain.init_channels=8", *settings],
        )
        found: int = Estimates(config).of("retrain", 0)["peak_bytes"]
        return found

    assert peak("retrain.accumulate=8") < 0.4 * peak()

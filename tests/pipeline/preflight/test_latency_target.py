"""A target latency before the search: size, table and limit follow from it, and are kept."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from latency_tables import table_of
from made_up_times import make_up_times
from tiny import TinyPlace
from toy import Place, end_before_training

from d2nas.config import Config, build_config
from d2nas.genotype import Genotype
from pipeline.latency.measuring import Wanted
from pipeline.preflight import latency_budget as budget
from pipeline.preflight import latency_target
from pipeline.preflight.latency_budget import Untrained, UntrainedLatency
from pipeline.preflight.latency_target import NUM_RANDOM, RandomNetworks, no_limit_because, sizes


def test_sizes_go_from_wide_and_deep_to_narrow_and_shallow() -> None:
    retrain = build_config({}, ["retrain.num_cells=20", "retrain.init_channels=36"]).retrain
    wide = [(cells, channels) for cells in (20, 13, 6) for channels in (36, 24, 20)]
    assert [*sizes(retrain)] == [*wide, (20, 8), (13, 8), (6, 8)]
    small = build_config({}, ["retrain.num_cells=3", "retrain.init_channels=4"]).retrain
    assert [*sizes(small)] == [(3, 4)]
    eight = build_config({}, ["retrain.num_cells=3", "retrain.init_channels=8"]).retrain
    assert [*sizes(eight)] == [(3, 8), (3, 4)]


def test_what_a_tenth_of_random_cells_keeps_is_by_mean_and_deviation() -> None:
    networks = RandomNetworks(5, 8, (1.0, 2.0, 3.0), 1.0)
    assert networks.low == pytest.approx(2.0 - 1.2816, abs=1e-4)
    alike = RandomNetworks(5, 8, (2.0, 2.0, 2.0), 1.0)
    assert alike.low == 2.0


class Device:
    """A device on which networks take what is said: the tiny preset's, of 2 cells x 8 channels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.random = {8: 4.0, 4: 4.0}
        self.tail = TAIL
        self.timed: list[int] = []
        self.tables: list[Wanted] = []
        monkeypatch.setattr(latency_target, "_time_random", self._time_random)
        monkeypatch.setattr(latency_target, "measure_table", self._measure_table)
        monkeypatch.setattr(budget, "_untrained", lambda config, genotype, width, *_: genotype)
        monkeypatch.setattr(budget, "_measure", self._measure)
        self.p99s = iter([0.0])

    def _time_random(self, wanted: Wanted, config: Config) -> RandomNetworks:
        self.timed.append(wanted.init_channels)
        around = self.random[wanted.init_channels]
        times = tuple(around + 0.1 * number for number in range(NUM_RANDOM))
        return RandomNetworks(wanted.num_cells, wanted.init_channels, times, self.tail)

    def _measure_table(self, wanted: Wanted, **_: Any) -> Any:
        self.tables.append(wanted)
        return table_of(wanted, dil_conv_3x3=0.3, max_pool_3x3=0.2, skip_connect=0.0)

    def _measure(self, config: Config, genotype: Genotype) -> UntrainedLatency:
        return UntrainedLatency(next(self.p99s), None, "CPU Test")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


TARGET, TAIL = 60000.0, 7500.0
"""A target that any machine keeps, and a tail by which it is 8 ms of what networks take here."""


def preset_of(tiny: TinyPlace) -> str:
    """The tiny preset with eight channels, where two sizes can be tried, and trained for longer, so
    that it passes the gate.
    """
    text = tiny.preset.read_text()
    for old, new in (
        ("num_cells = 2\ninit_channels = 4", "num_cells = 2\ninit_channels = 8"),
        ("epochs = 4\nbatch_size = 20\ndrop_path = 0.3", "epochs = 24\nbatch_size = 20"),
    ):
        assert old in text
        text = text.replace(old, new)
    tiny.preset.write_text(text)
    return str(tiny.preset)


def test_search_and_derivation_keep_a_target(
    tiny: TinyPlace, device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of eight channels no random network is fast enough; of four they are, within a limit."""
    preset, words = preset_of(tiny), ("--max-p99-ms", "60000", "--name", "within")
    device.random, device.p99s = {8: 9.0, 4: 6.0}, itertools.repeat(7.0)
    assert tiny.run("run", preset, *words) == 0
    told = capfd.readouterr().err
    assert device.timed == [8, 4]
    assert "too slow are random networks of 2 cells x 8 channels: 9 to 9.7 ms" in told
    assert "2 cells x 4 channels: 6 to 6.7 ms, p99 7500.00 x as much: at most 7.6 ms by a" in told
    (wanted,) = device.tables
    assert (wanted.num_cells, wanted.init_channels, wanted.serving.batch) == (2, 4, 1)
    limit = 0.95 * 8.0
    shown = {stage: tiny.json(capfd, "show", f"within/{stage}") for stage in ("search", "derive")}
    assert shown["search"]["config"]["search"]["max_latency_ms"] == pytest.approx(limit)
    costs = shown["search"]["facts"]["costs"]
    assert costs["derived_latency_ms"] <= costs["limit"] == pytest.approx(limit)
    assert shown["derive"]["facts"]["limit"]["derived"] <= limit
    trained = tiny.json(capfd, "show", "within/retrain")["config"]["retrain"]
    assert (trained["num_cells"], trained["init_channels"]) == (2, 4)
    assert "Latency and loss" in (tiny.exported / "within" / "report.html").read_text()
    # Again: nothing is timed, nothing runs, even where the table's file is lost.
    device.timed.clear()
    (file,) = (tiny.store / "latency").iterdir()
    file.unlink()
    assert tiny.json(capfd, "run", preset, *words)["executed"] == []
    assert tiny.run("run", preset, *words) == 0
    assert "2 cells x 4 channels, at most 7.6 ms by the table, as chosen" in capfd.readouterr().err
    assert device.timed == []
    assert file.is_file()
    # Another target is another choice, and --fresh measures again.
    assert tiny.run("run", preset, "--max-p99-ms", "120000", "--name", "within") == 0
    assert device.timed == [8]
    assert tiny.run("run", preset, *words, "--fresh") == 0
    assert device.timed == [8, 8, 4]
    assert len(device.tables) == 2


def test_a_network_slower_than_predicted_is_derived_again_within_less(
    tiny: TinyPlace, device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    preset, words = preset_of(tiny), ("--max-p99-ms", "60000", "--name", "within")
    device.random = {8: 7.0, 4: 1.0}
    device.p99s = iter(
        [63750.0, 63750.0, 63000.0, 59000.0, 59000.0]
    )  # three times, then the one derived anew
    assert tiny.run("run", preset, *words) == 0
    told = capfd.readouterr().err
    lower = 0.95 * (0.95 * 8.0) * 60 / 63
    assert f"takes p99 6.3e+04 ms: derived again, at most {lower:.3g} ms by the table" in told
    derived = tiny.json(capfd, "show", "within/derive")["facts"]["limit"]
    assert derived["value"] == pytest.approx(lower)
    assert derived["derived"] <= lower
    search = tiny.json(capfd, "show", "within/search")["config"]["search"]
    assert search["max_latency_ms"] == pytest.approx(0.95 * 8.0)
    # Again, nothing runs: the lower limit is remembered.
    assert tiny.json(capfd, "run", preset, *words)["executed"] == []
    # Another training of the same cell: nothing is lowered twice, however long it takes now.
    device.p99s = itertools.repeat(63000.0)
    assert tiny.run("run", preset, *words, "--set", "retrain.epochs=25") == 0
    assert "derived again" not in capfd.readouterr().err
    # Control: one that is fast enough is derived once.
    device.p99s = itertools.repeat(7.0)
    assert tiny.run("run", preset, *words, "--name", "fast") == 0
    assert "derived again" not in capfd.readouterr().err


def test_a_size_is_chosen_before_the_epochs_that_fit_into_a_time(
    tiny: TinyPlace,
    device: Device,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset = preset_of(tiny)
    words = ("--max-p99-ms", "60000", "--time", "3h", "--name", "within")
    device.random, device.p99s = {8: 9.0, 4: 6.0}, itertools.repeat(7.0)
    asked = make_up_times(monkeypatch, search=600.0, retrain=300.0)
    assert tiny.run("run", preset, *words) == 0
    told = capfd.readouterr().err
    assert told.index("too slow are random networks") < told.index("timing a few steps")
    assert {(one.retrain.num_cells, one.retrain.init_channels) for one in asked} == {(2, 4)}
    trained = tiny.json(capfd, "show", "within/retrain")["config"]["retrain"]
    # 4 x 600 s + 21 x 300 s + 3 x 100 s are within 0.85 x 3 h; the search took no time, so there is
    # more left: (0.85 x 3 h - 2 x 100 s) / 300 s.
    assert "search.epochs=4 and retrain.epochs=21 in place of 4 and 24" in told
    assert "retrain.epochs=29 in place of 21, by the derived cell" in told
    assert (trained["init_channels"], trained["epochs"]) == (4, 29)
    # Again: nothing is timed or runs.
    asked.clear()
    device.timed.clear()
    assert tiny.json(capfd, "run", preset, *words)["executed"] == []
    assert asked == device.timed == []


def test_a_search_made_before_is_kept_and_the_derivation_limited(
    tiny: TinyPlace, device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = preset_of(tiny)
    device.random, device.p99s = {8: 7.0, 4: 1.0}, itertools.repeat(7.0)
    before = tiny.latest("search")
    assert before is not None
    assert tiny.run("run", preset, "--max-p99-ms", "60000") == 0
    assert "the search made before, without a limit, is kept" in capfd.readouterr().err
    after, derived = tiny.latest("search"), tiny.latest("derive")
    assert after is not None
    assert derived is not None
    assert after.id == before.id
    assert derived.manifest.facts["limit"]["value"] == pytest.approx(0.95 * 8.0)
    assert tiny.json(capfd, "run", preset, "--max-p99-ms", "60000")["executed"] == []
    # Where the search has to run again, by --fresh or for another setting, it keeps the limit.
    for words in (("--set", "search.arch_lr=0.04"), ("--fresh",)):
        assert tiny.run("run", preset, "--max-p99-ms", "60000", *words) == 0
        assert "is kept" not in capfd.readouterr().err
        searched = tiny.latest("search")
        assert searched is not None
        limit = searched.manifest.config["search"]["max_latency_ms"]
        assert limit == pytest.approx(0.95 * 8.0)


def test_a_size_that_was_chosen_is_trained_after_an_interruption(
    tiny: TinyPlace,
    device: Device,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset, words = preset_of(tiny), ("--max-p99-ms", "60000", "--name", "within")
    device.random = {8: 7.0, 4: 1.0}
    # Too slow, and derived again too slow: four channels are fast enough.
    device.p99s = iter([*[63000.0] * 3, *[61000.0] * 3, 9.0])
    with monkeypatch.context() as patch:
        end_before_training(patch)
        assert tiny.run("run", preset, *words) == 3
    told = capfd.readouterr().err
    assert "size: 2 cells x 8 channels are too slow; 2 cells x 4 channels" in told
    derived = tiny.json(capfd, "show", "within/derive")["id"]
    device.p99s = itertools.repeat(63000.0)  # what is timed now would be too slow
    assert tiny.run("run", preset, *words) == 0
    told = capfd.readouterr().err
    assert "size: 2 cells x 4 channels, as it was chosen before" in told
    assert tiny.json(capfd, "show", "within/derive")["id"] == derived
    # Trained for longer, it keeps its size, too.
    device.p99s = itertools.repeat(9.0)
    assert tiny.run("run", preset, *words, "--set", "retrain.epochs=25") == 0
    assert "size: 2 cells x 4 channels, as it was trained before" in capfd.readouterr().err


def test_what_is_fast_enough_anyway_is_not_limited(
    tiny: TinyPlace, device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = preset_of(tiny)
    device.p99s = itertools.repeat(7.0)
    assert tiny.run("run", preset, "--max-p99-ms", "60000") == 0
    assert "p99 7500.00 x as much: nothing is limited" in capfd.readouterr().err
    assert device.tables == []
    device.timed.clear()
    assert tiny.json(capfd, "run", preset, "--max-p99-ms", "60000")["executed"] == []
    assert device.timed == []


def test_a_target_that_no_cell_keeps_is_told_before_the_search(
    tiny: TinyPlace, device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = preset_of(tiny)
    device.random = {8: 9.0, 4: 7.0}
    words = ("--max-p99-ms", "1500", "--set", "run.seed=9", "--name", "none")
    assert tiny.run("run", preset, *words) == 2
    told = capfd.readouterr().err
    assert "no cell keeps search.max_latency_ms=" in told
    assert "the cheapest of few takes" in told
    assert not any(row["ref"].startswith("none/") for row in tiny.json(capfd, "ls"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ((), None),
        (("derive.candidates=3",), "derive.candidates and derive.budget"),
        (("search.method=p-darts",), "not supported for p-darts"),
        (("search.max_macs=100000",), "a limit or a latency table of its own"),
        (("run.latency_table=x.json",), "a limit or a latency table of its own"),
        (("derive.genotype=DARTS_V2",), "derive.genotype is given"),
        (("search.space=S4",), "noise"),
        (("search.latency_weight=1", "run.latency_table=x.json"), "table of its own"),
    ],
)
def test_where_no_limit_can_be_set_the_reason_is_told(
    settings: tuple[str, ...], reason: str | None
) -> None:
    found = no_limit_because(build_config({}, settings))
    assert found is None if reason is None else found is not None and reason in found


def test_without_a_limit_a_network_that_is_too_slow_is_made_smaller(
    tiny: TinyPlace, device: Device, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = preset_of(tiny)
    device.p99s = iter([9e4, 9e4, 9e4, 9e4, 5.0])
    words = ("--max-p99-ms", "60000", "--set", "derive.candidates=2")
    assert tiny.run("run", preset, *words) == 0
    told = capfd.readouterr().err
    assert "latency: no limit is set for the search: derive.candidates and" in told
    assert "size: 2 cells x 8 channels are too slow; 2 cells x 4 channels: p99 5 ms is" in told
    assert device.timed == []


def test_random_networks_are_really_timed(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[RandomNetworks] = []
    really = latency_target._time_random

    def kept(*arguments: Any) -> RandomNetworks:
        found.append(really(*arguments))
        return found[-1]

    monkeypatch.setattr(latency_target, "_time_random", kept)
    monkeypatch.setattr(Untrained, "measure", lambda *_: UntrainedLatency(math.inf, 1, "Test"))
    assert place.run("run", str(place.preset), "--max-p99-ms", "60000") == 3
    assert "nothing is limited" in capfd.readouterr().err
    (one,) = found
    assert len(one.milliseconds) == NUM_RANDOM
    assert 0.0 < one.low < max(one.milliseconds)
    assert one.tail is not None
    assert one.tail >= 1.0
    assert Path(place.store / "cache").is_dir()

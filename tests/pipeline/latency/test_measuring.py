"""Tables that are measured: turns, a real small one, and the command."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import without_packages
from servings import PLAIN

from d2nas.errors import ConfigError
from d2nas.genotype import uniform
from d2nas.spaces import SPACES
from pipeline.cli import run
from pipeline.latency import measuring
from pipeline.latency.measuring import Wanted, measure_table
from pipeline.latency.table import LatencyTable, read_table
from pipeline.latency.timing import MIN_RUNS, InTurns, time_in_turns

SERVING = replace(PLAIN, image_size=8, in_channels=1, num_classes=3, input_type="uint8", batch=2)


class Turns:
    """Models that take made-up times, and the clock that they move."""

    def __init__(self, times: list[list[int]]) -> None:
        self.times, self.now = times, 0
        self.runs, self.checked = [0] * len(times), [0] * len(times)

    def sessions(self) -> list[Any]:
        return [_Session(self, index) for index in range(len(self.times))]


class _Session:
    def __init__(self, turns: Turns, index: int) -> None:
        self.turns, self.index, self.description = turns, index, None

    def bind(self, _images: object) -> Callable[[], None]:
        def run_once() -> None:
            turns, times = self.turns, self.turns.times[self.index]
            visit = turns.runs[self.index] // (1 + MIN_RUNS)
            turns.now += times[min(visit, len(times) - 1)]
            turns.runs[self.index] += 1

        return run_once

    def check_provider(self) -> None:
        self.turns.checked[self.index] += 1


def test_the_quietest_round_counts_and_the_order_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.latency.timing.timing_images", lambda *_: None)
    million = 1_000_000
    turns = Turns(
        [[9 * million, 3 * million, 4 * million], [8 * million, 8 * million, 7 * million]]
    )
    seen: list[int] = []
    first, second = time_in_turns(
        turns.sessions(), 1, rounds=3, done=seen.append, clock=lambda: turns.now
    )
    assert (first.quietest_ms, second.quietest_ms) == (3.0, 7.0)
    assert first.medians_ms == (9.0, 3.0, 4.0)
    assert first.spread == pytest.approx(4 / 3 - 1)
    assert turns.runs == [3 * (1 + MIN_RUNS)] * 2  # one of each turn does not count
    assert (seen, turns.checked) == ([1, 2, 3], [1, 1])
    orders = {tuple(random.Random(number).sample(range(5), 5)) for number in range(4)}
    assert len(orders) > 1


def test_a_model_that_is_fast_has_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.latency.timing.timing_images", lambda *_: None)
    turns = Turns([[100_000]])
    time_in_turns(turns.sessions(), 1, rounds=1, clock=lambda: turns.now)
    assert turns.runs[0] == 1 + 60  # 6 ms of 0.1 ms each


def test_whole_networks_are_random_ones_and_one_of_each_operation() -> None:
    found = measuring.networks_to_time(SPACES["S0"], random.Random(0))
    alone = [{name for name, _ in (*one.normal, *one.reduce)} for one in found]
    assert [names for names in alone if len(names) == 1] == [
        {name} for name in SPACES["S0"].normal[0]
    ]
    assert len(found) == measuring.CALIBRATIONS + 7


@pytest.fixture(scope="module")
def small() -> LatencyTable:
    return measure_table(Wanted(SPACES["S0"], 6, 8, SERVING), device="cpu", num_threads=1, rounds=2)


def test_every_network_of_the_space_is_predicted(small: LatencyTable) -> None:
    numbers = random.Random(5)
    for _ in range(50):
        genotype = uniform(SPACES["S0"], numbers)
        assert 0 < small.predict(genotype, num_cells=6, init_channels=8) < 1e4
    # Deeper networks are made of the same parts.
    deep = small.predict(genotype, num_cells=12, init_channels=8)
    assert deep > small.predict(genotype, num_cells=6, init_channels=8)
    assert small.device["kind"] == "cpu"
    assert small.device["num_threads"] == 1
    assert [one.num_cells for one in small.networks] == [6] * (measuring.CALIBRATIONS + 7)
    assert read_table(small.to_json(), what="t") == small


def words(*more: str) -> list[str]:
    small = ("--rounds", "2", "--threads", "1", "--device", "cpu", "--batch", "2")
    sizes = ("retrain.num_cells=3", "retrain.init_channels=4", "search.space=S3")
    settings = [word for one in sizes for word in ("--set", one)]
    return ["latency", "measure", "quickstart", *small, *settings, *more]


def test_measure_show_predict_and_check(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    assert run(words("--to", str(path), "--json")) == 0
    told = json.loads(capfd.readouterr().out)
    table = read_table(path.read_bytes(), what="t")
    assert (told["digest"], told["serving"]["batch"]) == (table.digest, 2)
    assert len(told["errors_of_left_out"]) == len(table.networks) > measuring.CALIBRATIONS
    assert run(["latency", "show", str(path)]) == 0
    assert "sep_conv_3x3" in capfd.readouterr().out
    genotype = table.networks[0].genotype
    given = tmp_path / "g.json"
    given.write_text(genotype.to_json())
    assert run(["latency", "predict", str(path), "--genotype", str(given), "--json"]) == 0
    predicted = json.loads(capfd.readouterr().out)
    assert predicted["latency_ms"] == table.predict(genotype, num_cells=3, init_channels=4)
    assert (predicted["batch"], predicted["num_cells"], predicted["init_channels"]) == (2, 3, 4)
    assert run(["latency", "predict", str(path), "--genotype", str(given), "--channels", "6"]) == 2
    assert "only of 4" in capfd.readouterr().err
    assert run(["latency", "predict", str(tmp_path / "no"), "--genotype", "DARTS_V2"]) == 2
    path.write_bytes(path.read_bytes().replace(b'"batch":2', b'"batch":3'))
    assert run(["latency", "show", str(path)]) == 4
    assert "it was changed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("factor", "name", "code", "said"),
    [
        (1.05, None, 0, "1.05 x of the table's times"),
        (1.2, None, 3, "networks take 1.20 x as long"),
        (0.8, None, 3, "networks take 0.80 x as long"),
        (1.0, "Another", 3, "this is CPU Another"),
    ],
)
def test_a_device_that_has_changed_is_told(
    factor: float,
    name: str | None,
    code: int,
    said: str,
    small: LatencyTable,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(small.to_json())
    again = [InTurns((factor * one.milliseconds,)) for one in small.networks]
    monkeypatch.setattr(measuring, "time_in_turns", lambda *_, **__: again)
    device = {**small.device}
    if name is not None:
        device |= {"name": name, "label": f"CPU {name}"}
    monkeypatch.setattr(measuring, "describe_device", lambda _device: device)
    assert run(["latency", "check", str(path)]) == code
    assert said in capfd.readouterr().err


def test_neither_torch_nor_images_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    preset = tmp_path / "mine.toml"
    preset.write_text('preset = "folder"\n[retrain]\nnum_cells = 2\ninit_channels = 4\n')
    command = ["latency", "measure", str(preset), "--image-size", "16", "--classes", "4"]
    small = ["--rounds", "2", "--device", "cpu", "--to", str(path), "--set", "search.space=S2"]
    done = subprocess.run(
        [sys.executable, without_packages.__file__, "torch,torchvision", *command, *small],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    table = read_table(path.read_bytes(), what="t")
    assert (table.serving.num_classes, table.serving.image_size) == (4, 16)
    # Control: without these a folder is asked for.
    done = subprocess.run(
        [sys.executable, without_packages.__file__, "torch", *command[:3], *small],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "error: " in done.stderr


def test_spaces_of_what_no_model_exports_are_refused() -> None:
    wanted = Wanted(SPACES["S4"], 5, 8, SERVING)
    with pytest.raises(ConfigError, match="latency of the operation noise of S4 is not supported"):
        measure_table(wanted, device="cpu", num_threads=1)

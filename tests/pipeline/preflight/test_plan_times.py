"""Times of a plan: durations one can read, few small steps, and the keys that bring a run down."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from library_networks import SMALL, small_network
from torch import Tensor, nn
from toy import Place

from d2nas.config import Config, build_config
from d2nas.genotype import Genotype
from d2nas.measure.cost import count_cost, peak_memory
from d2nas.nn import library_network
from d2nas.nn.network import Network
from pipeline.preflight import plan, plan_times
from pipeline.preflight.plan_times import (
    DAY,
    Seconds,
    Timing,
    busy_line,
    duration,
    range_in_words,
    shorter_lines,
    shorter_settings,
    time_steps,
)
from pipeline.presets import read_preset


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (40, "40 s"),
        (600, "10 min"),
        (5.5 * 3600, "5.5 h"),
        (23 * 3600, "23 h"),
        (3.4 * DAY, "3.4 days"),
        (18_722 * 3600, "780 days"),
        (4000 * DAY, "4,000 days"),
    ],
)
def test_a_duration_is_told_as_a_person_says_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_range_with_equal_ends_is_one_time() -> None:
    assert range_in_words(Seconds(2.0, 1.9, 2.2)) == "2 s"
    assert range_in_words(Seconds(2.0, 1.4, 3.1)) == "1 s to 3 s"


def line(start: float, each: float, *sizes: int) -> Timing:
    """Times of steps that cost ``start``, and ``each`` for every image."""
    return Timing({size: [start + each * size, 1.1 * (start + each * size)] for size in sizes})


def test_a_large_batch_is_told_from_two_small_ones() -> None:
    found = line(0.1, 0.01, 2, 8).of(64)
    assert found.expected == pytest.approx(0.1 + 0.01 * 64)
    assert found.low == pytest.approx(0.01 * 64)
    assert found.high == pytest.approx(1.1 * (0.1 + 0.01 * 8) * 8)
    # Control: the larger one alone, repeated, is twice as long.
    assert line(0.1, 0.01, 8).of(64).expected > 1.9 * found.expected


def test_a_batch_that_was_timed_is_not_guessed() -> None:
    found = line(0.1, 0.01, 64).of(64)
    assert found.expected == found.low == pytest.approx(0.74)
    assert found.high == pytest.approx(1.1 * 0.74)


@pytest.mark.parametrize("small", [0.001, 0.5, 3.0])
def test_noise_makes_no_time_negative_and_no_range_empty(small: float) -> None:
    found = Timing({2: [small], 8: [0.4, 0.5]}).of(96)
    assert 0 < found.low <= found.expected <= found.high


class Machine:
    """A clock that steps move: each image costs ``each`` seconds."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 0.0, each
        self.steps: list[int] = []

    def runner(self, size: int) -> Callable[[int], None]:
        def step(_number: int) -> None:
            self.steps.append(size)
            self.now += self.each * size

        return step

    def clock(self) -> float:
        return self.now


def test_two_steps_of_two_batches_are_timed_after_one_that_is_not() -> None:
    machine = Machine(0.01)
    timing = time_steps([2, 8], machine.runner, machine.clock)
    assert machine.steps == [2, 2, 2, 8, 8]
    assert timing.of(64).expected == pytest.approx(0.64)
    assert timing.words == "2 and 8 images"


def test_a_slow_machine_times_less_and_a_control_without_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(10.0)
    timing = time_steps([2, 8], machine.runner, machine.clock)
    assert machine.steps == [2, 2]
    found = timing.of(64)
    assert found.low < found.expected == pytest.approx(640.0)
    monkeypatch.setattr(plan_times, "_TIMED_SECONDS", float("inf"))
    machine = Machine(10.0)
    time_steps([2, 8], machine.runner, machine.clock)
    assert machine.steps == [2, 2, 2, 8, 8]


@pytest.mark.parametrize("preset", ["cifar10", "fashion-mnist", "quickstart"])
def test_what_is_timed_is_a_few_images(preset: str) -> None:
    config = build_config(read_preset(preset))
    estimates = plan.Estimates(config)
    for configured in (config.search.batch_size, config.retrain.batch_size):
        sizes = estimates._batches(configured)
        size = plan.data_shape(config.data).image_size
        assert sizes == ([configured] if preset == "quickstart" else [2, 8])
        assert all(batch * size**2 <= plan.MEASURED_PIXELS for batch in sizes)


CIFAR = {"data": {"name": "cifar10"}}


def linear(config: Config, search: float, retrain: float) -> float:
    """Seconds that grow with epochs, draws and images."""
    images = config.data.train_images or 50_000
    return images * (
        search * config.search.epochs * config.search.draws
        + retrain * (config.retrain.epochs - config.retrain.warmup_epochs)
    )


def test_each_key_is_offered_with_what_it_saves() -> None:
    config = build_config(CIFAR)
    rows = shorter_settings(config, 50_000, linear)
    settings = {row["setting"]: row["saves_seconds"] for row in rows[:-1]}
    assert list(settings.values()) == sorted(settings.values(), reverse=True)
    assert {key.partition("=")[0] for key in settings} == {
        "search.epochs",
        "search.draws",
        "search.num_cells",
        "search.init_channels",
        "retrain.epochs",
        "retrain.num_cells",
        "retrain.init_channels",
        "data.train_images",
    }
    now = linear(config, 1.0, 1.0)
    for setting, saved in settings.items():
        changed = build_config(CIFAR, [setting])
        if "num_cells" not in setting and "init_channels" not in setting:
            assert saved == pytest.approx(now - linear(changed, 1.0, 1.0))
        assert 0 < saved < now
    small = read_preset("small")
    assert settings["retrain.num_cells=6"] == pytest.approx(
        linear(config, 0.0, 1.0) * (1 - small["retrain"]["num_cells"] / 20)
    )
    assert rows[-1]["preset"] == "small"
    assert rows[-1]["seconds"] < now - max(settings.values())


def test_a_key_that_is_not_read_or_saves_nothing_is_not_offered() -> None:
    config = build_config({**CIFAR, "search": {"method": "darts"}, "retrain": {"epochs": 5}})
    settings = [row.get("setting", "") for row in shorter_settings(config, 5_000, linear)]
    keys = {setting.partition("=")[0] for setting in settings}
    assert "search.epochs" in keys
    assert not keys & {"search.draws", "retrain.epochs", "data.train_images"}


def test_what_is_small_already_is_offered_nothing() -> None:
    assert shorter_settings(build_config(read_preset("small")), 3_000, linear) == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("folder", "d2nas run small --data-root DIR takes about 20 min"),
        ("cifar10", "d2nas run small --set data.name=cifar10 takes about 20 min"),
    ],
)
def test_what_shortens_a_plan_is_told(name: str, command: str) -> None:
    rows = [
        {"setting": "retrain.epochs=25", "instead_of": 600, "saves_seconds": 2 * DAY},
        {"preset": "small", "seconds": 1200.0},
    ]
    lines = shorter_lines({"shorter": rows}, name)
    assert lines[1:] == ["  2.0 days: --set retrain.epochs=25 (now 600)", command]
    assert shorter_lines({"shorter": []}, name) == []


@pytest.mark.parametrize("days", [0.5, 1.5])
def test_only_a_plan_above_a_day_has_them(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: Place,
    days: float,
) -> None:
    seconds = days * DAY / 5
    row = {"steps": 1, "seconds": seconds, "seconds_range": [seconds / 2, 2 * seconds], "note": "x"}
    offered = [{"setting": "retrain.epochs=1", "instead_of": 3, "saves_seconds": DAY}]
    monkeypatch.setattr(plan.Estimates, "of", lambda *_: dict(row))
    monkeypatch.setattr(plan.Estimates, "shorter", lambda _: offered)
    assert place.run("run", str(place.preset), "--plan") == 0
    told = capfd.readouterr().out
    assert ("--set retrain.epochs=1" in told) == (days > 1)
    whole = Seconds(days * DAY, days * DAY / 2, 2 * days * DAY)
    assert f"{duration(whole.expected)}\t\t0 MiB\t{range_in_words(whole)}" in told


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for load, told in ((1.5, False), (9.0, True)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert (busy_line() is not None) == told
    assert "load 9 on 2 cores" in str(busy_line())


def multiply_adds(values: dict[str, Any], images: int) -> Iterator[float]:
    """Multiply-adds of a search's passes, and of a training, forward alone, about."""
    config = build_config(values)
    for part, passes in (
        (config.search, config.search.epochs * config.search.draws * 2 * images / 2),
        (config.retrain, config.retrain.epochs * images),
    ):
        network = Network(
            Genotype.published("DARTS_V2"),
            num_cells=part.num_cells,
            init_channels=part.init_channels,
            num_classes=10,
            in_channels=3,
        )
        yield passes * count_cost(network, (3, 32, 32)).macs


def test_small_is_small_and_the_control_folder_is_not() -> None:
    """benchmarks/README.md has the minutes that small's took."""
    bound = 4e12
    assert sum(multiply_adds(read_preset("small"), 3_000)) < bound
    assert sum(multiply_adds(read_preset("folder"), 3_000)) > 5 * bound


def retraining_of_small(**retrain: Any) -> dict[str, Any]:
    config = build_config(
        {
            "data": {"name": "fashion-mnist"},
            "derive": {"model": SMALL},
            "retrain": {"batch_size": 16, **retrain},
        }
    )
    return plan.Estimates(config).of("retrain", 0)


def test_a_library_s_network_is_timed_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def network_of(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
        asked.append(pretrained)
        return small_network(name, num_classes, in_channels, pretrained)

    monkeypatch.setattr(library_network, "_torchvision", network_of)
    found = retraining_of_small(pretrained=True)
    assert asked
    assert not any(asked)  # nothing is downloaded for a plan
    assert found["note"].startswith(f"timed with {SMALL} and ")
    assert found["seconds"] > 0
    # The memory is that of a step that is computed, with weights, gradients and momentum.
    network = small_network(SMALL, 10, 1, False)
    weights = sum(parameter.numel() for parameter in network.parameters())
    images = torch.zeros(16, 1, 28, 28)

    def step() -> None:
        torch.autograd.backward(
            nn.functional.cross_entropy(network(images), torch.zeros(16, dtype=torch.int64))
        )

    computed = peak_memory(step, alive=[images]) + 12 * weights
    assert found["peak_bytes"] == pytest.approx(computed, rel=0.1)
    checkpoints = (plan.KEPT_CHECKPOINTS + 1) * 8 * weights + 4 * weights
    assert found["disk_bytes"] == pytest.approx(checkpoints, rel=0.1)


class Asking(nn.Module):
    """A layer that looks at a number to know what to do."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.device.type == "meta" or float(x.sum().item()) < 1e9 else 2 * x


def test_memory_that_depends_on_numbers_is_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        library_network,
        "_torchvision",
        lambda *sizes: nn.Sequential(Asking(), small_network(*sizes)),
    )
    found = retraining_of_small()
    assert "peak_bytes" not in found
    assert found["note"].endswith(", peak memory not estimated")
    assert found["seconds"] > 0


def test_a_library_that_looks_at_its_first_weights_is_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def network_of(*sizes: Any) -> nn.Module:
        network = small_network(*sizes)
        for parameter in network.parameters():
            if parameter.device.type != "meta":
                assert parameter.abs().max().item() < 1e9
        return network

    monkeypatch.setattr(library_network, "_torchvision", network_of)
    assert retraining_of_small()["peak_bytes"] > 0

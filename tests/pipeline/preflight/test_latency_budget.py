"""A latency budget before training: what is too slow is not trained; a width that fits is named."""

from collections.abc import Callable

import fake_runtime
import pytest
from fake_runtime import Situation
from onnx_models import hand_made_model
from toy import TRAINING_BEGINS, Place, end_before_training

from d2nas.config import build_config
from d2nas.errors import ValidationFailedError
from d2nas.genotype import Genotype
from pipeline.gate import timing
from pipeline.gate.timing import Latencies
from pipeline.onnx_io.devices import CpuDevice
from pipeline.onnx_io.latency import CpuLatency
from pipeline.preflight import latency_budget as budget
from pipeline.preflight.latency_budget import (
    Untrained,
    UntrainedLatency,
    fit_size,
    size_line,
    widest_that_fits,
)


@pytest.fixture(autouse=True)
def _without_a_limit_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.run._target_of", lambda *_: None)


def p99(milliseconds: float) -> UntrainedLatency:
    return UntrainedLatency(milliseconds, None, "CPU Test")


def tried(
    takes: Callable[[int], float], limit: float, width: int, trials: int = 4
) -> tuple[tuple[int, float] | None, list[int]]:
    widths: list[int] = []

    def measure(init_channels: int) -> UntrainedLatency:
        widths.append(init_channels)
        return p99(takes(init_channels))

    found = widest_that_fits(measure, limit, width, p99(takes(width)), trials)
    return (None if found is None else (found[0], found[1].milliseconds)), widths


@pytest.mark.parametrize("limit", [2.0, 3.1, 5.0, 8.9])
def test_where_time_grows_with_width_the_widest_is_found(limit: float) -> None:
    fits, widths = tried(lambda width: 0.25 * width, limit, 36)
    assert fits is not None
    width, found = fits
    assert found <= limit < 0.25 * (width + 4)
    assert len(widths) <= 4
    assert len(set(widths)) == len(widths)


def test_where_each_run_has_a_price_of_its_own_one_that_fits_is_still_found() -> None:
    fits, widths = tried(lambda width: 3.0 + 0.1 * width, 5.0, 36)
    assert fits is not None
    assert fits[1] <= 5.0
    assert fits[0] == 20
    assert all(width % 4 == 0 and 0 < width < 36 for width in widths)


def test_where_no_width_fits_none_is_named() -> None:
    fits, widths = tried(lambda width: 10.0, 5.0, 36)
    assert fits is None
    assert len(widths) <= 4
    assert tried(lambda width: 10.0, 5.0, 4) == (None, [])


def test_a_network_that_is_too_slow_is_not_trained(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's 8 channels take 2 ms here, whatever the machine."""
    took = {8: p99(2.0), 4: p99(1.0)}
    monkeypatch.setattr(budget, "_untrained", lambda config, genotype, width, *sizes: width)
    monkeypatch.setattr(budget, "_measure", lambda config, width: took[width])
    words = ("run", str(place.preset), "--max-p99-ms", "1.5", "--batch", "4")
    given = ("--set", "retrain.init_channels=8")
    assert place.run(*words, *given) == 3
    talk = capfd.readouterr().err
    assert "p99 2 ms > 1.5 ms for batch 4 on CPU Test: it was not trained" in talk
    assert "retrain.init_channels=4 fits: p99 1 ms" in talk
    stages = {row["ref"].split("/")[1].split("@")[0] for row in place.json(capfd, "ls")}
    assert stages == {"search", "derive"}
    # What is proposed is found, and trained.
    trained: list[str] = []
    monkeypatch.setattr(
        "pipeline.running.runner.run_stage", lambda stage, context: trained.append(stage) or 1 / 0
    )
    place.run(*words, "--set", "retrain.init_channels=4")
    assert trained == ["retrain"]


def network_of(takes: Callable[[int, int], float], limit: float, *overrides: str) -> Untrained:
    """A network of 20 x 36 that takes what a function of cells and channels says."""
    config = build_config({}, [f"validate.max_p99_ms={limit}", *overrides])
    network = Untrained(config, Genotype.published("DARTS_V2"), 3, 32, 10)
    object.__setattr__(network, "measure", lambda cells, width: p99(takes(cells, width)))
    return network


@pytest.mark.parametrize(
    ("limit", "chosen", "others"),
    [
        (8.0, (20, 36), []),
        (5.0, (20, 24), [(13, 36), (6, 36)]),
        (2.6, (13, 20), [(6, 36), (20, 12)]),  # a third of the width is too narrow
        (1.0, (6, 16), [(20, 4), (13, 4)]),
        (0.5, (6, 8), []),
        (2.2, (6, 36), [(13, 16), (20, 8)]),
    ],
)
def test_a_size_that_fits_is_chosen_and_others_are_told(
    limit: float, chosen: tuple[int, int], others: list[tuple[int, int]]
) -> None:
    network = network_of(lambda cells, width: 0.01 * cells * width, limit)
    found = fit_size(network)
    assert all(one.latency.milliseconds <= limit for one in found)
    assert [(one.num_cells, one.init_channels) for one in found] == [chosen, *others]
    line = size_line(network.config.retrain, found)
    if chosen == (20, 36):
        assert line is None
    else:
        assert line is not None
        assert line.startswith(
            "size: 20 cells x 36 channels are too slow; {} cells x {} channels: ".format(*chosen)
        )
        assert line.count(" cells x ") == 2 + len(others)


def test_where_no_size_fits_nothing_is_trained() -> None:
    network = network_of(lambda cells, width: 7.0, 5.0)
    with pytest.raises(ValidationFailedError, match="7 ms > 5 ms") as caught:
        fit_size(network)
    assert caught.value.hint == "no smaller network was found that fits"


def test_a_size_that_fits_is_trained_and_kept(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's 8 channels are too slow: 4 are trained. Again: nothing is timed, nothing runs."""
    took = {8: p99(2.0), 4: p99(1.0)}
    timed: list[int] = []

    def measure(_config: object, width: int) -> UntrainedLatency:
        timed.append(width)
        return took[width]

    monkeypatch.setattr(budget, "_untrained", lambda config, genotype, width, *sizes: width)
    monkeypatch.setattr(budget, "_measure", measure)
    words = ("run", str(place.preset), "--max-p99-ms", "60000", "--batch", "1")
    monkeypatch.setattr(Untrained, "limit", 1.5)
    assert place.run(*words) == 0
    talk = capfd.readouterr().err
    assert "size: 4 cells x 8 channels are too slow; 4 cells x 4 channels: p99 1 ms is" in talk
    assert "budget: p99 1 ms of" in talk
    (trained,) = (row for row in place.json(capfd, "ls") if "/retrain@" in row["ref"])
    shown = place.json(capfd, "show", trained["ref"])
    assert shown["config"]["retrain"]["init_channels"] == 4
    timed.clear()
    assert place.json(capfd, *words)["executed"] == []
    assert timed == []
    monkeypatch.setattr(Untrained, "limit", 2.5)
    assert place.run(*words, "--fresh") == 0
    assert timed == [8]


def test_a_network_that_is_trained_already_is_not_timed_again(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValidationFailedError("timed again")

    for check in ("check_budget", "fit_size"):
        monkeypatch.setattr(budget, check, refuse)
    words = ("run", str(finished.preset), "--max-p99-ms", "60000")
    assert finished.run(*words) == 0
    assert "timed again" not in capfd.readouterr().err
    # Control: a changed training would be.
    assert finished.run(*words, "--set", "retrain.epochs=4") == 3
    assert "timed again" in capfd.readouterr().err


def test_the_untrained_network_is_really_measured(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of the toy, untrained, is timed; then the run ends where training would begin."""
    end_before_training(monkeypatch)
    words = ("run", str(place.preset), "--max-p99-ms", "60000")
    assert place.run(*words) == 3
    said = capfd.readouterr().err.splitlines()
    (line,) = (line for line in said if line.startswith("budget: "))
    assert line.endswith(", untrained")
    assert " ms of 60000 ms for batch 1 on CPU " in line
    assert any(TRAINING_BEGINS in line for line in said)


def test_the_mode_that_is_held_against_the_budget_is_the_one_that_would_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other mode has the smaller p99 and the larger median: it would not be chosen."""

    def record(mode: str, median: float, slowest: float) -> CpuLatency:
        times = (int(median * 1e6),) * 600 + (int(slowest * 1e6),) * 62
        return CpuLatency(1, "CPU", times, 20, mode, "host", CpuDevice("Test", 2))

    records = {"plain": record("plain", 3.0, 3.1), "nhwc": record("nhwc", 2.0, 10.0)}
    fake_runtime.install(Situation(), monkeypatch)
    model = hand_made_model().SerializeToString()
    monkeypatch.setattr(budget, "_time", lambda session, config: records[session.mode])
    config = build_config({}, ["validate.device=cuda", "validate.max_p99_ms=5"])
    found = budget._measure(config, model)
    assert (found.milliseconds, found.fastest_of) == (10.0, None)
    measured = Latencies(list(records.values()))
    measured.best_mode = timing._best_mode(measured.records, 1)
    assert measured.of(1, "host").percentile_ms(99) == found.milliseconds
    # Control: by the smallest p99 the budget would have been kept.
    monkeypatch.setattr(timing, "quickest", lambda found: found[0])
    assert budget._measure(config, model).milliseconds == 3.1

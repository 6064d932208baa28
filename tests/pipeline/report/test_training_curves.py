"""The picture of a training, and what the terminal says of its speed."""

import xml.etree.ElementTree as ElementTree

import pytest
from toy import Place

from pipeline.console import Console
from pipeline.report.training_curves import RETRAIN_PANELS, SEARCH_PANELS, draw_curves
from pipeline.store import Store


def points(path: str) -> list[tuple[str, float, float]]:
    """A path's absolute points with the command before each."""
    words = path.replace("h1", "").split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return [(x[0], float(x[1:]), float(y)) for x, y in pairs]


def lines(svg: str) -> list[list[tuple[str, float, float]]]:
    root = ElementTree.fromstring(svg)
    found = root.iter("{http://www.w3.org/2000/svg}path")
    return [points(path.attrib["d"]) for path in found if path.attrib["class"] == "line"]


def test_higher_values_stand_higher_and_later_ones_to_the_right() -> None:
    rows = [{"loss": 3.0 - epoch, "accuracy": 0.1 + 0.4 * epoch} for epoch in range(3)]
    loss, accuracy = lines(draw_curves(rows, RETRAIN_PANELS))
    for line, sign in ((loss, 1), (accuracy, -1)):
        assert [command for command, _, _ in line] == ["M", "L", "L"]
        assert line[0][1] < line[1][1] < line[2][1]
        assert sign * line[0][2] < sign * line[1][2] < sign * line[2][2]
    # SVG's y grows downwards, and both panels use the same height.
    assert loss[0][2] == accuracy[2][2]
    assert "epoch 3" in draw_curves(rows, RETRAIN_PANELS)


def test_what_was_not_measured_is_a_gap() -> None:
    rows = [
        {"weight_loss": value, "arch_loss": None if value > 2 else value, "weight_accuracy": 0.5}
        for value in (4.0, 3.0, 2.0, 1.0)
    ]
    drawn = lines(draw_curves(rows, SEARCH_PANELS))
    assert [len(line) for line in drawn] == [4, 2, 4, 0]
    assert drawn[1][0][:2] == ("M", drawn[0][2][1])


@pytest.mark.parametrize("rows", [[], [{"loss": 1.0, "accuracy": 1.0}], [{"loss": 2.0}] * 3])
def test_few_or_equal_rows_can_be_drawn(rows: list[dict[str, float]]) -> None:
    assert len(lines(draw_curves(rows, RETRAIN_PANELS))) == 2


def test_search_and_retrain_versions_hold_their_curves(finished: Place) -> None:
    store = Store(finished.store)
    for stage, count in (("search", 4), ("retrain", 2)):
        drawn = lines(store.open(f"toy/{stage}").read("curves.svg").decode())
        assert len(drawn) == count
        assert all(len(line) >= 2 for line in drawn)


def test_speed_is_told_in_images_where_steps_have_some(capfd: pytest.CaptureFixture[str]) -> None:
    row = {"epoch": 0, "loss": 1.0, "accuracy": 0.5, "lr": 0.025, "clip_rate": 0.25}
    for images, rate in ((64, "32 images/s"), (0, "0.50 steps/s")):
        times = iter([0.0, 20.0])
        console = Console(clock=lambda times=times: next(times))
        console.stage_begins("retrain", 20, 0, "step", images)
        console.stage_advances("retrain", 10, row)
        talk = capfd.readouterr().err
        assert rate in talk
        assert "20 s left" in talk
        assert "lr 0.025, clipped 25 %" in talk

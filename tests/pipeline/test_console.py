"""What a person sees: bars on a terminal, lines elsewhere, rows that can be copied and searched."""

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console as RichConsole
from toy import Place

from d2nas.errors import ValidationFailedError
from d2nas.genotype import Genotype
from pipeline import console as console_module
from pipeline.console import LINE_SECONDS, STEP_LINE_SECONDS, Console
from pipeline.streams import guarded_streams

ROW = {"epoch": 0, "loss": 1.0, "accuracy": 0.5, "lr": 0.025, "clip_rate": 0.25}
SEARCH_ROW = {
    "epoch": 1,
    "weight_loss": 1.0,
    "arch_loss": None,
    "weight_accuracy": 0.5,
    "arch_accuracy": None,
    "temperature": 5.0,
    "op_entropy": {"normal": 1.9, "reduce": 1.9},
    "clip_rate": 0.0,
    "peak_bytes": 2**20,
    "parameterless_normal": 3,
    "genotype": Genotype.published("DARTS_V2").to_dict(),
}
REFERENCE = "a-run-with-a-rather-long-name/validate@v12"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal of 80 columns, results and talk alike."""
    written = io.StringIO()

    def on_terminal(**options: Any) -> RichConsole:
        options.pop("stderr", None)
        return RichConsole(
            file=written, force_terminal=True, width=80, color_system=None, **options
        )

    monkeypatch.setattr(console_module, "RichConsole", on_terminal)
    return written


def clocked(*times: float) -> Console:
    """A console whose clock shows these times, one after the other."""
    left = iter(times)
    return Console(clock=lambda: next(left))


def test_a_long_epoch_is_not_silent(capfd: pytest.CaptureFixture[str]) -> None:
    soon, late = STEP_LINE_SECONDS - 1.0, STEP_LINE_SECONDS + 1.0
    console = clocked(0.0, soon, late, late + 1.0)
    console.stage_begins("retrain", 400, 0, "step", 64, epochs=4)
    for done in (10, 110, 111):
        console.stage_advances("retrain", done, None)
    (line,) = capfd.readouterr().err.splitlines()
    assert "step 110/400" in line
    assert line.endswith("in epoch 2/4")


def test_epochs_are_told_now_and_then_and_the_last_always(
    capfd: pytest.CaptureFixture[str],
) -> None:
    console = clocked(0.0, LINE_SECONDS - 1.0, LINE_SECONDS + 1.0, LINE_SECONDS + 2.0)
    console.stage_begins("retrain", 30, 0, "step", epochs=3)
    for epoch in range(3):
        console.stage_advances("retrain", 10 * (epoch + 1), {**ROW, "epoch": epoch})
    _, first, last = capfd.readouterr().err.split("retrain: ")
    assert "epoch 2/3" in first
    assert "epoch 3/3" in last


def test_a_terminal_has_a_bar_of_epochs_and_one_of_steps(terminal: io.StringIO) -> None:
    console = Console()
    console.stage_begins("retrain", 40, 10, "step", 64, epochs=4)
    console.stage_advances("retrain", 20, ROW)
    console.close()
    shown = terminal.getvalue()
    assert "2/4" in shown
    assert "20/40" in shown


def test_a_stage_that_becomes_longer_is_told(terminal: io.StringIO) -> None:
    console = Console()
    console.stage_begins("search", 40, 30, "step", 64, epochs=4)
    console.stage_changes("search", 60, 6)
    console.stage_advances("search", 50, SEARCH_ROW)
    console.close()
    shown = terminal.getvalue()
    assert "search: now 60 steps, 6 epochs" in shown
    assert "50/60" in shown
    assert "5/6" in shown


def test_lines_of_progress_count_to_the_new_end(capfd: pytest.CaptureFixture[str]) -> None:
    console = clocked(0.0, 1.0)
    console.stage_begins("search", 40, 0, "step", epochs=4)
    console.stage_changes("search", 20, 2)
    console.stage_advances("search", 20, {**SEARCH_ROW, "epoch": 1})
    told = " ".join(capfd.readouterr().err.split())
    assert "search: now 20 steps, 2 epochs" in told
    assert "step 20/20" in told
    assert "epoch 2/2" in told


# The longest that is met: 600 epochs, losses of a diverging start.
LONG_ROW = {**ROW, "epoch": 599, "loss": 1234.5678, "lr": 0.00025, "clip_rate": 1.0}
LONG_SEARCH_ROW = {**SEARCH_ROW, "epoch": 599, "weight_loss": 1234.5678, "arch_loss": 1234.5678}


@pytest.mark.parametrize("row", [LONG_ROW, LONG_SEARCH_ROW])
def test_an_epochs_line_fits_a_terminal(terminal: io.StringIO, row: dict[str, Any]) -> None:
    console = Console()
    console.stage_begins("retrain", 6000, 0, "step", epochs=600)
    console.stage_advances("retrain", 6000, row)
    console.close()
    (line,) = [line for line in terminal.getvalue().splitlines() if "loss" in line]
    assert "epoch 600/600, " in line  # behind what moves the cursor
    assert ("parameterless 3/8" in line) == (row is LONG_SEARCH_ROW)


@pytest.mark.parametrize("row", [LONG_ROW, LONG_SEARCH_ROW])
def test_a_line_of_progress_keeps_to_80_columns(
    row: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    console = clocked(0.0, 1e-6)
    console.stage_begins("retrain", 234_000, 0, "step", 128, epochs=600)
    console.stage_advances("retrain", 234_000, row)
    told = capfd.readouterr().err
    assert max(map(len, told.splitlines())) <= 80
    assert len(" ".join(told.split())) > 80  # the control: it had to be broken


def test_what_a_row_is_called_is_folded_last(terminal: io.StringIO) -> None:
    Console().table("versions", ("version", "metrics"), [(REFERENCE, "many words " * 20)])
    assert REFERENCE in terminal.getvalue()


def test_a_study_that_writes_method_for_methods_is_told(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    study = place.folder / "study.toml"
    study.write_text('method = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n')
    assert place.run("study", str(study)) == 2
    assert "the axis of the grid is methods" in capfd.readouterr().err


def test_a_finished_run_says_what_to_do_next(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("run", str(finished.preset)) == 0
    (line,) = [one for one in capfd.readouterr().err.splitlines() if one.startswith("next:")]
    for word in ("report.html", "verify", "predict", "serve", str(finished.exported / "toy")):
        assert word in line


def test_a_stage_that_is_run_alone_says_what_to_do_next(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = ("search", "derive", "retrain", "export")
    for stage, following in zip(stages, (*stages[1:], "validate"), strict=True):
        words = str(finished.preset) if stage == "search" else "toy"
        assert finished.run(stage, words) == 0
        assert f"next: d2nas {following} toy" in capfd.readouterr().err.splitlines()


def test_every_row_of_a_prediction_names_its_picture(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from pipeline.cli import run

    pictures = [finished.folder / name for name in ("a.png", "b.png")]
    for picture in pictures:
        Image.new("L", (8, 8), 128).save(picture)
    bundle = str(finished.exported / "toy")
    capfd.readouterr()
    assert run(["predict", bundle, *map(str, pictures), "--top", "3"]) == 0
    header, *rows = capfd.readouterr().out.splitlines()
    assert header.split("\t") == ["image", "class", "probability"]
    assert [row.split("\t")[0] for row in rows] == [str(one) for one in pictures for _ in range(3)]


ITEMS = [{"image": "a\u2028b\x85\n.png", "rows": [1, {}]}, [], "line\r\nline", {"c": {"d": None}}]


@pytest.mark.parametrize("parts", [[], [[]], [ITEMS], [[], ITEMS[:1], [], ITEMS[1:]]])
def test_a_list_in_parts_is_the_list(
    parts: list[list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    console = Console()
    console.data_parts(parts)
    in_parts = capfd.readouterr().out
    console.data([item for part in parts for item in part])
    assert in_parts == capfd.readouterr().out


@pytest.mark.parametrize("given", [[], ITEMS[:2]])
def test_a_list_whose_later_parts_fail_is_closed_or_not_begun(
    given: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    def parts() -> Iterator[list[Any]]:
        yield given
        raise ValidationFailedError("later")

    with pytest.raises(ValidationFailedError):
        Console().data_parts(parts())
    written = capfd.readouterr().out
    assert (json.loads(written) == given) if given else (written == "")


@pytest.mark.parametrize("what", ["data", "table"])
def test_parts_are_written_as_they_come_and_end_with_their_reader(what: str) -> None:
    reader, writer = os.pipe()
    taken: list[str] = []

    def parts() -> Iterator[list[list[str]]]:
        yield [["first"]]
        taken.append(os.read(reader, 1000).decode())
        os.close(reader)
        yield [["second"]]
        pytest.fail("nobody reads any more")

    with pytest.MonkeyPatch.context() as patch, open(writer, "w") as stdout:
        patch.setattr("sys.stdout", stdout)
        with guarded_streams():
            if what == "data":
                Console().data_parts(parts())
            else:
                Console().table_parts("title", ("column",), parts())
    assert "first" in taken[0]


def test_a_terminal_gets_a_table_for_each_part(terminal: io.StringIO) -> None:
    parts = [[("a.png", "cat")], [("b.png", "dog")]]
    Console().table_parts("bundle", ("image", "class"), parts)
    assert terminal.getvalue().count("image") == 2
    for word in ("a.png", "b.png", "cat", "dog"):
        assert word in terminal.getvalue()

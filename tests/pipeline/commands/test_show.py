"""``show RUN`` while a run trains, or after it was interrupted: its last epoch, its cell so far."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyPlace

from d2nas.genotype import Genotype
from pipeline.running.events import ROWS_FILE
from pipeline.store import Store


def rows_file(place: TinyPlace, stage: str = "search") -> Path:
    return place.store / "events" / "tiny" / stage / ROWS_FILE


def cut(place: TinyPlace) -> list[Any]:
    """Make the rows end in the middle of the third epoch's; returns those of the first two."""
    lines = rows_file(place).read_bytes().splitlines(keepends=True)
    rows_file(place).write_bytes(lines[0] + lines[1] + lines[2][:20])
    return [json.loads(line) for line in lines[:2]]


def test_a_training_that_has_not_finished_shows_its_cell_so_far(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    before = tiny.json(capfd, "show", "tiny")
    assert "unfinished" not in before  # control: all of it is in a version
    rows = cut(tiny)
    assert rows[1]["genotype"]
    shown = tiny.json(capfd, "show", "tiny")
    assert shown == before | {"unfinished": {"stage": "search", "row": rows[1]}}
    assert tiny.run("show", "tiny") == 0
    lines = capfd.readouterr().out.splitlines()
    genotype = Genotype.from_dict(rows[1]["genotype"])
    (told,) = (line for line in lines if line.startswith("genotype so far: "))
    assert genotype.describe("normal") in told
    assert genotype.describe("reduce") in told
    (told,) = (line for line in lines if line.startswith("search, not finished: "))
    assert "epoch=1" in told
    # A version that is named is shown as it is.
    assert "unfinished" not in tiny.json(capfd, "show", "tiny/search@v1")


def test_a_run_whose_first_training_runs_is_shown(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = cut(tiny)
    for folder in ("runs", "versions", "names"):
        shutil.rmtree(tiny.store / folder)
    unfinished = {"stage": "search", "row": rows[1]}
    assert tiny.json(capfd, "show", "tiny") == {"run": "tiny", "unfinished": unfinished}
    assert tiny.run("show", "tiny") == 0
    assert "genotype so far: " in capfd.readouterr().out
    rows_file(tiny).unlink()  # control
    assert tiny.run("show", "tiny") == 2
    assert Store(tiny.store).references() == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", None),
        (b"half", None),
        (b"[]\n", None),
        (b"{\n", None),
        (b'{"a":NaN}\n', None),
        (b'{"a":"\\ud800"}\n', None),
        (b'{"genotype":1}\n', "genotype so far: 1"),
        (b'{"genotype":{"normal":7}}\n', "genotype so far: normal=7"),
        (b'{"epoch":"x"}\n', "search, not finished: epoch=x"),
    ],
)
def test_rows_of_any_content_are_no_bug(
    content: bytes, told: str | None, tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    rows_file(tiny).write_bytes(content)
    assert tiny.run("show", "tiny") == 0
    out = capfd.readouterr().out
    assert ("not finished" in out) == (told is not None)
    assert told is None or told in out


def test_rows_that_are_a_link_are_not_followed(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    cut(tiny)
    path = rows_file(tiny)
    path.rename(tiny.folder / "moved")
    path.symlink_to(tiny.folder / "moved")
    assert "unfinished" not in tiny.json(capfd, "show", "tiny")

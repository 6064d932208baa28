"""``retrain --genotype``: a known cell, trained, exported and validated without a search."""

import json
from pathlib import Path

import pytest
from printed_genotypes import printed
from toy import TOY, Place

from d2nas import Genotype
from d2nas.config import build_config
from d2nas.errors import ConfigError
from pipeline.stages import BY_NAME, stages_of_run
from pipeline.store import Store


def genotype_of(place: Place, reference: str) -> Genotype:
    """The genotype that a stored network was built from."""
    return Genotype.from_dict(
        json.loads(Store(place.store).open(reference).read("network.json"))["genotype"]
    )


@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet_A"])
def test_a_published_cell_goes_all_the_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    run = f"toy-{name.lower().replace('_', '-')}"
    small = "num_cells = 2\ninit_channels = 4"
    place = Place(tmp_path, preset=TOY.replace("num_cells = 4\ninit_channels = 8", small))
    shown = place.json(capfd, "retrain", str(place.preset), "--genotype", name)
    assert shown["versions"] == {
        "derive": f"{run}/derive@v1",
        "retrain": f"{run}/retrain@v1",
    }
    assert genotype_of(place, f"{run}/retrain") == Genotype.published(name)
    assert place.run("export", run) == 0
    report = place.json(capfd, "validate", run)
    assert Genotype.from_dict(report["genotype"]) == Genotype.published(name)
    card = (place.exported / run / "MODEL_CARD.md").read_text()
    assert f"not searched here (given: {name})" in card
    assert "for the architecture" not in card
    # The same command has nothing left to do; a run of the preset with that cell neither.
    arguments = ("--name", run, "--set", f"derive.genotype={name}")
    again = place.json(capfd, "run", str(place.preset), *arguments)
    assert again["executed"] == []
    assert "search" not in again["versions"]
    # Deriving again finds the given cell, and another one needs a search that was not made.
    assert place.json(capfd, "derive", run)["executed"] == []
    assert place.run("derive", run, "--set", "derive.genotype=none") == 2
    assert "was made without a search version" in capfd.readouterr().err


def test_a_cell_of_a_file_or_of_another_run(
    finished: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = genotype_of(finished, "toy/retrain")
    file = tmp_path / "My Cell.json"
    file.write_text(found.to_json())
    preset = str(finished.preset)
    quick = ("--set", "retrain.epochs=1", "--set", "retrain.warmup_epochs=0")
    shown = finished.json(capfd, "retrain", preset, "--genotype", str(file), *quick)
    assert shown["versions"]["retrain"] == "toy-my-cell/retrain@v1"
    assert genotype_of(finished, "toy-my-cell/retrain") == found
    for target in ("toy/derive@v1", "toy", Store(finished.store).open("toy/derive").id):
        shown = finished.json(
            capfd, "retrain", preset, "--genotype", target, "--name", "other", *quick
        )
        assert shown["versions"] == {
            "derive": "toy/derive@v1",
            "retrain": "other/retrain@v1",
        }
    # What was found by a search keeps its search in its lineage.
    described = finished.json(capfd, "show", "other/retrain")
    assert {entry["role"] for entry in described["lineage"]} == {"derive", "search"}
    assert finished.run("export", "other") == 0


def test_a_run_made_from_another_runs_cell_goes_on_from_it(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = ("--set", "retrain.epochs=1", "--set", "retrain.warmup_epochs=0")
    given = ("--genotype", "toy/derive", "--name", "other")
    assert finished.run("retrain", str(finished.preset), *given, *quick) == 0
    # The configuration is that of its training, not of the run that found the cell.
    again = finished.json(capfd, "retrain", "other")
    assert again["versions"] == {"derive": "toy/derive@v1", "retrain": "other/retrain@v1"}
    assert again["executed"] == []
    given = ("--genotype", "other", "--name", "third")
    shown = finished.json(capfd, "retrain", str(finished.preset), *given, *quick)
    assert shown["versions"] == {"derive": "toy/derive@v1", "retrain": "third/retrain@v1"}


def test_a_searched_cell_is_not_taken_over_by_a_given_one(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = str(finished.preset)
    assert finished.run("retrain", preset, "--genotype", "DARTS_V2", "--name", "toy") == 2
    told = capfd.readouterr().err
    assert "run toy: toy/derive@v1 was searched" in told
    assert "hint: --name NEW begins another run" in told
    assert finished.run("retrain", preset, "--genotype", "toy/derive", "--name", "toy") == 0


def test_a_run_stays_with_its_data(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    given = ("retrain", str(place.preset), "--genotype", "DARTS_V2", "--name", "one")
    assert place.run(*given) == 0
    other = ("--set", "data.name=fashion-mnist", "--data-root", "nowhere")
    assert place.run(*given, *other) == 2
    assert "one/derive@v1 is of data.name=digits, not fashion-mnist" in capfd.readouterr().err


def test_noise_and_a_batch_of_everything_are_told(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell = [["noise", 0], ["skip_connect", 1]] * 4
    file = tmp_path / "noisy.json"
    file.write_text(json.dumps({"normal": cell, "reduce": cell}))
    large = ("--set", "retrain.batch_size=5000")
    assert place.run("retrain", str(place.preset), "--genotype", str(file), *large) == 0
    told = capfd.readouterr().err
    assert "warning: a cell with noise can be trained, but not exported" in told
    assert "images are one batch" in told
    assert place.run("export", "toy-noisy") == 2
    assert "a genotype with noise cannot be exported" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--genotype", "DARTS_V2", "--set", "derive.genotype=DARTS_V1"), "=DARTS_V1"),
        (("--genotype", "DARTS_V3"), "no published genotype 'DARTS_V3'"),
        (("--genotype", "missing.json"), "missing.json: No such file"),
        (("--genotype", "toy/search@v1"), "of search, a derive version"),
        (("--genotype", "nobody/derive@v1"), "there is no version 'nobody/derive@v1'"),
        (("--name", "x"), "--name is for --genotype"),
    ],
)
def test_what_is_no_genotype_is_refused(
    finished: Place,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    assert finished.run("retrain", str(finished.preset), *arguments) == 2
    assert reason in capfd.readouterr().err
    assert finished.run("retrain") == 2


def test_a_preset_where_a_run_is_meant(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.run("retrain", "quickstart") == 2
    assert "hint: quickstart is a preset: d2nas run quickstart" in capfd.readouterr().err


def test_damaged_genotype_files_are_usage_errors(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number, text in enumerate(("{", '{"normal": []}', "3")):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        assert place.run("retrain", str(place.preset), "--genotype", str(file)) == 2
        assert f"{number}.json" in capfd.readouterr().err


def test_a_genotypes_file_of_another_name_is_told_with_the_form(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "cell.txt"
    file.write_text(Genotype.published("DARTS_V1").to_json())
    assert place.run("retrain", str(place.preset), "--genotype", str(file)) == 2
    error, hint = capfd.readouterr().err.splitlines()[-2:]
    assert "cell.txt: a genotype in JSON is not supported in a file of this name" in error
    assert hint.endswith("name it .json")
    assert place.run("retrain", str(place.preset), "--genotype", f"{file}x") == 2  # the control
    assert "name it .json" not in capfd.readouterr().err


def test_a_printed_cell_is_trained_as_text_and_from_a_file(
    place: Place, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cells = Genotype.published("PDARTS")
    text = printed(cells, start="My_Cell = ").replace("), (", "),  # an edge / of two\n  (")
    file = tmp_path / "cells.py"
    file.write_text(text)
    preset = str(place.preset)
    shown = place.json(capfd, "retrain", preset, "--genotype", text)
    assert shown["versions"]["retrain"] == "toy-my-cell/retrain@v1"
    assert genotype_of(place, "toy-my-cell/retrain") == cells
    found_by = Store(place.store).open("toy-my-cell/derive").manifest.facts["found_by"]
    assert found_by == "given: My_Cell"
    for again in (text, str(file), "PDARTS", printed(cells, quote='"')):
        named = ("--genotype", again, "--name", "toy-my-cell")
        assert place.json(capfd, "retrain", preset, *named)["executed"] == []
    assert place.run("retrain", preset, "--genotype", printed(cells).replace("skip", "jump")) == 2
    assert "unknown operation 'jump_connect'" in capfd.readouterr().err
    both = ("--genotype", text, "--set", "derive.genotype=DARTS_V1")
    assert place.run("retrain", preset, *both) == 2
    assert all(len(line) < 300 for line in capfd.readouterr().err.splitlines())


def test_the_cells_decide_not_the_name_of_their_file(tmp_path: Path) -> None:
    file, text = tmp_path / "cell.json", printed(Genotype.published("DARTS_V2"))
    file.write_text(Genotype.published("DARTS_V2").to_json())
    by_name, by_file, by_text = (
        build_config({"derive": {"genotype": name}}) for name in ("DARTS_V2", str(file), text)
    )
    assert BY_NAME["derive"].config(by_name) == BY_NAME["derive"].config(by_file)
    assert BY_NAME["derive"].config(by_name) == BY_NAME["derive"].config(by_text)
    other = build_config({"derive": {"genotype": "DARTS_V1"}})
    assert BY_NAME["derive"].config(by_name) != BY_NAME["derive"].config(other)
    assert stages_of_run(by_name) == ("derive", "retrain", "export", "validate")
    with pytest.raises(ConfigError, match=r"derive\.candidates"):
        build_config({"derive": {"genotype": "DARTS_V2", "candidates": 2}})

"""Presets as files, their schema, and what the environment and the shell may say."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from toy import Place

from d2nas.config import RECIPES, build_config
from d2nas.data.sources import DATA_VARIABLE, data_folder
from pipeline import streams
from pipeline.cli import COMPLETION_VARIABLE, run
from pipeline.commands.configuration import configure
from pipeline.presets import preset_about, preset_names
from pipeline.presets.toml_files import file_schema


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copied_preset_is_the_preset(
    tmp_path: Path, preset: str, recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.toml"
    settings = [f"search.recipe={recipe}", "data.root=somewhere"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert run(["config", "cp", preset, str(file), *words]) == 0
    assert "d2nas run" in capfd.readouterr().err
    assert configure(str(file), []) == configure(preset, settings)
    # So it is with all that stands in comments.
    uncommented = re.sub(r"^# ([a-z0-9_]+ = )", r"\1", file.read_text(), flags=re.M)
    values = tomllib.loads(uncommented)
    assert values.pop("preset") == preset
    built = build_config(values)
    assert built == configure(preset, settings)
    assert len([key for section in values.values() for key in section]) > 80


def test_a_file_starts_from_another_and_none_is_written_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    first, second = tmp_path / "first.toml", tmp_path / "mine" / "second.toml"
    first.write_text('preset = "small"\n[retrain]\nepochs = 7\n')
    assert run(["config", "cp", str(first), str(second), "--set", "retrain.lr=0.5"]) == 0
    assert 'preset = "../first.toml"' in second.read_text()
    found = configure(str(second), [])
    assert (found.retrain.epochs, found.retrain.lr, found.search.num_cells) == (7, 0.5, 6)
    before = second.read_text()
    assert run(["config", "cp", "small", str(second)]) == 2
    assert f"{second} exists" in capfd.readouterr().err
    assert second.read_text() == before
    assert run(["config", "cp", "smal", str(tmp_path / "x.toml")]) == 2
    assert "did you mean small?" in capfd.readouterr().err


def test_a_file_can_say_that_a_key_has_no_value(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text('preset = "small"\n[retrain]\nema = 0.9\n[validate]\nmin_recall = 0.5\n')
    assert run(["config", "cp", str(first), str(second), "--set", "retrain.ema=none"]) == 0
    found = configure(str(second), [])
    assert (found.retrain.ema, found.validate_.min_recall) == (None, 0.5)
    second.write_text(f'preset = "{first}"\n[retrain]\naugment = "none"\nema = "none"\n')
    assert configure(str(second), []).retrain.augment == "none"


def problems(value: Any, schema: Any, whole: Any) -> list[str]:
    """What of a schema that a small reader knows does not hold."""
    if "$ref" in schema:
        return problems(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        found = [problems(value, one, whole) for one in schema["anyOf"]]
        return [] if any(not one for one in found) else found[0]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{value!r} is none of {schema['enum']}"]
    if not isinstance(value, dict):
        return []
    known = schema.get("properties", {})
    found = []
    for key, item in value.items():
        if key in known:
            found += problems(item, known[key], whole)
        elif schema.get("additionalProperties") is False:
            found.append(f"{key} is unknown")
    return found


def test_the_schema_is_of_the_presets(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "d2nas.schema.json"
    assert run(["config", "schema", str(file)]) == 0
    assert f"#:schema {file}" in capfd.readouterr().err
    schema = json.loads(file.read_text())
    assert schema == file_schema()
    folder = Path(__file__).parents[2] / "pipeline" / "presets"
    presets = sorted(folder.glob("*.toml"))
    assert len(presets) == len(preset_names())
    for preset in presets:
        assert problems(tomllib.loads(preset.read_text()), schema, schema) == []
    # Control: what no preset has, in a section and beside it.
    assert problems({"retrain": {"epoch": 3}}, schema, schema) == ["epoch is unknown"]
    assert problems({"retrian": {}}, schema, schema) == ["retrian is unknown"]
    assert problems({"search": {"recipe": "own"}}, schema, schema)
    described = schema["$defs"]["RetrainConfig"]["properties"]["ema"]["description"]
    assert "moving average" in described


def test_each_preset_says_what_it_is_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["preset"] for row in rows] == preset_names()
    assert all(10 < len(row["about"]) < 130 for row in rows)
    assert preset_about("small").startswith("A first run on your own images")
    assert run(["presets"]) == 0
    assert "Handwritten digits" in capfd.readouterr().out


def test_the_environment_names_the_store(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder / "store")
    capfd.readouterr()
    assert run(["ls", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    monkeypatch.setenv("D2NAS_STORE", str(finished.store))
    assert run(["ls", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)) > 4
    assert run(["ls", "--json", "--store", "another"]) == 0  # the option is stronger
    assert json.loads(capfd.readouterr().out) == []


def test_the_environment_names_the_folder_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert data_folder().name == "data"
    monkeypatch.setenv(DATA_VARIABLE, "/some/where")
    assert data_folder() == Path("/some/where")


def test_quiet_leaves_out_what_is_neither_result_nor_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["config", "cp", "small"]
    assert run(["-q", *words, str(tmp_path / "one.toml")]) == 0
    assert capfd.readouterr() == ("", "")
    assert streams.is_quiet
    assert run([*words, str(tmp_path / "two.toml")]) == 0
    assert "d2nas run" in capfd.readouterr().err
    assert run(["-q", *words, str(tmp_path / "two.toml")]) == 2
    assert "exists" in capfd.readouterr().err
    assert run(["--quiet", "presets"]) == 0
    assert "quickstart" in capfd.readouterr().out
    assert not run(["--version"])
    assert not streams.is_quiet


@pytest.mark.parametrize(
    ("typed", "wanted"), [("d2nas va", ["validate"]), ("d2nas latency m", ["measure"])]
)
def test_a_shell_completes_commands(typed: str, wanted: list[str]) -> None:
    environment = {
        **os.environ,
        COMPLETION_VARIABLE: "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    script = "from pipeline.cli import run; raise SystemExit(run([]))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == wanted

"""Hostile settings: every key of the configuration x values that nobody means, read from the model.

A new key is in at once. What is refused is refused as a usage error (2), with the key named in one
short line; what is accepted is bounded.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from campaigns import count
from hostile import VALUES
from pydantic import ValidationError, create_model
from toy import Place

from d2nas.config import Config, RetrainConfig, build_config
from d2nas.errors import ConfigError
from pipeline.cli import run
from pipeline.study.grid import read_study

AS_TEXT = [
    "~",
    "x",
    "",
    "[]",
    "{}",
    "nan",
    "-inf",
    "1e308",
    "9" * 30,
    "0x" + "F" * 5000,
    "[" * 3000,
]
AS_TEXT += ["true", "none", "2020-01-01", "\udc80", "a\0b", "1\ny=2", "../../etc/passwd", '"', "=="]
TOO_LARGE = (10**30, 1e308, math.inf, math.nan)
KEYS = [
    (info.alias or name, field)
    for name, info in Config.model_fields.items()
    for field in info.annotation.model_fields  # type: ignore[union-attr]
]


def unbounded(model: Any) -> Iterator[str]:
    """Yield the fields that take a number beyond all measure."""
    for field, info in model.model_fields.items():
        for value in (*TOO_LARGE, (10**30,), [10**30]):
            try:
                taken = getattr(model.model_validate({field: value}), field)
            except ValidationError:
                continue
            if taken is not True:
                yield info.alias or field


@pytest.mark.parametrize("section", list(Config.model_fields))
def test_every_number_has_an_upper_end(section: str) -> None:
    assert list(unbounded(Config.model_fields[section].annotation)) == []


def test_a_key_without_an_upper_end_is_found() -> None:
    loose = create_model("Loose", __base__=RetrainConfig, rounds=(int, 1), weight=(float, 1.0))
    assert set(unbounded(loose)) == {"rounds", "weight"}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_is_taken_or_refused_in_one_short_line_that_names_the_key(value: Any) -> None:
    refused = 0
    for section, field in KEYS:
        try:
            config = build_config({section: {field: value}}, what="file")
        except ConfigError as error:
            refused += 1
            told = str(error)
        else:
            # What is taken can be a key of a stage, and is written down.
            json.dumps(config.to_dict(), allow_nan=False).encode()
            continue
        assert f"{section}.{field}" in told
        assert len(told) < 400
        assert len(told.splitlines()) == 1
    assert refused > len(KEYS) // 2


@pytest.mark.parametrize("number", range(len(AS_TEXT)))
def test_the_command_line_ends_with_0_or_2(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    codes, text = set(), AS_TEXT[number]
    every = count(8, long=1)
    for section, field in KEYS[number % every :: every]:
        codes.add(run(["show", "--config", "quickstart", "--set", f"{section}.{field}={text}"]))
        told = capfd.readouterr()
        assert "bug" not in told.err
        assert sum(line.startswith("error: ") for line in told.err.splitlines()) <= 1
    assert codes <= {0, 2}
    assert 2 in codes


RANGES = {
    "search.num_cells=99999999999999999999999": "must be from 1 to 1000",
    "search.init_channels=1000000": "must be from 1 to 2048",
    "retrain.cutout=99999999999999999999999": "must be from 0 to 512",
    "data.crop_padding=9223372036854775807": "must be from 0 to 512",
    "retrain.lr=1e308": "must be above 0.0 and at most 100.0",
    "search.weight_lr=0.0": "must be above 0.0 and at most 100.0",
    "search.branch_length=0": "must be from 1 to 1000",
    "validate.parity_batches=[0]": "must be from 1 to 65536",
    "run.seed=-1": "must be from 0 and below 2147483648",
    "data.channels=~": "should be 1 or 3",
    "search.edge_gate_scale=x": "should be 1 or 2",
}


@pytest.mark.parametrize("setting", RANGES)
def test_a_number_out_of_range_is_told_its_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]) as caught:
        build_config({}, [setting])
    assert RANGES[setting] in str(caught.value)


FILES = {
    "deep": b"[run]\nseed = " + b"[" * 5000,
    "twice": b"[run]\nseed = 1\nseed = 2\n",
    "marked UTF-8": "\ufeff[run]\nseed = 1\n".encode(),
    "UTF-16": "[run]\nseed = 1\n".encode("utf-16"),
    "a section that is a value": b"run = 1\n",
    "a section that is a list": b"[[run]]\nseed = 1\n",
    "huge": b"#" + b"x" * 2_000_000,
    "many digits": b"[run]\nseed = " + b"9" * 5000,
    "zero characters": b"\0" * 10,
    "empty table in a table": b"[run.seed]\n",
    "quoted key": b'["run"]\n"se\\u0000ed" = 1\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_a_usage_error_wherever_one_is_named(
    name: str, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    file = place.folder / "hostile.toml"
    file.write_bytes(FILES[name])
    commands = (
        ["show", "--config", str(file)],
        ["study", str(file), "--plan"],
        ["show", "--config", "quickstart", "--set", f"derive.genotype={file}"],
    )
    assert run(commands[0]) == 2
    assert run(commands[1]) == 2
    assert run(commands[2]) in (0, 2)
    told = capfd.readouterr().err
    assert "bug" not in told
    assert all(len(line) < 600 for line in told.splitlines())


@pytest.mark.parametrize(
    "line", ["seeds = [-1]", "seeds = [1e9]", f"seeds = [{10**30}]", f"trainings = {10**30}"]
)
def test_a_study_has_ranges_too(line: str, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(f'methods = ["d2nas"]\nspaces = ["S0"]\n{line}\n')
    with pytest.raises(ConfigError, match=line.split()[0]):
        read_study(str(file))


OPTIONS = (
    ["run", "quickstart", "--plan", "--max-p99-ms", "nan"],
    ["run", "quickstart", "--plan", "--max-p99-ms", "1e308"],
    ["run", "quickstart", "--plan", "--max-p99-ms", "5", "--batch", "9" * 30],
    ["run", "quickstart", "--plan", "--max-p99-ms", "5", "--batch", "-1"],
    ["run", "quickstart", "--plan", "--time", "9" * 30 + "h"],
    ["run", "quickstart", "--plan", "--time", "-5m"],
    ["run", "quickstart", "--plan", "--name", "../x"],
    ["run", "quickstart", "--plan", "--name", ""],
    ["run", "quickstart", "--plan", "--name", "x" * 100_000],
    ["run", "quickstart", "--plan", "--name", "a\udc80"],
    ["search", "quickstart", "--nproc", "9" * 30],
    ["search", "quickstart", "--nproc", "0"],
    ["doctor", "--opset", "9" * 30],
    ["bench", "profile", "x", "--batch", "9" * 30],
    ["serve", "exported/x", "--port", "9" * 30],
    ["export", "x/search@v" + "9" * 5000],
    ["export", "x/search@v0"],
    ["export", "../x/search@v1"],
    ["derive", "x" * 100_000],
    ["show", "a\udc80/search@v1"],
    ["show", "a/b/c@v1"],
)


@pytest.mark.parametrize("arguments", OPTIONS, ids=[" ".join(o)[:40] for o in OPTIONS])
def test_options_with_hostile_values_are_usage_errors(
    arguments: list[str], place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    store = [] if arguments[0] in ("doctor", "bench", "serve") else ["--store", str(place.store)]
    assert run([*arguments, *store]) == 2
    assert "bug" not in capfd.readouterr().err


def test_plans_of_settings_end_with_a_known_code(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    largest = ["2048", "1000", "512", "100.0", "1024"]
    cases = [f"{'.'.join(key)}={value}" for value in largest for key in KEYS]
    for setting in cases[:: len(cases) // count(1, long=len(cases))]:
        code = place.run("run", str(place.preset), "--plan", "--set", setting)
        assert code in (0, 2, 6), (setting, capfd.readouterr().err)
        capfd.readouterr()

"""``derive`` with a limit on the latency that a table predicts."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from latency_tables import table_of, wanted_by, written
from tiny import TinyPlace

from d2nas.config import build_config
from d2nas.config.effects import without_effect
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype, uniform
from pipeline.latency.fitting import Line
from pipeline.latency.limits import check_suits, latency_costs
from pipeline.latency.measuring import Wanted
from pipeline.latency.parts import OperationShape, Serving
from pipeline.stages import derive as derive_stage


def words(path: Path, limit: float) -> tuple[str, ...]:
    keys = {"run.latency_table": path, "derive.max_latency_ms": limit}
    return tuple(word for key, value in keys.items() for word in ("--set", f"{key}={value}"))


def test_costs_are_the_tables_predictions(tiny: TinyPlace) -> None:
    wanted = wanted_by(tiny)
    table = table_of(wanted, dil_conv_3x3=0.7, max_pool_3x3=0.3)
    sizes = {"num_cells": wanted.num_cells, "init_channels": wanted.init_channels}
    costs, numbers = latency_costs(table, wanted.space, **sizes), random.Random(1)
    for _ in range(50):
        genotype = uniform(wanted.space, numbers)
        assert costs.of(genotype) == pytest.approx(table.predict(genotype, **sizes))


def test_another_cell_is_derived_where_the_most_probable_takes_longer(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tiny.run("derive", "tiny") == 0
    free = tiny.latest("derive")
    assert free is not None
    probable = Genotype.from_dict(free.manifest.facts["genotype"])
    slow = next(name for name, _ in probable.normal)  # what it has is made slow
    wanted = wanted_by(tiny)
    table = table_of(wanted, **{slow: 3.0})
    sizes = {"num_cells": wanted.num_cells, "init_channels": wanted.init_channels}
    unlimited = table.predict(probable, **sizes)
    path, limit = written(tiny, table), unlimited - 1.0
    capfd.readouterr()
    assert tiny.run("derive", "tiny", *words(path, limit)) == 0
    told = capfd.readouterr().err
    assert f"the most probable cell takes {unlimited:.3g} ms, so it is another one, for" in told
    version = tiny.latest("derive")
    assert version is not None
    facts = version.manifest.facts
    found = Genotype.from_dict(facts["genotype"])
    assert found != probable
    assert facts["limit"]["derived"] == pytest.approx(table.predict(found, **sizes))
    assert facts["limit"]["derived"] <= limit == facts["limit"]["value"]
    assert facts["limit"]["unlimited"] == pytest.approx(unlimited)
    assert facts["limit"]["latency_table"] == table.digest
    # The same table elsewhere is the same; another limit is not, and a wide one keeps the cell.
    again = tiny.folder / "again.json"
    again.write_bytes(path.read_bytes())
    assert tiny.json(capfd, "derive", "tiny", *words(again, limit))["executed"] == []
    assert tiny.json(capfd, "derive", "tiny", *words(path, 1e6))["executed"] == ["derive"]
    kept = tiny.latest("derive")
    assert kept is not None
    assert kept.manifest.facts["genotype"] == free.manifest.facts["genotype"]
    # Without a limit it is the version of before, whose key has no trace of tables.
    assert tiny.json(capfd, "derive", "tiny")["executed"] == []
    assert "latency_table" not in json.dumps(free.manifest.config)


def test_what_no_cell_keeps_is_told_before_the_search(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = wanted_by(tiny)
    path = written(tiny, table_of(wanted))
    fresh = ("--name", "another", "--set", "run.seed=77")
    assert tiny.run("run", str(tiny.preset), *fresh, *words(path, 0.5)) == 2
    told = capfd.readouterr().err
    # 0.25 + 2 (0.5 + two cells of 1 + their cheapest operations); nothing was searched.
    assert "no cell keeps derive.max_latency_ms=0.5: the cheapest of " in told
    assert "search: step" not in told
    assert tiny.run("derive", "tiny", *words(path, 0.5)) == 2
    assert "no cell keeps 0.5 ms: the cheapest of the space takes" in capfd.readouterr().err


OTHERS: dict[str, Any] = {
    "image_size=9, this run's has 8": {"image_size": 9},
    "num_classes=3, this run's has 10": {"num_classes": 3},
    "precision=fp16, this run's has fp32": {"precision": "fp16"},
    "input_type=": {"input_type": "other"},
}


@pytest.mark.parametrize("said", OTHERS)
def test_a_table_of_other_models_is_refused(
    said: str, tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = wanted_by(tiny)
    serving = Serving(**{**wanted.serving.to_dict(), **OTHERS[said]})
    table = table_of(Wanted(wanted.space, wanted.num_cells, wanted.init_channels, serving))
    assert tiny.run("derive", "tiny", *words(written(tiny, table), 9.0)) == 2
    assert f"the latency table is of models with {said}" in capfd.readouterr().err


def test_another_device_gaps_and_absent_files_are_refused(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = wanted_by(tiny)
    table = table_of(wanted)
    config = build_config({}, ["validate.device=cuda:0"])
    with pytest.raises(ConfigError, match="is of CPU Test, 1 thread, the model is for cuda"):
        check_suits(table, config, wanted.serving)
    gap = next(part for part in table.parts if isinstance(part, OperationShape))
    parts = {part: taken for part, taken in table.parts.items() if part != gap}
    lacking = table_of(wanted)
    object.__setattr__(lacking, "parts", parts)
    assert tiny.run("derive", "tiny", *words(written(tiny, lacking), 9.0)) == 2
    assert f"{gap.operation} of {gap.channels} channels at" in capfd.readouterr().err
    assert tiny.run("derive", "tiny", *words(tiny.folder / "none.json", 9.0)) == 2
    assert "none.json: no such file" in capfd.readouterr().err
    path = written(tiny, table)
    path.write_bytes(path.read_bytes().replace(b'"ms":0.1', b'"ms":0.2'))
    assert tiny.run("derive", "tiny", *words(path, 9.0)) == 4
    assert "it was changed" in capfd.readouterr().err


CONTRADICTIONS = {
    "derive.max_latency_ms needs run.latency_table": ["derive.max_latency_ms=3"],
    "is not supported with derive.candidates": ["derive.candidates=3"],
    "or derive.budget": ["derive.budget=8"],
    "derive.genotype is given": ["derive.genotype=DARTS_V2"],
    "is not supported for fair-darts": ["search.method=fair-darts"],
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_contradictions_are_told(said: str) -> None:
    settings = CONTRADICTIONS[said]
    if "latency_table" not in said:
        settings = [*settings, "derive.max_latency_ms=3", "run.latency_table=t.json"]
    with pytest.raises(ConfigError, match=said):
        build_config({}, settings)


def test_a_table_without_a_limit_changes_nothing() -> None:
    config = build_config({}, ["run.latency_table=nowhere.json"])
    told = without_effect(config, ["run.latency_table"])
    assert told == {"no limit on latency": ["run.latency_table"]}
    plain = derive_stage.STAGE.own_config(build_config({}))
    assert derive_stage.STAGE.own_config(config) == plain
    limited = build_config({}, ["run.latency_table=nowhere.json", "derive.max_latency_ms=4"])
    assert derive_stage.STAGE.reads_data(limited)
    assert not derive_stage.STAGE.reads_data(config)


def test_later_commands_know_the_table_and_most_do_not_read_it(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tiny, table_of(wanted_by(tiny)))
    keys = ("--set", f"run.latency_table={path}", "--set", "search.max_latency_ms=1000")
    assert tiny.run("search", str(tiny.preset), *keys) == 0
    assert tiny.run("derive", "tiny") == 0
    assert "of at most 1,000 ms by search.max_latency_ms" in capfd.readouterr().err
    path.unlink()
    assert tiny.run("retrain", "tiny") == 0
    assert tiny.run("derive", "tiny", "--fresh") == 2
    assert "latency.json: no such file" in capfd.readouterr().err


EMPTIED: dict[str, Any] = {
    "no networks": {"networks": []},
    "two networks": {"networks": 2},
    "networks that took no time": {"milliseconds": 0.0},
    "a line that falls below 0": {"line": Line(-50.0, 1.0)},
    "parts that take no time": {"parts": 0.0},
    "more threads than there may be": {"num_threads": 10**7},
}


@pytest.mark.parametrize("what", EMPTIED)
def test_a_table_that_predicts_nothing_is_no_table(
    what: str, tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its digest is its own: somebody else's program wrote it."""
    ((kind, value),) = EMPTIED[what].items()
    table = table_of(wanted_by(tiny))
    if kind == "networks":
        table = replace(table, networks=table.networks[: value or 0])
    elif kind == "milliseconds":
        table = replace(
            table, networks=[replace(one, milliseconds=value) for one in table.networks]
        )
    elif kind == "parts":
        nothing = dict.fromkeys(table.parts, 0.0)
        table = replace(table, parts=nothing, outside=dict.fromkeys(table.outside, 0.0))
    elif kind == "num_threads":
        table = replace(table, device={**table.device, kind: value})
    else:
        table = replace(table, line=value)
    path = written(tiny, table)
    assert tiny.run("derive", "tiny", *words(path, 9.0)) == 4
    assert "no latency table" in capfd.readouterr().err

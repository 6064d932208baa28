"""``derive.pareto``: cells of a search by latency and loss, as data, as a picture, on the page."""

import json

import pytest
from latency_tables import DEVICE, table_of, wanted_by, written
from tiny import TinyPlace

from d2nas.config import build_config
from d2nas.config.effects import without_effect
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from pipeline.latency.graphs import outside_graph
from pipeline.latency.measuring import describe_device
from pipeline.onnx_io.session import open_session
from pipeline.stages.front import NUM_RANDOM


def test_a_front_of_a_search(tiny: TinyPlace, capfd: pytest.CaptureFixture[str]) -> None:
    assert tiny.run("derive", "tiny") == 0
    free = tiny.latest("derive")
    assert free is not None
    genotype = free.manifest.facts["genotype"]
    wanted = wanted_by(tiny)
    table = table_of(wanted, skip_connect=0.0, dil_conv_3x3=0.7, max_pool_3x3=0.3)
    sizes = {"num_cells": wanted.num_cells, "init_channels": wanted.init_channels}
    table_key = f"run.latency_table={written(tiny, table)}"
    capfd.readouterr()
    assert tiny.run("derive", "tiny", "--pareto", "4", "--set", table_key) == 0
    told = capfd.readouterr().err
    assert "this is not CPU Test, 1 thread: latencies of the front are predicted" in told
    assert f"the middle of {NUM_RANDOM} random cells" in told
    version = tiny.latest("derive")
    assert version is not None
    assert version.manifest.facts["genotype"] == genotype  # another cell is not derived
    rows = json.loads(version.read("front.json"))
    own = [row for row in rows if row["origin"] == "front"]
    assert 2 <= len(own) <= 4
    assert sum(row["origin"] == "random" for row in rows) == NUM_RANDOM
    assert all(0.0 < row["calibrated_loss"] < 10.0 for row in rows)
    for row in rows:
        cell = Genotype.from_dict(row["genotype"])
        assert row["predicted_ms"] == pytest.approx(table.predict(cell, **sizes))
        assert row["measured_ms"] is None
    times = sorted(row["predicted_ms"] for row in own)
    assert own[0]["genotype"] == genotype or own[-1]["genotype"] == genotype
    assert (
        times[0] < times[-1] == pytest.approx(table.predict(Genotype.from_dict(genotype), **sizes))
    )
    drawing = version.read("front.svg").decode()
    assert drawing.count("<circle") == len(rows) + 3 + 1  # the legend, and the ring
    assert "ms, predicted" in drawing
    # The same again runs nothing; without a front it is the version of before.
    words = ("--pareto", "4", "--set", table_key)
    assert tiny.json(capfd, "derive", "tiny", *words)["executed"] == []
    assert tiny.json(capfd, "derive", "tiny")["executed"] == []


def test_on_the_tables_device_cells_are_timed(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.front.NUM_RANDOM", 2)
    monkeypatch.setattr("pipeline.latency.timing.TURN_MILLISECONDS", 0.1)
    wanted = wanted_by(tiny)
    empty = outside_graph(wanted.claim(Genotype.published("DARTS_V2")), wanted.serving)
    here = describe_device(open_session(empty, device="cpu", num_threads=1).device)
    assert here["name"] != DEVICE["name"]
    table_key = f"run.latency_table={written(tiny, table_of(wanted, here))}"
    front = ("--pareto", "2", "--set", table_key, "--set", "derive.rank_by=training")
    assert tiny.run("derive", "tiny", *front, "--set", "derive.rank_epochs=1") == 0
    version = tiny.latest("derive")
    assert version is not None
    assert all(row["measured_ms"] > 0.0 for row in json.loads(version.read("front.json")))
    assert "ms, measured" in version.read("front.svg").decode()
    assert "of the front are predicted" not in capfd.readouterr().err


CONTRADICTIONS = {
    "derive.pareto needs run.latency_table": ["derive.pareto=3"],
    "derive.genotype is given": ["derive.genotype=DARTS_V2"],
    "not supported with derive.budget": ["derive.budget=8"],
    "not supported for fair-darts": ["search.method=fair-darts"],
    "of darts needs derive.rank_by=training": ["search.method=darts"],
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_contradictions_are_told(said: str) -> None:
    settings = CONTRADICTIONS[said]
    if "needs run" not in said:
        settings = [*settings, "derive.pareto=3", "run.latency_table=t.json"]
    with pytest.raises(ConfigError, match=said):
        build_config({}, settings)


def test_a_front_reads_how_cells_are_ranked() -> None:
    keys = ["derive.rank_by", "derive.rank_epochs"]
    assert without_effect(build_config({}), keys) == {"derive.candidates=1": keys}
    front = build_config({}, ["derive.pareto=3", "run.latency_table=t.json"])
    assert without_effect(front, keys) == {"derive.rank_by=supernet": ["derive.rank_epochs"]}

"""A space whose cells have five nodes: searched, compared, trained, validated, drawn, verified."""

import json
from pathlib import Path

import pytest
from tiny import SPACE, TinyPlace

from d2nas import Genotype
from pipeline.store import Store


def test_cells_of_five_nodes_go_all_the_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = TinyPlace(tmp_path)
    (tmp_path / "few.toml").write_text(f'name = "few"\nnodes = 5\n{SPACE}')
    settings = ("derive.budget=6", "derive.rank_epochs=1")  # samples and neighbours of five nodes
    words = [word for each in settings for word in ("--set", each)]
    shown = place.json(capfd, "run", str(place.preset), *words)
    genotype = Genotype.from_dict(shown["genotype"])
    assert genotype.nodes == range(2, 7)
    derived = Store(place.store).open("tiny/derive")
    assert Genotype.from_json(derived.read("genotype.json")) == genotype
    assert b"output: 2, 3, 4, 5, 6 concatenated" in derived.read("genotype.svg")
    bundle = place.exported / "tiny"
    report = json.loads((bundle / "report.json").read_text())
    assert report["identity"]["verdict"] == "passed"
    assert "node 6: " in (bundle / "report.html").read_text()
    assert place.run("verify", str(bundle)) == 0

"""``search`` with a limit: what it says, keeps and records, and what depends on it."""

import json
import random
from dataclasses import replace

import pytest
from servings import PLAIN
from tiny import TinyPlace

from d2nas.genotype import Genotype, uniform
from d2nas.spaces import SearchSpace
from pipeline.latency.limits import counted_costs
from pipeline.stages.search import CURVES_FILE, STAGE

DIGITS = replace(PLAIN, image_size=8, in_channels=1, input_type="uint8")


def limited(limit: float) -> tuple[str, ...]:
    return ("--set", f"search.max_macs={limit}")


def test_a_search_keeps_a_limit_and_so_does_what_is_derived(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    free = tiny.latest("search")
    assert free is not None
    assert "macs" not in json.dumps(free.manifest.config)
    space = SearchSpace.from_dict(free.manifest.facts["searched_space"])
    costs = counted_costs(DIGITS, "macs", space, num_cells=2, init_channels=4)
    numbers = random.Random(0)
    some = sorted(costs.of(uniform(space, numbers)) for _ in range(50))
    limit = some[15]
    capfd.readouterr()
    assert tiny.run("search", str(tiny.preset), *limited(limit)) == 0
    told = capfd.readouterr().err
    assert f"at most {limit:,.0f} multiply-adds expected (search.max_macs); the cheapest" in told
    version = tiny.latest("search")
    assert version is not None
    facts = version.manifest.facts["costs"]
    assert facts["quantity"] == "macs"
    assert facts["limit"] == limit
    rows = [json.loads(line) for line in version.read("metrics.jsonl").splitlines()]
    found = [row["expected_macs"] for row in rows]
    unlimited = [costs.of(uniform(space, numbers)) for _ in range(200)]
    assert limit < 0.98 * sum(unlimited) / 200  # the control: as it began it would not keep it
    assert found == pytest.approx([limit] * len(rows), rel=1e-4)
    assert facts["expected_macs"] == found[-1]
    assert all(row["derived_macs"] <= limit for row in rows)
    assert rows[-1]["derived_macs"] == costs.of(Genotype.from_dict(rows[-1]["genotype"]))
    assert "Multiply-adds" in version.read(CURVES_FILE).decode()
    assert "Multiply-adds" not in free.read(CURVES_FILE).decode()
    # What is derived keeps the same limit, or another one that it is given; a repeat runs nothing.
    assert tiny.run("derive", "tiny") == 0
    for words, most in (((), limit), (("--set", f"derive.max_macs={some[0]}"), some[0])):
        assert tiny.run("derive", "tiny", *words) == 0
        derived = tiny.latest("derive")
        assert derived is not None
        kept = costs.of(Genotype.from_dict(derived.manifest.facts["genotype"]))
        assert kept == derived.manifest.facts["limit"]["derived"] <= most
    assert tiny.json(capfd, "search", str(tiny.preset), *limited(limit))["executed"] == []
    assert tiny.json(capfd, "search", str(tiny.preset))["executed"] == []


def test_what_no_cell_keeps_is_told_before_the_first_step(
    tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert tiny.run("search", str(tiny.preset), *limited(10)) == 2
    told = capfd.readouterr().err
    assert "no cell keeps search.max_macs=10: the cheapest of few takes" in told
    assert "search: step" not in told
    assert tiny.run("run", str(tiny.preset), "--plan", *limited(10)) == 2
    assert "no cell keeps search.max_macs=10: the" in capfd.readouterr().err
    assert tiny.run("run", str(tiny.preset), "--plan", *limited(1e9)) == 0
    told = capfd.readouterr().err
    assert "at most 1,000,000,000 multiply-adds by search.max_macs: the cheapest cell" in told


def test_a_search_depends_on_the_network_that_is_limited(tiny: TinyPlace) -> None:
    from pipeline.commands.configuration import configure

    def config(*overrides: str) -> object:
        return STAGE.config(configure(str(tiny.preset), list(overrides)))

    assert config() == config("retrain.num_cells=5")
    limit = "search.max_macs=1e6"
    assert config() != config(limit) != config(limit, "retrain.num_cells=5")
    assert config("run.latency_table=nowhere.json") == config()

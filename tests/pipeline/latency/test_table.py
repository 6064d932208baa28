"""Latency tables: what is fitted, predicted, written, read and refused."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from servings import PLAIN

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.genotype import Genotype, uniform
from d2nas.spaces import SPACES
from pipeline.latency.fitting import Line, Part, Timed, calibrate, left_out_errors, part_times
from pipeline.latency.measuring import Drift, Wanted, cells_to_time
from pipeline.latency.parts import OperationShape, network_cells, operations_in
from pipeline.latency.summary import operation_rows, summary
from pipeline.latency.table import LatencyTable, Measured, read_table

SERVING = replace(PLAIN, input_type="uint8")
WANTED = Wanted(SPACES["S0"], 8, 16, SERVING)


def made_times(wanted: Wanted = WANTED) -> dict[Part, float]:
    """Return a made-up time of every part: another one for each."""
    numbers, parts = random.Random(0), set[Part]()
    for _ in range(200):
        for shape, layout in wanted.cells(uniform(wanted.space, numbers)):
            parts |= {shape, *operations_in(shape, layout)}
    ordered = sorted(parts, key=repr)
    return {part: 0.01 + 0.001 * place for place, part in enumerate(ordered)}


def table(line: Line | None = None) -> LatencyTable:
    found = LatencyTable(
        device={"kind": "cpu", "name": "Test", "label": "CPU Test, 1 thread", "num_threads": 1},
        runtime="1.0",
        serving=SERVING,
        outside={16: 0.5},
        parts=made_times(),
        line=line or Line(0.25, 1.5),
        networks=[],
    )
    numbers = random.Random(1)
    genotypes = [uniform(SPACES["S0"], numbers) for _ in range(4)]
    networks = [
        Measured(one, 8, 16, found.predict(one, num_cells=8, init_channels=16), 0.1)
        for one in genotypes
    ]
    return replace(found, networks=networks)


# Fitting


def test_the_times_of_parts_are_found_exactly_where_there_is_no_noise() -> None:
    truth = made_times()
    rows = [
        Timed(parts, sum(truth[part] for part in parts), 5.0)
        for cell in cells_to_time(WANTED, random.Random(2))
        if cell.layout is not None
        for parts in [[cell.shape, *operations_in(cell.shape, cell.layout)]]
    ]
    found = part_times(rows)
    assert {*found} == {part for row in rows for part in row.parts}
    assert found == pytest.approx({part: truth[part] for part in found})


def test_every_part_of_every_network_is_timed() -> None:
    timed = {
        part
        for cell in cells_to_time(WANTED, random.Random(2))
        if cell.layout is not None
        for part in (cell.shape, *operations_in(cell.shape, cell.layout))
    }
    assert timed == {*made_times()}


def test_less_noise_counts_more_and_no_part_takes_less_than_nothing() -> None:
    part = OperationShape("sep_conv_3x3", 16, 16, 1)
    other = OperationShape("skip_connect", 16, 16, 1)
    rows = [Timed([part], 1.0, 1.0), Timed([part], 2.0, 3.0), Timed([other], -0.5, 1.0)]
    assert part_times(rows) == pytest.approx({part: (1.0 + 2.0 / 9) / (1 + 1 / 9), other: 0.0})


def test_the_line_to_whole_networks() -> None:
    sums = [1.0, 2.0, 4.0]
    line = calibrate(sums, [2.5 + 2.0 * each for each in sums])
    assert (line.offset, line.scale) == (pytest.approx(2.5), pytest.approx(2.0))
    assert left_out_errors(sums, [2.5 + 2.0 * each for each in sums]) == pytest.approx([0, 0, 0])
    assert calibrate([1.0, 1.01], [2.0, 2.02]) == Line(0.0, pytest.approx(2.0))  # type: ignore[arg-type]
    assert max(map(abs, left_out_errors(sums, [1.0, 2.0, 9.0]))) > 0.3


def test_drift_is_a_geometric_mean() -> None:
    assert Drift([0.5, 2.0]).middle == pytest.approx(1.0)


# Predictions


def test_a_prediction_is_the_sum_of_the_parts_on_the_line() -> None:
    genotype, found = Genotype.published("DARTS_V2"), table()
    total = 0.5 + sum(
        found.parts[shape] + sum(found.parts[each] for each in operations_in(shape, layout))
        for shape, layout in network_cells(WANTED.claim(genotype), SERVING.image_size)
    )
    predicted = found.predict(genotype, num_cells=8, init_channels=16)
    assert predicted == pytest.approx(0.25 + 1.5 * total)


def test_what_was_not_measured_is_named() -> None:
    found, genotype = table(), Genotype.published("DARTS_V2")
    with pytest.raises(ConfigError, match="no networks of 20 channels, only of 16"):
        found.predict(genotype, num_cells=8, init_channels=20)
    without = {
        part: taken
        for part, taken in found.parts.items()
        if getattr(part, "operation", "") != "skip_connect"
    }
    with pytest.raises(ConfigError, match=r"skip_connect of 16 channels at 16 x 16, stride 1"):
        replace(found, parts=without).predict(genotype, num_cells=8, init_channels=16)
    with pytest.raises(ConfigError, match=r"a reduce cell of 32 channels on 48 and 64 at 16"):
        found.predict(genotype, num_cells=3, init_channels=16)
    for num_cells in (6, 9, 12, 20, 31):
        assert found.predict(genotype, num_cells=num_cells, init_channels=16) > 0
    found.require_device("cpu")
    with pytest.raises(ConfigError, match="is of CPU Test, 1 thread, the model is for cuda"):
        found.require_device("cuda")


# The file


def test_a_table_is_read_as_it_was_written() -> None:
    found = table()
    data = found.to_json()
    again = read_table(data, what="t.json")
    assert again == found
    assert (again.digest, again.to_json()) == (found.digest, data)
    assert table(Line(0.25, 1.6)).digest != found.digest


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    values = json.loads(table().to_json())
    change(values)
    return json.dumps(values).encode()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a time": lambda v: v["operations"][3].update(ms=0.5),
    "the device": lambda v: v["device"].update(name="Faster"),
    "the batch": lambda v: v["serving"].update(batch=2),
    "the line": lambda v: v["line"].update(scale=0.5),
    "an operation gone": lambda v: v["operations"].pop(),
    "a network gone": lambda v: v["networks"].pop(),
    "the digest": lambda v: v.update(digest="0" * 64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_table_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(DamagedArtifactError, match=r"t\.json: .*it was changed"):
        read_table(changed(change), what="t.json")


INVALID: dict[str, Callable[[dict[str, Any]], object]] = {
    "no digest": lambda v: v.pop("digest"),
    "another key": lambda v: v.update(more=1),
    "a negative time": lambda v: v["cells"][0].update(ms=-1.0),
    "a text for a time": lambda v: v["cells"][0].update(ms="1"),
    "three inputs": lambda v: v["cells"][0]["input_channels"].append(3),
    "no genotype": lambda v: v["networks"][0].update(genotype={}),
    "a scale of 0": lambda v: v["line"].update(scale=0.0),
    "a list": lambda v: v.update(device=[]),
}


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID)
def test_what_is_no_table_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(DamagedArtifactError, match=r"t\.json: no latency table"):
        read_table(changed(change), what="t.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"format": 2}', b"{", b'{"format": []}'])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedArtifactError, match=r"t\.json"):
        read_table(data, what="t.json")


# For people


def test_the_summary_tells_how_well_networks_are_predicted() -> None:
    found = table()
    facts = summary(found)
    assert facts["median_error"] == pytest.approx(0.0, abs=1e-9)
    assert facts["operations"] + facts["cells"] == len(found.parts)
    slow = [replace(one, milliseconds=one.milliseconds * 2) for one in found.networks[:1]]
    worse = summary(replace(found, networks=[*slow, *found.networks[1:]]))
    assert worse["largest_error"] > 0.3
    columns, rows = operation_rows(found)
    assert columns[:3] == ["operation", "16 at 16", "32 at 16, stride 2"]
    assert {row[0] for row in rows} == {*SPACES["S0"].normal[0]}
    sums = [sum(float(cell) for cell in row[1:]) for row in rows]
    assert sums == sorted(sums, reverse=True)
    assert np.isfinite(sums).all()

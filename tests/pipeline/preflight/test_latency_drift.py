"""Before a run its latency table's networks are timed again: a machine that has changed is told."""

from dataclasses import replace

import pytest
from latency_tables import table_of, wanted_by, written
from tiny import TinyPlace

from d2nas.config import Config
from pipeline.commands.configuration import configure
from pipeline.latency.graphs import network_graph
from pipeline.latency.measuring import describe_device, networks_to_time
from pipeline.latency.table import LatencyTable, Measured
from pipeline.onnx_io.runtime import load_runtime
from pipeline.onnx_io.session import open_session
from pipeline.preflight import latency_limit
from pipeline.preflight.latency_limit import drift_warning


@pytest.fixture
def table(tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """A table of this machine whose networks took a made-up time."""
    import random

    monkeypatch.setattr("pipeline.latency.timing.TURN_MILLISECONDS", 0.1)
    wanted = wanted_by(tiny)
    genotypes = networks_to_time(wanted.space, random.Random(0))[:3]
    graph = network_graph(wanted.claim(genotypes[0]), wanted.serving)
    here = describe_device(open_session(graph, device="cpu", num_threads=1).device)
    sizes = (wanted.num_cells, wanted.init_channels)
    networks = [Measured(genotype, *sizes, 1.0, 0.0) for genotype in genotypes]
    found = table_of(wanted, here)
    return replace(found, runtime=str(load_runtime().__version__), networks=networks)


def config_with(tiny: TinyPlace, table: LatencyTable) -> Config:
    path = written(tiny, table)
    keys = [f"run.latency_table={path}", "search.max_latency_ms=1000"]
    return configure(str(tiny.preset), keys)


def test_a_machine_that_has_changed_is_told(
    tiny: TinyPlace, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ratio in (1.0, 1.05, 0.95):
        monkeypatch.setattr(
            "pipeline.latency.measuring.time_in_turns",
            lambda sessions, *_, ratio=ratio, **__: [Turn(ratio) for _ in sessions],
        )
        assert drift_warning(config_with(tiny, table)) is None
    for ratio in (1.3, 0.8):
        monkeypatch.setattr(
            "pipeline.latency.measuring.time_in_turns",
            lambda sessions, *_, ratio=ratio, **__: [Turn(ratio) for _ in sessions],
        )
        told = drift_warning(config_with(tiny, table))
        assert told is not None
        assert f"take {ratio:.2f} x of what they took" in told
    other = replace(table, runtime="0.1")
    told = drift_warning(config_with(tiny, other))
    assert told is not None
    assert "(ONNX Runtime 0.1 then, " in told


class Turn:
    """What a network took in its turns."""

    def __init__(self, milliseconds: float) -> None:
        self.quietest_ms = milliseconds


def test_another_machines_table_is_not_timed_here(
    tiny: TinyPlace, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.latency.measuring.time_in_turns", None)  # nobody calls it
    other = replace(table, device={**table.device, "name": "Another"})
    assert drift_warning(config_with(tiny, other)) is None


def test_a_run_tells_it_before_its_search(
    tiny: TinyPlace,
    table: LatencyTable,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Really timed: the made-up millisecond is not what these networks take."""
    monkeypatch.setattr(latency_limit, "DRIFT_ROUNDS", 2)
    slow = replace(table, networks=[replace(one, milliseconds=1e6) for one in table.networks])
    path = written(tiny, slow)
    keys = ("--set", f"run.latency_table={path}", "--set", "search.max_latency_ms=1000")
    assert tiny.run("run", str(tiny.preset), "--fresh", *keys) == 0
    told = capfd.readouterr().err
    assert "warning: the latency table's networks take 0.00 x" in told
    assert told.index("networks take 0.00 x") < told.index("search: step")

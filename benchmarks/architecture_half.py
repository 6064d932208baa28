"""Time and peak memory of the architecture half, estimator against straight-through.

    python -m benchmarks.architecture_half --pairs 9 > architecture_half.json

Process time, in alternating order; memory in live bytes, whole and beyond what is alive between two
steps (weights, statistics, moments, the batch). Other sizes with ``--set search.num_cells=6``.
"""

import argparse
import json
import sys
import time

import torch

from d2nas.config import build_config
from d2nas.measure.cost import LiveBytes
from d2nas.train.search import Search, architecture_step

from .pairs import TimedWork, compare
from .search import StepRunner

BASE = "straight-through"


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    searches = {name: search_of(name, arguments.set) for name in (BASE, "score", "mixed")}
    peaks = {name: peak_of(search_of(name, arguments.set)) for name in searches}
    works = {name: timed(name, search) for name, search in searches.items()}
    rows = []
    for name in ("score", "mixed"):
        (row,) = compare(works[name], works[BASE], arguments.pairs, clock=time.process_time)
        whole, beyond = (one / other for one, other in zip(peaks[name], peaks[BASE], strict=True))
        rows.append({**row, "memory": round(whole, 3), "memory_beyond_state": round(beyond, 3)})
    found = {"set": arguments.set, "threads": arguments.threads, "peak_bytes": peaks, "rows": rows}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def search_of(estimator: str, settings: list[str]) -> Search:
    """Return a search on made-up images, with the defaults' sizes and no warm-up."""
    search = {"estimator": estimator, "warmup_epochs": 0}
    return StepRunner(build_config({"search": search}, settings).search).search


def timed(name: str, search: Search) -> TimedWork:
    """Return one architecture half as work to be timed."""
    return TimedWork(name, lambda: architecture_step(search, 0), {"architecture half": 1})


def peak_of(search: Search) -> tuple[int, int]:
    """Return the peak of an architecture half, whole and beyond what is alive before it."""
    batch = search.batch(search.arch_batches, 0)
    resident = [*search.resident(), batch.images, batch.labels]
    search.batch = lambda *_: batch  # type: ignore[method-assign]
    search.arch_optimizer.step = lambda *_: None  # type: ignore[method-assign]
    with LiveBytes(resident) as before:
        pass
    with LiveBytes(resident) as live:
        architecture_step(search, 0)
    return live.peak, live.peak - before.peak


if __name__ == "__main__":
    main()

"""Cells searched within a latency budget, against cells that are made narrower to fit.

    python -m benchmarks.latency_budgets table
    python -m benchmarks.latency_budgets search --data-root DIR [--hours 1]
    python -m benchmarks.latency_budgets measure
    python -m benchmarks.latency_budgets train --data-root DIR [--hours 1]
    python -m benchmarks.latency_budgets report

The task is the yardstick's: 5 cells x 8 channels at 16 pixels; latency is that of a batch of 16 on
one thread. The budgets are parts of the median latency of the cells that were searched without one:
those of the score function in ``signal_searches.jsonl``, seeds 0 to 3. For each budget and seed a
search of the same settings keeps it (``search.max_latency_ms``). Beside its cell: the best cell
within the budget of the search that had the largest one, which binds nothing at first; the cell of
the same seed without a budget, and the published cell of the least loss, each at the greatest width
that keeps the budget; and random cells of full width that keep it. ``measure`` times all networks
in turns. Every command goes on where it stopped; rows are in ``latency_budgets.jsonl``.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from d2nas.config import Config
from d2nas.data.images import load_data
from d2nas.genotype import Genotype, uniform
from d2nas.methods.within_budget import best_within
from d2nas.spaces import SPACES
from pipeline.commands.configuration import configure
from pipeline.latency.graphs import network_graph
from pipeline.latency.limits import latency_costs, open_table
from pipeline.latency.measuring import Wanted, measure_table
from pipeline.latency.parts import Serving
from pipeline.latency.table import LatencyTable
from pipeline.latency.timing import time_in_turns
from pipeline.onnx_io.session import open_session

from .search import search_of
from .yardstick import Cell, by_cell, read_rows, training_of
from .yardstick import configured as yardstick_task

HERE = Path(__file__).parent
ROWS_FILE, TABLE_FILE = HERE / "latency_budgets.jsonl", HERE / "latency_budgets_table.json"
SPACE = SPACES["S0"]
CELLS, CHANNELS, BATCH = 5, 8, 16
WIDTHS = (2, 4, 6, 8)
BUDGETS = (0.5, 0.7, 1.0)
SEEDS = (0, 1, 2, 3)
TRAINING_SEEDS = (0, 1)
NUM_RANDOM = 40
RANDOM_SEED = 5
SEARCH = {
    "data.train_images": 2000,
    "search.draws": 4,
    "search.epochs": 53,
    "search.warmup_epochs": 26,
    "search.arch_lr": 0.02,
    "search.estimator": "score",
}
"""``score-sgd`` of ``studies/signal.toml``."""

Row = dict[str, Any]


def serving() -> Serving:
    """Return how the networks are served."""
    return Serving(
        image_size=16,
        in_channels=1,
        num_classes=10,
        stem="cifar",
        opset=20,
        input_type="uint8",
        precision="fp32",
        batch=BATCH,
    )


def rows(kind: str) -> list[Row]:
    """Return the rows of a kind so far."""
    if not ROWS_FILE.exists():
        return []
    found = [json.loads(line) for line in ROWS_FILE.read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def append(kind: str, **values: Any) -> None:
    """Add a row."""
    with ROWS_FILE.open("a") as file:
        file.write(json.dumps({"kind": kind, **values}) + "\n")


def unlimited() -> list[Genotype]:
    """Return the cells that were searched without a budget, by seed."""
    path = HERE / "signal_searches.jsonl"
    found: dict[int, Genotype] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        settings = (row["estimator"], row.get("judged_by"), row.get("warmup_epochs"))
        if settings == ("score", "all branches", 26):
            found.setdefault(row["seed"], Genotype.from_dict(row["genotype"]))
    return [found[seed] for seed in SEEDS]


def best_published() -> tuple[str, Genotype]:
    """Return the published cell of the least mean loss of the yardstick's trainings."""
    all_rows = read_rows()
    losses = by_cell(all_rows)
    published = {row["name"]: row for row in all_rows if row["origin"] == "published"}
    name = min(published, key=lambda name: statistics.fmean(losses[published[name]["digest"]]))
    return name, Genotype.from_dict(published[name]["genotype"])


def budgets(table: LatencyTable) -> dict[float, float]:
    """Return the budgets in milliseconds, by their part of the latency without one."""
    sizes = {"num_cells": CELLS, "init_channels": CHANNELS}
    typical = statistics.median(table.predict(one, **sizes) for one in unlimited())
    return {part: part * typical for part in BUDGETS}


def random_cells(table: LatencyTable, limit: float) -> list[Genotype]:
    """Return random cells that keep a limit by the table, uniform among those."""
    costs = latency_costs(table, SPACE, num_cells=CELLS, init_channels=CHANNELS)
    numbers, found = random.Random(RANDOM_SEED), dict[Genotype, None]()
    for _ in range(2_000_000):
        genotype = uniform(SPACE, numbers)
        if costs.of(genotype) <= limit:
            found[genotype] = None
            if len(found) == NUM_RANDOM:
                break
    return [*found]


def search_all(data_root: str, ends: float) -> None:
    """Make the searches that are not made yet: a seed of all budgets before the next."""
    table = open_table(str(TABLE_FILE))
    costs = latency_costs(table, SPACE, num_cells=CELLS, init_channels=CHANNELS)
    for seed in SEEDS:
        for part, limit in budgets(table).items():
            done = {(row["part"], row["seed"]) for row in rows("search")}
            if (part, seed) in done or time.monotonic() > ends:
                continue
            config = search_config(data_root, seed, limit)
            search = search_of(config, costs)
            began = time.process_time()
            for _ in search.run():
                pass
            append(
                "search",
                part=part,
                limit_ms=limit,
                seed=seed,
                table=table.digest,
                genotype=search.derive().to_dict(),
                derived_within={
                    other: best_within(type(search.method), search.logits, costs, most).to_dict()
                    for other, most in budgets(table).items()
                },
                expected_ms=[row["expected_latency_ms"] for row in search.metrics],
                derived_ms=[row["derived_latency_ms"] for row in search.metrics],
                price=[row["price"] for row in search.metrics],
                cpu_seconds=round(time.process_time() - began, 1),
            )


def search_config(data_root: str, seed: int, limit: float) -> Config:
    """Return the configuration of a search within a limit."""
    values = {
        **SEARCH,
        "data.root": data_root,
        "run.seed": seed,
        "run.latency_table": TABLE_FILE,
        "search.max_latency_ms": limit,
    }
    preset = str(HERE / "studies" / "proxy.toml")
    return configure(preset, [f"{key}={value}" for key, value in values.items()])


def networks(table: LatencyTable) -> Iterator[tuple[str, Genotype, int]]:
    """Yield the networks to time: a name, a cell and a width."""
    name, published = best_published()
    for width in WIDTHS:
        yield f"published/{name}", published, width
        for seed, genotype in zip(SEEDS, unlimited(), strict=True):
            yield f"unlimited/{seed}", genotype, width
    for row in rows("search"):
        genotype = Genotype.from_dict(row["genotype"])
        yield f"limited/{row['part']}/{row['seed']}", genotype, CHANNELS
        if row["part"] == max(BUDGETS):
            for part, other in row["derived_within"].items():
                yield f"derived/{part}/{row['seed']}", Genotype.from_dict(other), CHANNELS
    for part, limit in budgets(table).items():
        for index, genotype in enumerate(random_cells(table, limit)):
            yield f"random/{part}/{index}", genotype, CHANNELS


def measure() -> None:
    """Time all networks in turns."""
    table, served = open_table(str(TABLE_FILE)), serving()
    every = list(networks(table))
    sessions = [
        open_session(
            network_graph(served.claim(cell, num_cells=CELLS, init_channels=width), served),
            device="cpu",
            num_threads=1,
        )
        for _, cell, width in every
    ]
    timings = time_in_turns(sessions, BATCH)
    sizes = {"num_cells": CELLS, "init_channels": CHANNELS}
    for (name, genotype, width), timing in zip(every, timings, strict=True):
        predicted = table.predict(genotype, **sizes) if width == CHANNELS else None
        append(
            "latency",
            name=name,
            width=width,
            genotype=genotype.to_dict(),
            quietest_ms=timing.quietest_ms,
            middle_ms=statistics.median(timing.medians_ms),
            predicted_ms=predicted,
        )


def measured() -> dict[tuple[str, int], Row]:
    """Return the latest timing of each network, by name and width."""
    return {(row["name"], row["width"]): row for row in rows("latency")}


def widest(name: str, limit: float) -> int | None:
    """Return the greatest width at which a network keeps a limit as measured; None for none."""
    timed = measured()
    fitting = [width for width in WIDTHS if timed[name, width]["quietest_ms"] <= limit]
    return max(fitting, default=None)


def competitors(table: LatencyTable) -> Iterator[tuple[str, float, int, str, int]]:
    """Yield what is compared: kind, part, seed or index, the timed network's name, its width."""
    published = next(name for name, _ in measured() if name.startswith("published/"))
    for part, limit in budgets(table).items():
        for seed in SEEDS:
            for kind in ("limited", "derived"):
                if (f"{kind}/{part}/{seed}", CHANNELS) in measured():
                    yield kind, part, seed, f"{kind}/{part}/{seed}", CHANNELS
            width = widest(f"unlimited/{seed}", limit)
            if width is not None:
                yield "narrower", part, seed, f"unlimited/{seed}", width
        width = widest(published, limit)
        if width is not None:
            yield "published", part, 0, published, width
        for index in range(NUM_RANDOM):
            name = f"random/{part}/{index}"
            if (name, CHANNELS) in measured():
                yield "random", part, index, name, CHANNELS


def losses() -> dict[tuple[str, int], list[float]]:
    """Return the calibrated losses of trainings, by digest and width."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for row in read_rows():  # the yardstick's are of full width
        found.setdefault((row["digest"], CHANNELS), {})[row["seed"]] = row["calibrated_loss"]
    for row in rows("training"):
        found.setdefault((row["digest"], row["width"]), {})[row["seed"]] = row["calibrated_loss"]
    return {key: [of[seed] for seed in sorted(of)] for key, of in found.items()}


def train_all(data_root: str, ends: float) -> None:
    """Train what is compared: all once, and what is no random cell twice."""
    torch.set_flush_denormal(True)
    data = None
    table, timed = open_table(str(TABLE_FILE)), measured()
    for seed in TRAINING_SEEDS:
        for kind, _, _, name, width in competitors(table):
            cell = Genotype.from_dict(timed[name, width]["genotype"])
            enough = len(losses().get((cell.digest, width), [])) > seed
            if enough or (kind == "random" and seed > 0) or time.monotonic() > ends:
                continue
            config = yardstick_task(data_root)
            config = config.model_copy(
                update={"retrain": config.retrain.model_copy(update={"init_channels": width})}
            )
            data = data or load_data(config.data, seed=0, default_root=Path.cwd())
            append(
                "training", width=width, **training_of(config, data, Cell(kind, name, cell), seed)
            )


def report() -> dict[str, Any]:
    """Return, by budget, what is kept and what losses the competitors reach."""
    table, timed, known = open_table(str(TABLE_FILE)), measured(), losses()
    every = [row["calibrated_loss"] for row in read_rows() if row["origin"] == "random"]
    found: dict[str, Any] = {"sd_of_random_cells": statistics.stdev(every)}
    for part, limit in budgets(table).items():
        of_part: dict[str, Any] = {"limit_ms": limit}
        for kind in ("limited", "derived", "narrower", "published", "random"):
            of_kind = [one for one in competitors(table) if one[:2] == (kind, part)]
            cells = [(timed[name, width], width) for *_, name, width in of_kind]
            keys = [(Genotype.from_dict(row["genotype"]).digest, width) for row, width in cells]
            means = [statistics.fmean(known[key]) for key in keys if key in known]
            ratios = [row["quietest_ms"] / limit for row, _ in cells]
            of_part[kind] = summarized(means, ratios, [width for _, width in cells])
        found[str(part)] = of_part
    return found


def summarized(means: Sequence[float], ratios: Sequence[float], widths: Sequence[int]) -> Row:
    """Return a competitor's losses and latencies."""
    return {
        "n": len(means),
        "loss": statistics.fmean(means) if means else None,
        "losses": [round(mean, 4) for mean in means],
        "sd": statistics.stdev(means) if len(means) > 1 else None,
        "widths": sorted(set(widths)),
        "latency_of_limit": [round(ratio, 3) for ratio in ratios],
        "kept_within_5_percent": sum(ratio <= 1.05 for ratio in ratios),
    }


def main() -> None:
    """Make the table, search, measure, train or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["table", "search", "measure", "train", "report"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--hours", type=float, default=1000.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ends = time.monotonic() + 3600 * arguments.hours
    if arguments.command == "table":
        wanted = Wanted(SPACE, CELLS, CHANNELS, serving())
        TABLE_FILE.write_bytes(measure_table(wanted, device="cpu", num_threads=1).to_json())
    elif arguments.command == "search":
        search_all(arguments.data_root, ends)
    elif arguments.command == "measure":
        measure()
    elif arguments.command == "train":
        train_all(arguments.data_root, ends)
    else:
        sys.stdout.write(json.dumps(report(), indent=1) + "\n")


if __name__ == "__main__":
    main()

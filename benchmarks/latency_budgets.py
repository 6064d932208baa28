"""Cells searched within a latency budget, against cells whose networks are made smaller to fit.

    python -m benchmarks.latency_budgets table
    python -m benchmarks.latency_budgets search --data-root DIR [--hours 1]
    python -m benchmarks.latency_budgets measure
    python -m benchmarks.latency_budgets train --data-root DIR [--hours 1] [--part 0/2]
    python -m benchmarks.latency_budgets report

The task is the yardstick's: 5 cells x 8 channels at 16 pixels; latency is that of a batch of 16 on
one thread. The budgets are parts of the median latency of the cells that were searched without one:
those of the score function in ``signal_searches.jsonl``, seeds 0 to 3. For each budget and seed a
search of the same settings keeps it (``search.max_latency_ms``). Beside its cell: the best cell
within the budget of the search that had the largest one, which binds nothing at first; the cell of
the same seed without a budget, and the published cell of the least loss, each in the network of
most multiply-adds, of fewer cells or channels, that keeps the budget as measured; and random cells
of full size that keep it by the table, those of the yardstick first. ``measure`` times all networks
in turns. Every command goes on where it stopped; rows are in ``latency_budgets.jsonl``.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from pipeline.latency.limits import counted_costs, latency_costs, open_table
from pipeline.latency.measuring import Wanted, measure_table
from pipeline.latency.parts import Serving
from pipeline.latency.table import LatencyTable
from pipeline.latency.timing import time_in_turns
from pipeline.onnx_io.session import open_session

from .rows import append_row, own_part, rows_of
from .search import search_of
from .yardstick import Cell, by_cell, first_cells, read_rows, training_of
from .yardstick import configured as yardstick_task

HERE = Path(__file__).parent
ROWS_FILE, TABLE_FILE = HERE / "latency_budgets.jsonl", HERE / "latency_budgets_table.json"
SPACE = SPACES["S0"]
CELLS, CHANNELS, BATCH = 5, 8, 16
SIZES = tuple((cells, channels) for cells in (5, 4, 3) for channels in (8, 4, 2))
"""Cells and channels of the networks that are made smaller; six channels take longer than eight."""
BUDGETS = (0.5, 0.7, 1.0)
SEEDS = (0, 1, 2, 3)
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
    return [row for row in rows_of(ROWS_FILE) if row["kind"] == kind]


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
    numbers = random.Random(RANDOM_SEED)
    trained = (cell.genotype for cell in first_cells() if cell.origin == "random")
    more = (uniform(SPACE, numbers) for _ in range(2_000_000))
    fitting = (one for one in itertools.chain(trained, more) if costs.of(one) <= limit)
    found = dict[Genotype, None]()
    for genotype in fitting:
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
            row = {
                "kind": "search",
                "part": part,
                "limit_ms": limit,
                "seed": seed,
                "table": table.digest,
                "genotype": search.derive().to_dict(),
                "derived_within": {
                    other: best_within(type(search.method), search.logits, costs, most).to_dict()
                    for other, most in budgets(table).items()
                },
                "expected_ms": [row["expected_latency_ms"] for row in search.metrics],
                "derived_ms": [row["derived_latency_ms"] for row in search.metrics],
                "price": [row["price"] for row in search.metrics],
                "cpu_seconds": round(time.process_time() - began, 1),
            }
            append_row(ROWS_FILE, row, same=("kind", "part", "seed"))


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


@dataclass(frozen=True)
class Timed:
    """A network to time: its name, cell and size."""

    name: str
    genotype: Genotype
    num_cells: int = CELLS
    init_channels: int = CHANNELS

    @property
    def size(self) -> tuple[int, int]:
        """Cells and channels."""
        return self.num_cells, self.init_channels

    @property
    def macs(self) -> float:
        """Multiply-adds of an image."""
        size = {"num_cells": self.num_cells, "init_channels": self.init_channels}
        return counted_costs(serving(), "macs", SPACE, **size).of(self.genotype)


def networks(table: LatencyTable) -> Iterator[Timed]:
    """Yield the networks to time."""
    name, published = best_published()
    for size in SIZES:
        yield Timed(f"published/{name}", published, *size)
        for seed, genotype in zip(SEEDS, unlimited(), strict=True):
            yield Timed(f"unlimited/{seed}", genotype, *size)
    for row in rows("search"):
        genotype = Genotype.from_dict(row["genotype"])
        yield Timed(f"limited/{row['part']}/{row['seed']}", genotype)
        if row["part"] == max(BUDGETS):
            for part, other in row["derived_within"].items():
                yield Timed(f"derived/{part}/{row['seed']}", Genotype.from_dict(other))
    for part, limit in budgets(table).items():
        for index, genotype in enumerate(random_cells(table, limit)):
            yield Timed(f"random/{part}/{index}", genotype)


def measure() -> None:
    """Time all networks in turns."""
    table, served = open_table(str(TABLE_FILE)), serving()
    every = list(networks(table))
    sessions = [
        open_session(
            network_graph(
                served.claim(
                    one.genotype, num_cells=one.num_cells, init_channels=one.init_channels
                ),
                served,
            ),
            device="cpu",
            num_threads=1,
        )
        for one in every
    ]
    full = {"num_cells": CELLS, "init_channels": CHANNELS}
    for one, timing in zip(every, time_in_turns(sessions, BATCH), strict=True):
        row = {
            "kind": "latency",
            "name": one.name,
            "num_cells": one.num_cells,
            "init_channels": one.init_channels,
            "genotype": one.genotype.to_dict(),
            "quietest_ms": timing.quietest_ms,
            "middle_ms": statistics.median(timing.medians_ms),
            "predicted_ms": table.predict(one.genotype, **full)
            if one.size == (CELLS, CHANNELS)
            else None,
        }
        append_row(ROWS_FILE, row)


def measured() -> dict[Timed, float]:
    """Return the latest latency of each network in milliseconds."""
    return {
        Timed(
            row["name"],
            Genotype.from_dict(row["genotype"]),
            row["num_cells"],
            row["init_channels"],
        ): row["quietest_ms"]
        for row in rows("latency")
    }


def largest(timed: Mapping[Timed, float], name: str, limit: float) -> list[Timed]:
    """Return the network of a name that keeps a limit and has the most multiply-adds, if any."""
    fitting = [one for one, ms in timed.items() if one.name == name and ms <= limit]
    return sorted(fitting, key=lambda one: one.macs)[-1:]


def competitors(table: LatencyTable, part: float, limit: float) -> dict[str, list[Timed]]:
    """Return what is compared within a limit, by kind."""
    timed = measured()
    published = f"published/{best_published()[0]}"

    def named(kind: str) -> list[Timed]:
        return [one for one in timed if one.name.startswith(f"{kind}/{part}/")]

    return {
        "limited": named("limited"),
        "derived": named("derived"),
        "smaller": [one for s in SEEDS for one in largest(timed, f"unlimited/{s}", limit)],
        "published": largest(timed, published, limit),
        "random": named("random"),
    }


def losses() -> dict[tuple[str, int, int], list[float]]:
    """Return the calibrated losses of trainings, by digest, cells and channels."""
    found: dict[tuple[str, int, int], dict[int, float]] = {}
    for row in [*read_rows(), *rows("training")]:
        size = row.get("num_cells", CELLS), row.get("init_channels", CHANNELS)
        found.setdefault((row["digest"], *size), {})[row["seed"]] = row["calibrated_loss"]
    return {key: [of[seed] for seed in sorted(of)] for key, of in found.items()}


def waiting() -> list[tuple[Timed, int]]:
    """Return the trainings that are still to be made: of all once, what is no random cell twice;
    random ones last.
    """
    table, known = open_table(str(TABLE_FILE)), losses()
    every = [competitors(table, part, limit) for part, limit in budgets(table).items()]
    found = dict[tuple[Timed, int], None]()
    for kinds, seeds in (
        (("limited", "smaller", "published", "derived"), (0, 1)),
        (("random",), (0,)),
    ):
        for seed in seeds:
            for one in (one for of in every for kind in kinds for one in of[kind]):
                if len(known.get((one.genotype.digest, *one.size), [])) <= seed:
                    found[dataclasses.replace(one, name=""), seed] = None
    return list(found)


def train_all(data_root: str, ends: float, part: int, parts: int) -> None:
    """Train what is compared, until the time is over."""
    torch.set_flush_denormal(True)
    config = yardstick_task(data_root)
    data = load_data(config.data, seed=0, default_root=Path.cwd())
    while time.monotonic() < ends:
        mine = own_part(waiting(), part, parts)
        if not mine:
            return
        one, seed = mine[0]
        size = {"num_cells": one.num_cells, "init_channels": one.init_channels}
        resized = config.model_copy(update={"retrain": config.retrain.model_copy(update=size)})
        cell = Cell("latency budget", "", one.genotype)
        row = {"kind": "training", **size, **training_of(resized, data, cell, seed)}
        append_row(ROWS_FILE, row, same=("kind", "digest", *size, "seed"))


def report() -> dict[str, Any]:
    """Return, by budget, what is kept and what losses the competitors reach."""
    table, timed, known = open_table(str(TABLE_FILE)), measured(), losses()
    every = [row["calibrated_loss"] for row in read_rows() if row["origin"] == "random"]
    found: dict[str, Any] = {"sd_of_random_cells": statistics.stdev(every)}
    for part, limit in budgets(table).items():
        found[str(part)] = {
            "limit_ms": limit,
            **{
                kind: summarized(of, [timed[one] / limit for one in of], known)
                for kind, of in competitors(table, part, limit).items()
            },
        }
    return found


def summarized(
    of: Sequence[Timed],
    ratios: Sequence[float],
    known: Mapping[tuple[str, int, int], Sequence[float]],
) -> Row:
    """Return a competitor's losses and latencies."""
    keys = [(one.genotype.digest, *one.size) for one in of]
    means = [statistics.fmean(known[key]) for key in keys if key in known]
    return {
        "n": len(of),
        "trained": len(means),
        "trainings": sum(len(known.get(key, [])) for key in keys),
        "loss": statistics.fmean(means) if means else None,
        "losses": [round(mean, 4) for mean in means],
        "sd": statistics.stdev(means) if len(means) > 1 else None,
        "sizes": sorted({one.size for one in of}),
        "latency_of_limit": [round(ratio, 3) for ratio in ratios],
        "kept_within_5_percent": sum(ratio <= 1.05 for ratio in ratios),
    }


def main() -> None:
    """Make the table, search, measure, train or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["table", "search", "measure", "train", "report"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--part", default="0/1")
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
        part, parts = map(int, arguments.part.split("/"))
        train_all(arguments.data_root, ends, part, parts)
    else:
        sys.stdout.write(json.dumps(report(), indent=1) + "\n")


if __name__ == "__main__":
    main()

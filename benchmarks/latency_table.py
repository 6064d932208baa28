"""How well does a latency table predict networks that it was not made of?

    python -m benchmarks.latency_table [--threads 1] [--batch 1] [--networks 40] > table.json

A table of networks of 20 cells x 36 channels at 32 pixels is measured, as ``d2nas latency measure
cifar10`` does. Random networks of S0 and the published ones, which are no part of it, are timed in
the same rounds and by the same rule: the lowest of a network's medians over all rounds, which is
what it takes while nothing else runs. Beside the table: how multiply-adds and parameters rank and
predict them, each by the line of the least squared relative errors through all networks timed,
which flatters them.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr

from d2nas.genotype import PUBLISHED, Genotype, uniform
from d2nas.spaces import SPACES
from pipeline.latency import ROUNDS
from pipeline.latency.counts import count_network
from pipeline.latency.fitting import calibrate
from pipeline.latency.measuring import Wanted, measure_beside
from pipeline.latency.parts import Serving
from pipeline.latency.summary import summary

CELLS, CHANNELS, SIZE = 20, 36, 32
SEED = 77
"""Of the random networks; the table's are others."""


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    space = SPACES["S0"]
    serving = Serving(
        image_size=SIZE,
        in_channels=3,
        num_classes=10,
        stem="cifar",
        opset=20,
        input_type="uint8",
        precision="fp32",
        batch=arguments.batch,
    )
    wanted = Wanted(space, CELLS, arguments.channels, serving)
    networks = {
        name: genotype
        for name in PUBLISHED
        if (genotype := Genotype.published(name)).nodes == space.nodes
    }
    numbers = random.Random(SEED)
    networks |= {f"random {index}": uniform(space, numbers) for index in range(arguments.networks)}
    table, timings = measure_beside(
        wanted,
        [*networks.values()],
        device=arguments.device,
        num_threads=arguments.threads,
        rounds=arguments.rounds,
        done=lambda number: sys.stderr.write(f"round {number}\n"),
    )
    rows = []
    for (name, genotype), timing in zip(networks.items(), timings, strict=True):
        sizes = {"num_cells": CELLS, "init_channels": arguments.channels}
        counts = count_network(wanted.claim(genotype), SIZE)
        rows.append(
            {
                "network": name,
                "measured_ms": timing.quietest_ms,
                "middle_round_ms": statistics.median(timing.medians_ms),
                "predicted_ms": table.predict(genotype, **sizes),
                "macs": counts.macs,
                "params": counts.params,
            }
        )
    told = {"table": summary(table), "channels": arguments.channels, **judged(rows), "rows": rows}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args()


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rank correlations with the measured latencies, and relative errors."""
    measured = [row["measured_ms"] for row in rows]
    found: dict[str, Any] = {"networks": len(rows)}
    for name in ("predicted_ms", "macs", "params"):
        values = [float(row[name]) for row in rows]
        if name != "predicted_ms":
            line = calibrate(values, measured)
            values = [line(value) for value in values]
        errors = [abs(value / taken - 1) for value, taken in zip(values, measured, strict=True)]
        found[name] = {
            "rank_correlation": float(spearmanr(values, measured).statistic),
            "median_error": statistics.median(errors),
            "largest_error": max(errors),
        }
    spreads = [row["middle_round_ms"] / row["measured_ms"] - 1 for row in rows]
    return found | {"middle_round_above_the_quietest": statistics.median(spreads)}


if __name__ == "__main__":
    main()

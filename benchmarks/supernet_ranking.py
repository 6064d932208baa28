"""How well does a supernet rank cells? Its losses of the yardstick's cells against those of their
own training, for any setting of the search.

    python -m benchmarks.supernet_ranking --data-root DIR --set search.branch_length=2 >> r.jsonl

Weights alone are trained, by uniformly drawn cells, on the task of studies/small-data.toml. At some
epochs every cell is judged on the architecture half as the search judges it: by the mean of its
branches' losses, whose gradient moves the logits straight through, and by the last branch's, the
prediction's; both as they are and calibrated, as the score function takes it. Each is also averaged
over all looks so far, every look's losses less their mean over the cells and divided by their
standard deviation: what the supernet has said along its training (Ru et al., arXiv 2006.04492, sum
the losses of a training for the same end). Rank correlations are with the calibrated loss that the
same cell reached when it was trained alone (yardstick.jsonl and small_data.json, the mean of its
trainings), whose own noise bounds them. One JSON line per look.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from d2nas.genotype import Genotype
from d2nas.measure.calibration import calibrated_losses, cross_entropies
from d2nas.methods.derivation import draw_of
from d2nas.methods.single_path import SinglePath
from d2nas.train.search import Search, weight_step
from pipeline.commands.configuration import configure

from .search import search_of
from .yardstick import read_rows

HERE = Path(__file__).parent
TASK = ("data.train_images=2000", "search.warmup_epochs=0")
BATCH = 250

Losses = Mapping[str, list[float]]


def main() -> None:
    """Train and judge; print a line per look."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    task = [*TASK, f"search.epochs={max(arguments.looks)}", f"run.seed={arguments.seed}"]
    settings = [*task, f"data.root={arguments.data_root}", *arguments.set]
    config = configure(str(HERE / "studies" / "proxy.toml"), settings)
    cells = [*alone().items()]
    search = search_of(config)
    looks: list[Losses] = []
    with torch.no_grad():
        for parameter in search.logits.parameters():
            parameter.zero_()
    for step in range(search.num_steps):
        weight_step(search, step)
        epoch, rest = divmod(step + 1, search.steps_per_epoch)
        if rest == 0 and epoch in arguments.looks:
            told = {"set": arguments.set, "seed": arguments.seed, "epoch": epoch}
            looks.append(judge(search, [genotype for genotype, _ in cells]))
            found = correlations(looks, [loss for _, loss in cells])
            sys.stdout.write(json.dumps(told | found) + "\n")
            sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--looks", type=int, nargs="+", default=[10, 20, 40, 80], metavar="EPOCH")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def alone() -> dict[Genotype, float]:
    """Return the cells that were trained alone and the mean of their calibrated losses."""
    rows = [*read_rows(), *json.loads((HERE / "small_data.json").read_text())["rows"]]
    losses: dict[Genotype, list[float]] = {}
    for row in rows:
        losses.setdefault(Genotype.from_dict(row["genotype"]), []).append(row["calibrated_loss"])
    return {genotype: statistics.fmean(of) for genotype, of in losses.items()}


@torch.no_grad()
def judge(search: Search, genotypes: Sequence[Genotype]) -> Losses:
    """Return the cells' losses under the supernet's weights, in their order, by kind of loss."""
    found: dict[str, list[float]] = defaultdict(list)
    for genotype in genotypes:
        logits_BNC, labels = answers(search, genotype)
        plain = cross_entropies(logits_BNC, labels)
        calibrated, _ = calibrated_losses(logits_BNC, labels)
        for name, of in (("loss", plain), ("calibrated loss", calibrated)):
            found[name].append(float(of[-1]))
            found[f"{name}, mean of branches"].append(float(of.mean()))
    return found


def correlations(looks: Sequence[Losses], alone: Sequence[float]) -> dict[str, Any]:
    """Return the rank correlations of the last look's losses, and of those of all looks, with the
    losses of the same cells trained alone.
    """

    def rank_correlation(losses: Sequence[float]) -> float:
        return round(float(spearmanr(losses, alone).statistic), 3)

    last = looks[-1]
    found = {
        "cells": len(alone),
        "mean_prediction_loss": round(statistics.fmean(last["loss"]), 3),
    }
    for name, losses in last.items():
        by_look = zip(*(standardized(look[name]) for look in looks), strict=True)
        found[name] = rank_correlation(losses)
        found[f"{name}, all looks"] = rank_correlation([sum(of_cell) for of_cell in by_look])
    return found


def standardized(values: Sequence[float]) -> list[float]:
    """Return the values less their mean, divided by their standard deviation."""
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / sd for value in values]


def answers(search: Search, genotype: Genotype) -> tuple[Tensor, Tensor]:
    """Return each branch's logits (branches, N, classes) on the architecture half, and labels."""
    method, batches = search.method, search.arch_batches
    assert isinstance(method, SinglePath)
    draw = draw_of(genotype, search.space).with_gates(None, None)
    parts = []
    for start in range(0, len(batches.images), BATCH):
        x = batches.normalizer(batches.images.pixels(slice(start, start + BATCH)))
        parts.append(torch.stack([branch.logits for branch in method.supernet.branches(x, draw)]))
    return torch.cat(parts, dim=1), batches.images.labels_N


if __name__ == "__main__":
    main()

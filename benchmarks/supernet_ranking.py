"""How well does a supernet rank cells? Its losses of 60 random cells against those of their own
training, for any setting of the search.

    python -m benchmarks.supernet_ranking --data-root DIR --set search.branch_length=2 >> r.jsonl

Weights alone are trained, by uniformly drawn cells, on the task of studies/small-data.toml. At some
epochs every cell is judged on the architecture half as the search judges it: by the sum of its
branches' losses, whose gradient moves the logits, and by the last branch's, the prediction. Rank
correlations are with the calibrated loss and the accuracy that the same cell reached when it was
trained alone (small_data.json), whose own noise bounds them. One JSON line per epoch looked at.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from d2nas.genotype import Genotype
from d2nas.methods.single_path import SinglePath
from d2nas.train.candidates import draw_of
from d2nas.train.search import Search, weight_step
from pipeline.commands.configuration import configure

from .search import search_of

HERE = Path(__file__).parent
TASK = ("data.train_images=2000", "search.epochs=160")
LOOKS = (20, 40, 80, 120, 160)
"""Epochs after which the cells are judged."""
BATCH = 250


def main() -> None:
    """Train and judge; print a line per look."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    settings = [*TASK, f"data.root={arguments.data_root}", f"run.seed={arguments.seed}"]
    config = configure(str(HERE / "studies" / "proxy.toml"), [*settings, *arguments.set])
    rows = json.loads((HERE / "small_data.json").read_text())["rows"]
    cells = [row for row in rows if row["method"] == "random"]
    search = search_of(config)
    for epoch in range(1, config.search.epochs + 1):
        for step in range((epoch - 1) * search.steps_per_epoch, epoch * search.steps_per_epoch):
            weight_step(search, step)
        if epoch in LOOKS:
            look = judge(search, cells)
            told = {"set": arguments.set, "seed": arguments.seed, "epoch": epoch, **look}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


@torch.no_grad()
def judge(search: Search, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rank correlations of the supernet's losses with what the cells reached alone."""
    method, batches = search.method, search.arch_batches
    assert isinstance(method, SinglePath)
    branch_losses: list[list[float]] = []
    for cell in cells:
        draw = draw_of(Genotype.from_dict(cell["genotype"]), search.space).with_gates(None, None)
        totals: list[float] = []
        for start_at in range(0, len(batches.images), BATCH):
            part = slice(start_at, start_at + BATCH)
            x, labels = (
                batches.normalizer(batches.images.pixels(part)),
                batches.images.labels_N[part],
            )
            losses = [
                float(F.cross_entropy(branch.logits, labels, reduction="sum"))
                for branch in method.supernet.branches(x, draw)
            ]
            totals = [a + b for a, b in zip(totals or [0.0] * len(losses), losses, strict=True)]
        branch_losses.append([total / len(batches.images) for total in totals])
    judged = {
        "prediction": [losses[-1] for losses in branch_losses],
        "sum of branches": [sum(losses) for losses in branch_losses],
    }
    better = {
        "calibrated_loss": [-cell["calibrated_loss"] for cell in cells],
        "accuracy": [cell["accuracy"] for cell in cells],
    }
    return {
        "mean_prediction_loss": sum(judged["prediction"]) / len(cells),
        **{
            f"{by}, {what}": round(
                float(spearmanr([-loss for loss in losses], values).statistic), 3
            )
            for by, losses in judged.items()
            for what, values in better.items()
        },
    }


if __name__ == "__main__":
    main()

"""Times D2NAS's search step, and our GDAS's, beside that of GDAS's authors' code.

    git clone https://github.com/D-X-Y/AutoDL-Projects
    python benchmarks/official_gdas.py AutoDL-Projects --pairs 7 > official_gdas.json

Their cells, operations, sampling and head, in the layout of eight cells that we search (their own
has three per stage); their step: each half once, clipping, both losses and accuracies read. Their
images stay where they are (no transfer, no loader), as ours do.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2nas.config import SearchConfig

from .pairs import TimedWork, compare
from .search import CLASSES, IMAGE_SIZE, StepRunner

NODES, REDUCTIONS = 4, (2, 5)


def official_network(checkout: Path, config: SearchConfig) -> nn.Module:
    """Build their supernet with as many cells, reductions where ours are."""
    sys.path.insert(0, str(checkout))
    from xautodl.models.cell_operations import SearchSpaceNames
    from xautodl.models.cell_searchs.search_cells import NASNetSearchCell
    from xautodl.models.cell_searchs.search_model_gdas_nasnet import NASNetworkGDAS

    width, space = config.init_channels, SearchSpaceNames["darts"]
    network = NASNetworkGDAS(width, 1, NODES, NODES, 3, CLASSES, space, False, True)
    cells, before, last, was_reduction = [], 3 * width, 3 * width, False
    for index in range(config.num_cells):
        is_reduction = index in REDUCTIONS
        width *= 2 if is_reduction else 1
        sizes = (before, last, width)
        cells.append(
            NASNetSearchCell(space, NODES, NODES, *sizes, is_reduction, was_reduction, False, True)
        )
        before, last, was_reduction = last, NODES * width, is_reduction
    network.cells = nn.ModuleList(cells)
    network.train()
    return network  # type: ignore[no-any-return]


def official_step(network: Any, config: SearchConfig) -> Callable[[], None]:
    """Return their step on a made-up batch for each half."""
    weights = torch.optim.SGD(
        network.get_weights(), config.weight_lr, momentum=0.9, weight_decay=3e-4, nesterov=True
    )
    logits = torch.optim.Adam(
        network.get_alphas(), lr=config.arch_lr, betas=(0.5, 0.999), weight_decay=1e-3
    )
    loss_of = nn.CrossEntropyLoss()
    images = torch.randn(2, config.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = torch.randint(0, CLASSES, (2, config.batch_size))

    def half(index: int, optimizer: torch.optim.Optimizer, *, clip: bool) -> None:
        optimizer.zero_grad()
        scores = network(images[index])[1]
        loss = loss_of(scores, labels[index])
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        # Their loop reads both at every step: that is part of its time.
        _ = loss.item(), (scores.argmax(1) == labels[index]).float().mean().item()

    def step() -> None:
        half(0, weights, clip=True)
        half(1, logits, clip=False)

    return step


def main() -> None:
    """Print the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a clone of D-X-Y/AutoDL-Projects")
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    config = SearchConfig(warmup_epochs=0)
    official = TimedWork(
        "gdas, its authors' code",
        official_step(official_network(arguments.checkout, config), config),
        {"step": 1, "pass": 2},
    )
    rows = []
    for method, changes in (("d2nas", {"draws": 1}), ("d2nas", {}), ("gdas", {})):
        settings = config.model_copy(update={"method": method, **changes})
        draws = "1 draw" if settings.draws == 1 else f"{settings.draws} draws"
        name = f"{method}, {draws}" if method == "d2nas" else method
        ours = StepRunner(settings).timed(name, 1)
        rows += compare(ours, official, arguments.pairs)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

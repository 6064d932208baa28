"""Searches small enough for a second: made images, three cells, any method and space."""

import torch

from d2nas.config import Config, build_config
from d2nas.costs import CellCosts
from d2nas.data.images import ImageData, ImageSet
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import SPACES, SearchSpace
from d2nas.train.search import Search
from d2nas.train.state import TrainState

# Few candidates, cheap ones; noise, pooling, skips and convolutions among them.
CHEAP = SearchSpace(
    "cheap",
    (("noise", "dil_conv_3x3"), ("skip_connect",)) * 7,
    (("max_pool_3x3", "noise"), ("skip_connect",)) * 7,
)
CPU = torch.device("cpu")
CLASSES, HALF, SIZE = 4, 16, 8


def made_images(*, size: int = SIZE, channels: int = 3, half: int = HALF) -> ImageData:
    """Noise, brighter by class: there is something to learn."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * half + CLASSES) % CLASSES
    shape = (len(labels), channels, size, size)
    pixels = torch.randint(0, 100, shape, generator=numbers) + 40 * labels[:, None, None, None]
    images = pixels.to(torch.uint8)

    def part(start: int, stop: int | None) -> ImageSet:
        return ImageSet(images[start:stop], labels[start:stop])

    return ImageData(
        name="made",
        class_names=tuple("abcd"),
        train=part(0, 2 * half),
        weight_half=part(0, half),
        arch_half=part(half, 2 * half),
        test=part(2 * half, None),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        digest="0" * 64,
        image_size=size,
        channels=channels,
    )


def config_of(method: str, *overrides: str) -> Config:
    """Two steps an epoch; PC-DARTS with a quarter of the channels needs more of them."""
    search = {
        "method": method,
        "num_cells": 3,
        "init_channels": 8 if method == "pc-darts-4" else 4,
        "epochs": 2,
        "batch_size": HALF // 2,
        "draws": 2,
        "arch_lr": 0.01,
    }
    return build_config({"data": {"crop_padding": 1, "flip": True}, "search": search}, overrides)


def search_by(
    method: str,
    *overrides: str,
    space: str | SearchSpace = "S0",
    device: torch.device = CPU,
    data: ImageData | None = None,
    seed: int = 0,
    costs: CellCosts | None = None,
) -> Search:
    """A search that has not begun."""
    config = config_of(method, *overrides)
    search = Search(
        config.search,
        SPACES[space] if isinstance(space, str) else space,
        made_images() if data is None else data,
        seed=seed,
        device=device,
        augmentation=config.data,
        costs=costs,
    )
    search.network.train()
    return search


def finish(search: Search) -> Search:
    """Run every step."""
    for _ in search.run():
        pass
    return search


def run_with_states(search: Search) -> dict[int, TrainState]:
    """Run every step, and return the states after each but the last, and before the first."""
    states = {0: search.capture(0)}
    for report in search.run():
        states[report.step + 1] = search.capture(report.step + 1)
    del states[search.num_steps]
    return states


def continued(search: Search, state: TrainState) -> Search:
    """Run what is left after a state."""
    for _ in search.run(state):
        pass
    return search


def same_end(one: Search, other: Search) -> bool:
    """Whether two finished searches are equal to the last bit, in all that they found and told."""
    first, second = final_state(one), final_state(other)
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
        and one.metrics == other.metrics
        and one.method.derive() == other.method.derive()
        and one.num_passes == other.num_passes
    )


def final_state(search: Search) -> dict[str, torch.Tensor]:
    """Logits, weights, statistics, moments and sums, as a checkpoint holds them."""
    return search.capture(search.num_steps).tensors


def spread_logits(space: SearchSpace, seed: int = 0, *, scale: float = 1.0) -> ArchLogits:
    """Logits far enough from uniform that a wrong formula shows."""
    logits = ArchLogits(space)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in logits.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=numbers))
    return logits

"""Multiply-adds and parameters without torch are those that torch counts."""

import random
from dataclasses import replace

import pytest
from servings import PLAIN

from d2nas.errors import ConfigError
from d2nas.genotype import PUBLISHED, Genotype, uniform
from d2nas.measure.cost import Cost, count_cost
from d2nas.nn.network import Network
from d2nas.spaces import SPACES, SearchSpace
from pipeline.latency.counts import count_network
from pipeline.latency.limits import counted_costs
from pipeline.latency.parts import Serving

SIZES = {
    "cifar": {"image_size": 32, "in_channels": 3, "stem": "cifar"},
    "odd": {"image_size": 15, "in_channels": 1, "stem": "cifar"},
    "imagenet": {"image_size": 97, "in_channels": 3, "stem": "imagenet"},
}


def serving_of(sizes: str) -> Serving:
    return replace(PLAIN, num_classes=7, **SIZES[sizes])  # type: ignore[arg-type]


def counted_by_torch(genotype: Genotype, serving: Serving, cells: int, width: int) -> Cost:
    network = Network(
        genotype,
        num_cells=cells,
        init_channels=width,
        num_classes=serving.num_classes,
        in_channels=serving.in_channels,
        stem=serving.stem,
    )
    return count_cost(network, (serving.in_channels, serving.image_size, serving.image_size))


@pytest.mark.parametrize("sizes", SIZES)
def test_networks_are_counted_as_torch_counts_them(sizes: str) -> None:
    numbers, serving = random.Random(0), serving_of(sizes)
    genotypes = [uniform(SPACES[name], numbers) for name in ("S0", "S0", "S1", "S2", "S3")]
    genotypes += map(Genotype.published, ("AmoebaNet_A", "DARTS_V2"))
    for genotype in genotypes:
        cells = numbers.choice((1, 2, 5))
        claim = serving.claim(genotype, num_cells=cells, init_channels=6)
        found = count_network(claim, serving.image_size)
        counted = counted_by_torch(genotype, serving, cells, 6)
        assert (found.macs, found.params) == (counted.macs, counted.params)


def test_every_published_cell_is_counted() -> None:
    serving = serving_of("cifar")
    for name in PUBLISHED:
        genotype = Genotype.published(name)
        found = count_network(serving.claim(genotype, num_cells=3, init_channels=4), 32)
        counted = counted_by_torch(genotype, serving, 3, 4)
        assert (found.macs, found.params) == (counted.macs, counted.params), name


@pytest.mark.parametrize("quantity", ["macs", "params"])
@pytest.mark.parametrize("space", ["S0", "S1", "S3"])
def test_costs_of_cells_add_up_to_those_of_networks(space: str, quantity: str) -> None:
    serving, numbers, searched = serving_of("odd"), random.Random(1), SPACES[space]
    costs = counted_costs(serving, quantity, searched, num_cells=5, init_channels=8)
    for _ in range(20):
        genotype = uniform(searched, numbers)
        claim = serving.claim(genotype, num_cells=5, init_channels=8)
        assert costs.of(genotype) == getattr(count_network(claim, 15), quantity)


def test_operations_of_other_packages_are_not_known() -> None:
    names = ("skip_connect", "noise")
    space = SearchSpace("noisy", (names,) * 14, (names,) * 14)
    with pytest.raises(ConfigError, match="macs of the operation noise are not known"):
        counted_costs(serving_of("odd"), "macs", space, num_cells=5, init_channels=8)

"""Memory that a network needs at least, by the maps that are alive at once."""

import random
from dataclasses import replace

from servings import PLAIN

from d2nas.genotype import Genotype, uniform
from d2nas.spaces import SPACES
from pipeline.latency.counts import count_network
from pipeline.latency.memory import least_memory


def test_a_network_by_hand() -> None:
    """A reduction cell of skips alone on inputs of 8 channels at 16 pixels. The most is alive at
    the second edge of node 4, whose output's second half reads a map moved by a row and a column:
    the images, both inputs (node 5 reads them, too), the rectified input, the same without its
    first row, and without its first column, two nodes and the other edge of 8 channels at 8 pixels.
    """
    skips = tuple(("skip_connect", source) for source in (0, 1) * 4)
    claim = PLAIN.claim(Genotype(skips, skips), num_cells=1, init_channels=4)
    found = least_memory(claim, PLAIN)
    numbers = 3 * 256 + 3 * 8 * 256 + 8 * 15 * 16 + 8 * 15 * 15 + 3 * 8 * 64
    assert found.maps == 4 * numbers
    params = count_network(claim, 16).params
    assert 0.8 * 4 * params < found.weights < 1.3 * 4 * params  # scales are folded, or four numbers


def test_maps_grow_with_the_batch_and_shrink_with_half_precision() -> None:
    genotype = uniform(SPACES["S0"], random.Random(0))
    claim = PLAIN.claim(genotype, num_cells=5, init_channels=8)
    one = least_memory(claim, PLAIN)
    four = least_memory(claim, replace(PLAIN, batch=4))
    assert four.maps == 4 * one.maps
    assert four.weights == one.weights
    half = least_memory(claim, replace(PLAIN, precision="fp16"))
    assert half.maps < 0.7 * one.maps
    assert half.weights < 0.7 * one.weights
    wider = least_memory(replace(claim, init_channels=16), PLAIN)
    assert wider.maps > 1.7 * one.maps

"""Probabilities of sub-networks: against all of a small space, and against samples."""

import itertools
import math
from collections import Counter

import pytest
import torch
from searches import spread_logits

from d2nas import SPACES, ArchLogits, SearchSpace, sample
from d2nas.nn.probability import expected_share, log_probability, temperature_of, tempered
from d2nas.nn.sampling import CellDraw, Draw
from d2nas.spaces import node_edges

# Two operations on one edge of each node, one on all others: 16 x 180 cells of a type.
SMALL = SearchSpace(
    "small",
    tuple(
        ("skip_connect", "sep_conv_3x3") if edge == rows.start else ("skip_connect",)
        for rows in node_edges(14)
        for edge in rows
    ),
    (("max_pool_3x3",),) * 14,
)


def drawn(logits: ArchLogits, seed: int) -> Draw:
    return sample(logits, 1.0, torch.Generator().manual_seed(seed)).with_gates(None, None)


def test_probabilities_of_a_whole_space_add_up_to_one() -> None:
    logits = spread_logits(SMALL, scale=1.5)
    reduce = drawn(logits, 0).reduce
    pairs = [list(itertools.combinations(rows, 2)) for rows in node_edges(14)]
    total, of_reduce = 0.0, set()
    for chosen in itertools.product(*pairs):
        edges = tuple(edge for pair in chosen for edge in pair)
        for operations in itertools.product(*(range(len(SMALL.normal[edge])) for edge in edges)):
            draw = Draw(CellDraw(edges, operations, None), reduce)
            total += math.exp(log_probability(logits, draw))
    # The reduction cell is the same in all: what is left is its own probability.
    for chosen in itertools.product(*pairs):
        edges = tuple(edge for pair in chosen for edge in pair)
        draw = Draw(drawn(logits, 0).normal, CellDraw(edges, (0,) * 8, None))
        of_reduce.add(log_probability(logits, draw))
    normal = log_probability(logits, drawn(logits, 0)) - math.log(total)
    assert sum(map(math.exp, of_reduce)) == pytest.approx(math.exp(normal))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_samples_keep_the_expected_share_and_are_as_probable_as_said(temperature: float) -> None:
    logits = spread_logits(SPACES["S1"], scale=1.5)
    own = drawn(tempered(logits, 1e-4), 0)
    samples = [drawn(tempered(logits, temperature), seed) for seed in range(2000)]
    share = 0.0
    for draw in samples:
        for cell, other in ((own.normal, draw.normal), (own.reduce, draw.reduce)):
            pairs = {*zip(cell.edges, cell.operations, strict=True)}
            share += len(pairs & {*zip(other.edges, other.operations, strict=True)}) / 16
    assert share / 2000 == pytest.approx(expected_share(logits, own, temperature), abs=0.01)


def test_a_frequent_draw_is_as_frequent_as_its_probability() -> None:
    logits = spread_logits(SPACES["S2"], scale=20.0)
    found = Counter(drawn(logits, seed) for seed in range(2000))
    draw, times = found.most_common(1)[0]
    assert times > 100
    assert times / 2000 == pytest.approx(math.exp(log_probability(logits, draw)), abs=0.03)


def test_logits_far_apart_are_no_zero_by_zero() -> None:
    logits = ArchLogits(SPACES["S0"])
    with torch.no_grad():
        for cell in ("normal", "reduce"):
            logits.ops(cell)[:, 2] = 1e4
            logits.edges(cell).copy_(1e4 * torch.arange(14.0))
    own = drawn(logits, 0)
    assert log_probability(logits, own) == pytest.approx(0.0)
    assert expected_share(logits, own) == pytest.approx(1.0)
    other = Draw(CellDraw(own.normal.edges, (0,) * 8, None), own.reduce)
    assert log_probability(logits, other) == pytest.approx(-8e4)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 2.0, 50.0])
@pytest.mark.parametrize("space", ["S0", "S1", "S2"])
def test_a_temperature_keeps_half_of_a_cell_however_flat_or_narrow(
    space: str, scale: float
) -> None:
    logits = spread_logits(SPACES[space], scale=scale)
    own = drawn(tempered(logits, 1e-4), 0)
    temperature = temperature_of(logits, own, 0.5)
    assert expected_share(logits, own, temperature) == pytest.approx(0.5, abs=0.01)
    assert temperature == pytest.approx(
        scale * temperature_of(spread_logits(SPACES[space]), own, 0.5), rel=0.02
    )


def test_a_share_that_no_temperature_has_gives_an_end_of_the_range() -> None:
    one = SearchSpace("one", (("skip_connect",),) * 14, (("skip_connect",),) * 14)
    logits = spread_logits(one, scale=1.5)
    own = drawn(tempered(logits, 1e-4), 0)
    assert temperature_of(logits, own, 0.5) == 1e4  # other edges alone: 0.64 at the least


def test_tempered_logits_are_a_copy_and_at_one_the_same() -> None:
    logits = spread_logits(SPACES["S0"], scale=1.5)
    before = {name: value.clone() for name, value in logits.state_dict().items()}
    flat = tempered(logits, 4.0)
    assert torch.equal(flat.ops("normal"), logits.ops("normal") / 4.0)
    assert torch.equal(flat.edges("reduce"), logits.edges("reduce") / 4.0)
    same = tempered(logits, 1.0).state_dict()
    for name, value in logits.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, same[name])

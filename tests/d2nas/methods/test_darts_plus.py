"""DARTS+: where it stops, which genotype it returns, and that a stopped search resumes."""

import itertools
from typing import Any

import pytest
import torch
from rivals import SIZES
from searches import CHEAP, continued, finish, run_with_states, same_end, search_by

from d2nas import SPACES, ArchLogits
from d2nas.config import build_config
from d2nas.methods.base import EpochEnd
from d2nas.methods.darts_plus import DartsPlus
from d2nas.nn.mixed_supernet import mixture_weights
from d2nas.spaces import SearchSpace

TWO = SearchSpace.from_dict({"name": "two", "normal": ["skip_connect", "max_pool_3x3"]})
WITH_NONE = SearchSpace.from_dict(
    {"name": "three", "normal": ["none", "skip_connect", "max_pool_3x3"]}
)
NODES = (range(0, 2), range(2, 5), range(5, 9), range(9, 14))


def end_of(epoch: int, epochs: int = 50) -> EpochEnd:
    def nothing(_: int) -> Any:
        raise AssertionError("no image is looked at")

    return EpochEnd(epoch, epochs, 1, nothing, nothing, nothing, nothing, nothing)


def method_in(space: SearchSpace, warmup: int = 0) -> DartsPlus:
    return DartsPlus(space, SIZES, torch.Generator(), recompute="none", warmup=warmup)


def skips_by_trial(logits: ArchLogits) -> int:
    """Of all ways to keep two edges of each node, the skips of the one of the largest weights."""
    weights, _ = mixture_weights(logits, "normal")
    candidates, total = logits.space.candidates("normal"), 0
    for rows in NODES:
        found = []
        for pair in itertools.combinations(rows, 2):
            strength, skips = 0.0, 0
            for row in pair:
                values = dict(zip(candidates[row], weights[row].tolist(), strict=False))
                values.pop("none", None)
                name = max(values, key=values.__getitem__)
                strength += values[name]
                skips += name == "skip_connect"
            found.append((strength, skips))
        total += max(found)[1]
    return total


@pytest.mark.parametrize("space", [TWO, WITH_NONE, SPACES["S2"]])
def test_it_stops_where_the_derived_normal_cell_has_two_skips(space: SearchSpace) -> None:
    method, numbers = method_in(space), torch.Generator().manual_seed(0)
    column, seen = space.normal[0].index("skip_connect"), set()
    for trial in range(60):
        with torch.no_grad():
            for cell in ("normal", "reduce"):
                logits = method.logits.ops(cell)
                logits.copy_(torch.randn(logits.shape, generator=numbers))
            method.logits.normal_ops[:, column] -= 0.1 * (trial % 30)
        skips = skips_by_trial(method.logits)
        seen.add(skips)
        assert method.describe() == {"normal_skips": skips}
        assert method.close_epoch(end_of(3)) == (50 if skips >= 2 else 4)
    assert {0, 1, 2, 3} <= seen


def test_skips_of_the_reduction_cell_do_not_count() -> None:
    method = method_in(TWO)
    with torch.no_grad():
        method.logits.normal_ops[:, 1] = 5.0
        method.logits.reduce_ops[:, 0] = 5.0
    assert method.close_epoch(end_of(3)) == 4
    with torch.no_grad():
        method.logits.normal_ops[:, 0] = 10.0
    assert method.close_epoch(end_of(3)) == 50  # control


def test_nothing_is_counted_before_the_architecture_has_learned() -> None:
    method = method_in(CHEAP, warmup=3)  # skips alone on half of the edges
    assert [method.close_epoch(end_of(epoch)) for epoch in range(4)] == [1, 2, 3, 50]


def searching() -> Any:
    return search_by("darts-plus", "search.epochs=5", "search.warmup_epochs=1", space=CHEAP)


def test_a_search_that_stops_resumes_bit_equal_with_the_genotype_of_its_last_epoch() -> None:
    whole = searching()
    states = run_with_states(whole)
    assert [row.get("next_epoch") for row in whole.metrics] == [None, 5]
    assert whole.num_steps == 4
    assert whole.num_passes == 2 + 2 * 2
    last = whole.metrics[-1]
    assert last["genotype"] == whole.method.derive().to_dict()
    assert last["normal_skips"] >= 2
    for step, state in states.items():
        assert same_end(whole, continued(searching(), state)), step


def test_until_then_it_is_darts() -> None:
    sets = ("search.epochs=1", "search.weight_lr=0.025")
    one, other = (finish(search_by(name, *sets, space=CHEAP)) for name in ("darts-plus", "darts"))
    assert torch.equal(one.logits.normal_ops, other.logits.normal_ops)
    assert torch.equal(one.logits.reduce_ops, other.logits.reduce_ops)


def test_the_recipe_of_darts_is_the_default() -> None:
    config = build_config({}, ["search.method=darts-plus"]).search
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (50, 64, 0)
    assert (config.weight_lr, config.weight_lr_min, config.arch_lr) == (0.025, 1e-3, 3e-4)

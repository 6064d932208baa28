"""SPOS and FairNAS on cells: an evolution with statistics of each cell's own, strict fairness."""

import random
from collections import Counter

import pytest
import torch
from searches import CHEAP, finish, search_by
from torch import nn

from d2nas import SPACES, Genotype, SearchSpace
from d2nas.genotype import uniform
from d2nas.methods import spos
from d2nas.methods.derivation import draw_of
from d2nas.methods.spos import FairNas, Plan, Score, Spos, evolve, fair_draws, mixed
from d2nas.nn.sampling import ArchLogits, sample
from d2nas.spaces import CELL_TYPES
from d2nas.train.search import weight_step


def worth(cell: Genotype) -> Score:
    """A made-up error: effects of the pairs add up."""
    pairs = enumerate((*cell.normal, *cell.reduce))
    return sum(random.Random(f"{place} {pair}").random() for place, pair in pairs), 0.0


def test_the_published_evolution_follows_the_published_number_of_steps() -> None:
    assert Plan.after(50 * 390) == Plan(50, 20)
    assert Plan.after(25 * 390) == Plan(50, 10)
    assert Plan.after(4) == Plan(10, 1)


def test_an_evolution_compares_each_cell_once_and_finds_better_ones_than_chance() -> None:
    asked, numbers = list[Genotype](), random.Random(0)

    def score(cell: Genotype) -> Score:
        asked.append(cell)
        return worth(cell)

    scores = evolve(Plan(20, 8), SPACES["S2"], numbers, score)
    assert asked == [*scores]
    assert len(asked) == 160
    by_chance = min(worth(uniform(SPACES["S2"], numbers)) for _ in range(160))  # control
    assert min(scores.values()) < by_chance
    for cell in asked[20:30]:  # crossovers of the ten best
        best = sorted(asked[:20], key=worth)[:10]
        for cell_type in CELL_TYPES:
            for node in range(0, 8, 2):
                pairs = cell.cell(cell_type)[node : node + 2]
                assert any(each.cell(cell_type)[node : node + 2] == pairs for each in best)


def test_an_evolution_ends_in_a_space_of_few_cells() -> None:
    little = SearchSpace.from_dict({"name": "little", "nodes": 2, "normal": ["skip_connect"]})
    scores = evolve(Plan(20, 3), little, random.Random(0), worth)
    assert len(scores) == 3 * 3  # pairs of node 3's predecessors, in both cells


def test_a_child_has_each_node_of_one_of_both() -> None:
    numbers = random.Random(0)
    one, other = (uniform(SPACES["S0"], numbers) for _ in range(2))
    assert mixed(one, other, 0.0, numbers) == one
    assert mixed(one, other, 1.0, numbers) == other
    assert mixed(one, other, 0.5, numbers) not in (one, other)


# --- strict fairness ----------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_every_operation_of_a_steps_edges_is_drawn_once(space: str) -> None:
    logits = ArchLogits(SPACES[space])
    for parameter in logits.parameters():
        nn.init.zeros_(parameter)
    numbers = torch.Generator().manual_seed(0)
    edges = sample(logits, 1.0, numbers)
    count = int(logits.choosable("normal").sum(1).max())
    draws = fair_draws(logits, edges, count, numbers)
    assert len(draws) == count
    assert counts_of(draws) == {
        (cell, row, int(column)): 1
        for cell in CELL_TYPES
        for row in edges.cell(cell).edges
        for column in logits.choosable(cell)[row].nonzero()
    }
    if count > 2:  # control
        alike = [sample(logits, 1.0, numbers) for _ in range(count)]
        assert max(counts_of(alike).values()) > 1


def counts_of(draws: list) -> Counter:
    return Counter(
        (cell, *place)
        for draw in draws
        for cell in CELL_TYPES
        for place in zip(draw.cell(cell).edges, draw.cell(cell).operations, strict=True)
    )


def test_an_edge_of_fewer_operations_has_each_as_often_up_to_one() -> None:
    logits, numbers = ArchLogits(CHEAP), torch.Generator().manual_seed(0)
    draws = fair_draws(logits, sample(logits, 1.0, numbers), 5, numbers)
    by_edge: dict = {}
    for (cell, row, _), count in counts_of(draws).items():
        by_edge.setdefault((cell, row), []).append(count)
    assert {tuple(sorted(counts)) for counts in by_edge.values()} == {(2, 3), (5,)}


def test_a_step_trains_all_operations_of_its_edges_by_one_update() -> None:
    search = search_by("fairnas", space="S2")
    assert isinstance(search.method, FairNas)
    assert search.method.passes == (0, 2)
    assert search.method.gradients_summed == 2
    weight_step(search, 0)
    trained = Counter(
        edge
        for edge, operations in enumerate(search.supernet.cells[0].candidates)  # type: ignore
        if any(p.grad is not None for p in operations[1].parameters())
    )
    assert len(trained) == 8


# --- judging ------------------------------------------------------------------------------------


def test_a_cell_is_judged_with_statistics_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_by("spos", "search.epochs=1", space="S2")
    method = search.method
    assert isinstance(method, Spos)
    search.take_step(0)
    end = search._epoch_end(1)
    cell = uniform(SPACES["S2"], random.Random(0))
    found = method.judged(cell, end)
    assert search.supernet.training
    norm = search.supernet.stem.norm
    momentum = norm.momentum
    # The mean over both batches of what each has.
    means = []
    for index in range(2):
        norm.momentum = 1.0
        method.predictions(end.weight_batch(index), [draw_of(cell, SPACES["S2"])], [end.draws(0)])
        means.append(norm.running_mean.clone())
    norm.momentum = momentum
    assert method.judged(cell, end) == found
    torch.testing.assert_close(norm.running_mean, (means[0] + means[1]) / 2)
    assert {one.momentum for one in search.supernet.modules() if hasattr(one, "momentum")} == {0.1}
    for one in search.supernet.modules():  # whatever the statistics were
        if isinstance(one, nn.BatchNorm2d):
            one.reset_running_stats()
    assert method.judged(cell, end) == found
    monkeypatch.setattr(spos, "BATCHES", 1)  # control
    assert method.judged(cell, end) != found


@pytest.mark.parametrize("method", ["spos", "fairnas"])
def test_the_best_cell_is_derived_and_all_passes_count(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: dict[Genotype, Score] = {}
    real = Spos.judged

    def noted(self: Spos, cell: Genotype, end: object) -> Score:
        judged[cell] = real(self, cell, end)  # type: ignore[arg-type]
        return judged[cell]

    monkeypatch.setattr(Spos, "judged", noted)
    search = finish(search_by(method, "search.epochs=1", space=CHEAP))
    assert search.method.derive() == min(judged, key=judged.__getitem__)
    assert len(set(judged.values())) > 1
    assert search.num_passes == 2 * search.method.passes[1] + len(judged) * 2 * 2

"""DARTS-PT: choices are those of the published code, spread over a tuning, and all are resumed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from rivals import (
    TOLERANCE,
    batch_of,
    built,
    context_of,
    make_cheap,
    rivals,
    space_of,
    weight_norm,
)
from searches import continued, final_state, finish, run_with_states, same_end, search_by
from torch.nn import functional as F

from d2nas.config import build_config
from d2nas.methods.darts_pt import DartsPt, Judge, num_rounds, rounds_after, search_epochs
from d2nas.nn.mixed_supernet import MixtureWeights
from d2nas.nn.operations import set_noise_generator
from d2nas.spaces import CELL_TYPES, EDGES, SearchSpace, edges_of, node_edges
from d2nas.train.search import Search
from d2nas.train.state import TrainState

CASES: dict[str, Any] = rivals()["darts_pt"]
NODE_EDGES, ROUNDS = node_edges(len(EDGES)), 17
TWO = SearchSpace.from_dict({"name": "two", "normal": ["skip_connect", "max_pool_3x3"]})
RAGGED = SearchSpace(
    "ragged",
    (("skip_connect", "max_pool_3x3", "avg_pool_3x3"), ("skip_connect",)) * 7,
    (("max_pool_3x3", "skip_connect"), ("skip_connect",)) * 7,
)

# --- the published numbers ----------------------------------------------------------------------


COMPUTED_EVERY = 9
"""Of a case's looks every so many-th is computed, the others are taken from it: a wrong choice, or
a wrong state after one, shows in the next, and in the network of the end.
"""


def by_loss(method: DartsPt, case: dict[str, Any]) -> Judge:
    """Judges by the loss of a batch, as the case, and compares the losses with its own."""
    batch, context = batch_of("architecture"), context_of(0, 1)
    published = iter(losses for *_, losses in (*case["operations_chosen"], *case["edges_kept"]))
    numbers = count()

    def judge(mixtures: Sequence[MixtureWeights]) -> list[float]:
        expected = next(published)[: len(mixtures)]
        if next(numbers) % COMPUTED_EVERY == 0:
            with torch.no_grad():
                found = [method.predict(batch, context, mixture) for mixture in mixtures]
            losses = [float(F.cross_entropy(prediction, batch.labels)) for prediction in found]
            assert losses == pytest.approx(expected, rel=TOLERANCE)
        return [-loss for loss in expected]

    return judge


@pytest.mark.parametrize("case", sorted(CASES))
def test_operations_edges_and_cells_are_the_published_ones(case: str) -> None:
    expected = CASES[case]
    method = built(DartsPt, space_of(case, with_none=False))
    for cell in CELL_TYPES:
        method.memory.of(cell, "edge_order").copy_(torch.tensor(expected["edge_order"][cell]))
        nodes = torch.tensor(expected["node_order"][cell])
        method.memory.of(cell, "node_order").copy_(nodes - 3)
    judge = by_loss(method, expected)
    for number in range(ROUNDS):
        for cell in CELL_TYPES:
            method.choose(cell, number, judge)
    for cell, row, column, _ in expected["operations_chosen"]:
        kept = method.memory.of(cell, "kept")[row]
        assert not kept.any() or kept.nonzero().flatten().tolist() == [column]
    for cell, node, edges, _ in expected["edges_kept"]:
        counts = method.memory.of(cell, "kept").sum(1)
        assert [row for row in NODE_EDGES[node - 2] if counts[row]] == edges
    method.write()
    genotype = DartsPt.genotype_of(method.logits)
    for cell in CELL_TYPES:
        words = (word.split("@") for word in expected["genotype"][cell].split())
        pairs = [(operation, int(source)) for operation, source in words]
        for place in range(0, 8, 2):  # order inside a node differs
            assert set(genotype.cell(cell)[place : place + 2]) == set(pairs[place : place + 2])
    measured = method.weight_gradients(batch_of("weights"), context_of(0, 1))
    assert float(measured.loss) == pytest.approx(expected["loss_after_selection"], rel=TOLERANCE)
    assert weight_norm(method) == pytest.approx(expected["weight_grad_l2_after"], rel=TOLERANCE)


def test_choices_follow_the_published_epochs() -> None:
    made = {epoch: rounds for epoch in range(131) if (rounds := rounds_after(epoch, 131, ROUNDS))}
    assert made == {49 + 5 * number: [number] for number in range(17)}


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 20, 50, 130, 400])
def test_each_choice_is_made_once_and_in_order(epochs: int) -> None:
    made = [
        (epoch, number) for epoch in range(epochs) for number in rounds_after(epoch, epochs, ROUNDS)
    ]
    assert [number for _, number in made] == list(range(ROUNDS))
    assert made[0][0] == search_epochs(epochs) - 1
    assert made[-1][0] == max(search_epochs(epochs) - 1, epochs - 2)


def test_the_published_recipe_is_the_default() -> None:
    config = build_config({}, ["search.method=darts-pt"]).search
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (131, 64, 0)
    assert (config.weight_lr, config.weight_lr_min, config.arch_lr) == (0.025, 1e-3, 3e-4)
    assert search_epochs(config.epochs) == 50


# --- the rule -----------------------------------------------------------------------------------


def scoring(scores: Sequence[float]) -> Callable[[Sequence[MixtureWeights]], Sequence[float]]:
    return lambda mixtures: scores[: len(mixtures)]


def test_of_equal_operations_the_first_stays_and_of_equal_edges_the_last_goes() -> None:
    method = built(DartsPt, TWO)
    assert method.operation_to_keep("normal", 0, scoring([3, 3])) == 0
    assert method.operation_to_keep("normal", 0, scoring([3, 2])) == 1
    node = range(9, 14)
    assert method.edges_to_keep("normal", node, scoring([5, 5, 5, 5, 5])) == [9, 10]
    assert method.edges_to_keep("normal", node, scoring([5, 4, 5, 2, 4])) == [10, 12]


def test_an_open_edge_learns_and_one_that_was_chosen_from_does_not() -> None:
    method = built(DartsPt, RAGGED)
    method.memory.keep("normal", 0, 1)
    method.memory.keep("normal", 2, None)
    weights, _ = method.mixture()["normal"]
    assert weights[0].tolist() == [0.0, 1.0, 0.0]
    assert weights[2].tolist() == [0.0, 0.0, 0.0]
    open_edges = [row for row in range(len(EDGES)) if row not in (0, 2)]
    assert torch.allclose(weights[open_edges].sum(1), torch.ones(12, dtype=torch.float64))
    method.architecture_gradients(batch_of("architecture"), context_of(0, 1))
    gradient = method.logits.ops("normal").grad
    assert gradient is not None
    assert not gradient[[0, 2]].any()
    assert gradient[4].any()


def test_what_is_removed_leaves_the_others_as_they_are() -> None:
    method = built(DartsPt, RAGGED)
    whole = method.mixture()
    for column in (1, None):
        without = method._without("normal", 4, column)
        assert torch.equal(without["reduce"][0], whole["reduce"][0])
        changed = (without["normal"][0] != whole["normal"][0]).nonzero().tolist()
        assert changed == ([[4, 1]] if column == 1 else [[4, 0], [4, 1], [4, 2]])


def test_accuracy_is_counted_over_the_whole_half_with_the_same_noise() -> None:
    search = search_by("darts-pt", "search.batch_size=4", space="S4")
    method, end = search.method, search._epoch_end(3)
    assert isinstance(method, DartsPt)
    mixtures = [method._without("normal", row) for row in (0, 0, 5)]
    found = method._accuracies(mixtures, end)
    assert found[0] == found[1]
    for mixture, score in zip(mixtures, found, strict=True):
        right = 0
        for index in range(4):
            batch = end.arch_batch(index)
            set_noise_generator(method._noises, end.draws(0))
            with torch.no_grad():
                best = search.supernet(batch.images, mixture).argmax(1)
            right += int((best == batch.labels).sum())
        assert right == score


# --- searches -----------------------------------------------------------------------------------


def searching(*settings: str, space: SearchSpace = TWO) -> Search:
    return search_by(
        "darts-pt", "search.epochs=6", "search.init_channels=2", *settings, space=space
    )


def test_a_search_resumes_bit_equal_in_the_middle_of_its_choices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of choices by the mixtures' weights alone. And a control: a state that forgets what was
    chosen ends elsewhere.
    """

    def by_weights(_: DartsPt, mixtures: Sequence[MixtureWeights], __: Any) -> list[float]:
        return [sum(float(own[0].square().sum()) for own in one.values()) for one in mixtures]

    monkeypatch.setattr(DartsPt, "_accuracies", by_weights)
    assert [len(rounds_after(epoch, 6, ROUNDS)) for epoch in range(6)] == [0, 6, 5, 5, 1, 0]
    whole = searching()
    states = run_with_states(whole)
    assert len(states) == whole.num_steps == 12
    for step in (4, 7, 10):
        torch.rand(step)
        assert same_end(whole, continued(searching(), states[step])), step
    tensors = {
        name: torch.zeros_like(value) if name.endswith("chosen") else value
        for name, value in states[8].tensors.items()
    }
    assert not same_end(whole, continued(searching(), replace(states[8], tensors=tensors)))


def test_passes_count_every_look() -> None:
    searches = [searching(space=space) for space in (TWO, RAGGED)]
    looks = [2 * 14 * 2, 7 * (3 + 1) + 7 * (2 + 1)]
    for search, operations in zip(searches, looks, strict=True):
        assert search.num_passes == 12 * 2 + 2 * (operations + 2 * (3 + 4 + 5))


def test_the_tuning_begins_with_fresh_momentum_and_keeps_a_tenth_of_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_cheap(monkeypatch)
    search, momentum = searching("search.weight_lr=0.1"), {}
    for report in search.run():
        state: TrainState = search.capture(report.step + 1)
        momentum[report.step] = [
            value for name, value in state.tensors.items() if name.startswith("sgd.")
        ]
    rates = [row["weight_lr"] for row in search.metrics]
    assert rates[0] == 0.1
    assert 0.01 < rates[1] < 0.1
    assert rates[2:] == pytest.approx([0.01] * 4)
    assert not any(value.any() for value in momentum[3])  # the end of the search, two epochs
    assert all(any(value.any() for value in momentum[step]) for step in (2, 4, 5, 7))


def test_until_the_choices_it_is_darts() -> None:
    """Weights and logits of both ends of the search, before any cell is written."""
    ends = []
    for name in ("darts-pt", "darts"):
        search = search_by(name, "search.epochs=2", "search.weight_lr=0.025", space="S2")
        for step in range(2):
            search.take_step(step)
        ends.append(final_state(search))
    shared = [name for name in ends[1] if name != "sums"]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in shared)


def test_the_chosen_cell_is_written() -> None:
    search = finish(searching("search.epochs=1", "search.batch_size=16"))
    method = search.method
    assert isinstance(method, DartsPt)
    genotype = method.derive()
    for cell in CELL_TYPES:
        kept = method.memory.of(cell, "kept")
        assert method.memory.of(cell, "chosen").all()
        assert kept.sum() == 8
        for place, (operation, source) in enumerate(genotype.cell(cell)):
            row = NODE_EDGES[place // 2].start + source
            assert kept[row, TWO.candidates(cell)[row].index(operation)]
    assert search.metrics[-1]["genotype"] == genotype.to_dict()


def test_cells_of_other_numbers_of_nodes_are_chosen_from(monkeypatch: pytest.MonkeyPatch) -> None:
    make_cheap(monkeypatch)
    for nodes in (2, 5):
        space = SearchSpace.from_dict({"name": "n", "nodes": nodes, "normal": ["skip_connect"]})
        assert num_rounds(space) == len(edges_of(nodes)) + nodes - 1
        method = finish(searching("search.epochs=2", space=space)).method
        assert isinstance(method, DartsPt)
        assert len(method.derive().normal) == 2 * nodes
        assert method.memory.of("normal", "kept").sum() == 2 * nodes


def test_a_warm_up_of_the_whole_search_leaves_the_logits_as_they_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_cheap(monkeypatch)
    search = searching("search.warmup_epochs=2")
    before = search.logits.ops("normal").detach().clone()
    for report in search.run():
        if report.step == 9:
            assert torch.equal(search.logits.ops("normal"), before)
    assert all(row["arch_loss"] is None for row in search.metrics)
    assert search.method.memory.of("normal", "chosen").all()  # type: ignore[union-attr, operator]

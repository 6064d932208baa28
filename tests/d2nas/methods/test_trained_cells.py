"""Searches that train one cell after another: which is next, how it is trained and judged."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from searches import CHEAP, continued, finish, run_with_states, same_end, search_by

from d2nas import Genotype, SearchSpace
from d2nas.config import build_config
from d2nas.errors import ConfigError
from d2nas.genotype import neighbour, neighbours, uniform
from d2nas.measure.calibration import calibrated_loss
from d2nas.methods.derivation import draw_of, genotype_of
from d2nas.methods.trained_cells import Climb, Trained, TrainedCells
from d2nas.nn.operations import noises_in, set_noise_generator
from d2nas.train.search import Search

METHODS = ["best-of-n", "local-search", "regularized-evolution"]


def searching(method: str, *settings: str) -> Search:
    """Three trainings of an epoch; evolution has children from the third on."""
    sets = ["epochs=3", "training_epochs=1", "population=2", "sample_size=2"]
    base = [f"search.{each}" for each in sets]
    return search_by(method, *base, *settings, space=CHEAP)


def method_of(search: Search) -> TrainedCells:
    assert isinstance(search.method, TrainedCells)
    return search.method


def worth(cell: Genotype) -> float:
    """A made-up loss: effects of the pairs add up, a fifth of it is the cell's own."""
    pairs = enumerate((*cell.normal, *cell.reduce))
    effects = (random.Random(f"{place} {pair}").random() for place, pair in pairs)
    return sum(effects) / 16 + random.Random(cell.digest).random() / 5


def simulated(method: str, budget: int, *settings: str) -> list[Trained]:
    """What a method would train in ``CHEAP`` were ``worth`` the loss."""
    search = searching(method, f"search.epochs={budget}", *settings)
    rule, numbers = method_of(search), random.Random(0)
    tried = [Trained(cell := uniform(CHEAP, numbers), worth(cell))]
    while len(tried) < budget:
        cell = genotype_of(draw_of(rule.next_cell(tried, numbers), CHEAP), CHEAP)
        tried.append(Trained(cell, worth(cell)))
    return tried


# --- which cell is next -------------------------------------------------------------------------


def test_best_of_n_draws_uniform_cells() -> None:
    tried, numbers = simulated("best-of-n", 100), random.Random(0)
    assert [each.cell for each in tried] == [uniform(CHEAP, numbers) for _ in range(100)]


def evolved(
    budget: int,
    population_size: int,
    sample_size: int,
    dies: Callable[[deque[Trained]], None] = lambda population: population.popleft() and None,
) -> list[Genotype]:
    """Algorithm 1 of the paper, with a queue; ``dies`` takes one out of it."""
    numbers, population, history = random.Random(0), deque[Trained](), list[Genotype]()
    while len(history) < budget:
        if len(history) < population_size:
            cell = uniform(CHEAP, numbers)
        else:
            sample = numbers.choices(population, k=sample_size)
            cell = neighbour(min(sample, key=lambda each: each.loss).cell, CHEAP, numbers)
            cell = genotype_of(draw_of(cell, CHEAP), CHEAP)
        population.append(Trained(cell, worth(cell)))
        history.append(cell)
        if len(history) > population_size:
            dies(population)
    return history


@pytest.mark.parametrize(("population", "sample"), [(10, 3), (4, 4), (1, 2), (3, 1)])
def test_the_oldest_of_the_population_dies(population: int, sample: int) -> None:
    settings = f"search.population={population}", f"search.sample_size={sample}"
    tried = simulated("regularized-evolution", 60, *settings)
    assert [each.cell for each in tried] == evolved(60, population, sample)

    def worst_dies(living: deque[Trained]) -> None:
        living.remove(max(living, key=lambda each: each.loss))

    if population > 1:  # control
        assert evolved(60, population, sample, worst_dies) != evolved(60, population, sample)


def test_evolution_finds_better_cells_than_as_many_uniform_ones() -> None:
    settings = "search.population=20", "search.sample_size=5"
    children = simulated("regularized-evolution", 200, *settings)
    cells = simulated("best-of-n", 200)
    assert min(each.loss for each in children) < min(each.loss for each in cells)


# 32,400 cells, each with 24 neighbours.
LITTLE = SearchSpace.from_dict({"name": "little", "normal": ["skip_connect"]})


def test_a_climb_moves_to_the_first_better_neighbour_and_ends_at_a_local_optimum() -> None:
    climb, numbers, tried = Climb(LITTLE), random.Random(0), list[Trained]()
    optima = []
    while len(tried) < 400:
        before, left = climb.current, list(climb.left)
        if before is not None and not left:
            optima.append(before)
        cell = numbers.choice(left) if left else uniform(LITTLE, numbers)
        tried.append(Trained(cell, worth(cell)))
        climb.add(tried[-1])
        if before is None or not left or worth(cell) < before.loss:
            assert climb.current == tried[-1]
            known = {each.cell for each in tried}
            assert {*climb.left} == {*neighbours(cell, LITTLE)} - known
        else:
            assert climb.current == before
            assert {*climb.left} == {*left} - {cell}
    assert len(optima) > 2
    best = min(optima, key=lambda each: each.loss)
    assert best == min(tried[: tried.index(best) + 1], key=lambda each: each.loss)
    assert all(worth(cell) > best.loss for cell in neighbours(best.cell, LITTLE))
    # Control: where the first climb began there was a better neighbour.
    assert any(worth(cell) < tried[0].loss for cell in neighbours(tried[0].cell, LITTLE))


def test_local_search_trains_what_its_climb_has_left() -> None:
    climb = Climb(CHEAP)
    for each in simulated("local-search", 12):
        assert climb.current is None or each.cell in climb.left
        climb.add(each)


# --- training and judging -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_it_resumes_bit_equal_from_any_step(method: str) -> None:
    """And a control: without its own state it does not."""
    whole = searching(method)
    states = run_with_states(whole)
    assert len(states) == 6
    for step, state in states.items():
        torch.rand(step)
        assert same_end(whole, continued(searching(method), state)), step
    tensors = {**states[3].tensors, "method.cells": states[3].tensors["method.cells"][[1, 0, 2]]}
    assert not same_end(whole, continued(searching(method), replace(states[3], tensors=tensors)))


def test_each_cell_is_trained_from_new_weights_and_moments_at_a_schedule_of_its_own() -> None:
    search = searching("best-of-n", "search.epochs=5", "search.training_epochs=2")
    rates, momenta, supernets = [], [], []
    for report in search.run():
        if report.metrics is not None:
            moments = [
                moment["momentum_buffer"] for moment in search.weight_optimizer.state.values()
            ]
            momenta.append(max(float(moment.abs().max()) for moment in moments))
            supernets.append(search.supernet)
            rates.append(report.metrics["weight_lr"])
    assert rates == rates[:2] * 2
    assert rates[0] > rates[1]
    assert [momentum > 0 for momentum in momenta] == [True, False, True, True]
    assert supernets[0] is not supernets[1] is supernets[2]
    assert search.num_steps == 8  # an epoch is too few for a third cell
    assert search.num_passes == 8 + 2 * 2


def test_only_the_cell_in_training_learns() -> None:
    search = searching("best-of-n")
    search.take_step(0)
    cell = method_of(search).memory.draw(0)
    parts = {id(p) for one in search.supernet.cells for p in one.parameters()}
    own = {
        id(p)
        for one in search.supernet.cells
        for part in one.parts(cell.cell(one.cell_type))
        for p in part.parameters()
    }
    moved = {id(p) for p in search.supernet.parameters() if p.grad is not None}
    assert moved & parts
    assert moved & parts <= own < parts


def test_the_cell_of_the_lowest_calibrated_loss_is_derived_and_losses_are_told() -> None:
    search = searching("best-of-n")
    for report in search.run():
        if report.step == 4:  # one step before the end
            before = search.trained.copies()
    tried = method_of(search).tried()
    assert search.method.derive() == min(tried, key=lambda each: each.loss).cell
    assert len({each.loss for each in tried}) == 3
    assert [row["calibrated_loss"] for row in search.metrics] == [each.loss for each in tried]
    assert [row["trainings"] for row in search.metrics] == [1, 2, 3]
    assert not torch.equal(before["method.losses"], search.trained.copies()["method.losses"])
    # The last cell's loss, here from the whole network at once.
    end, parts, labels = search._epoch_end(5), [], []
    set_noise_generator(noises_in(search.supernet), end.draws(2))
    for index in range(end.steps):
        batch = end.arch_batch(index)
        with torch.no_grad():
            parts.append(search.supernet(batch.images, draw_of(tried[-1].cell, CHEAP)))
        labels.append(batch.labels)
    wanted, _ = calibrated_loss(torch.cat(parts), torch.cat(labels))
    assert tried[-1].loss == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("population=1", "regularized-evolution"),
        ("sample_size=1", "regularized-evolution"),
        ("training_epochs=2", "best-of-n"),
    ],
)
def test_a_key_changes_the_search_of_the_method_that_reads_it(key: str, method: str) -> None:
    def cells(*settings: str) -> list[Genotype]:
        return [each.cell for each in simulated(method, 8, *settings)]

    one, other = searching(method), searching(method, f"search.{key}")
    if method == "best-of-n":
        assert method_of(one).training_epochs < method_of(other).training_epochs
    else:
        assert cells() != cells(f"search.{key}")


def test_trainings_that_are_longer_than_the_search_are_as_long_as_it() -> None:
    search = finish(searching("local-search", "search.epochs=1", "search.training_epochs=9"))
    assert [row["trainings"] for row in search.metrics] == [1]


@pytest.mark.parametrize(("epochs", "population"), [(5, 2), (50, 3), (100, 6), (700, 10)])
def test_defaults_are_documented_ones(epochs: int, population: int) -> None:
    sets = ["search.method=regularized-evolution", f"search.epochs={epochs}"]
    config = build_config({}, sets).search
    assert (config.training_epochs, config.population, config.sample_size) == (5, population, 3)


def test_evolution_by_default_has_children() -> None:
    """Even in the few trainings of the default epochs: with a population of 10 it had none."""
    default = build_config({}, ["search.method=regularized-evolution", "search.epochs=50"]).search
    children = simulated("regularized-evolution", 10, f"search.population={default.population}")
    cells = simulated("best-of-n", 10)
    same = [one.cell == other.cell for one, other in zip(children, cells, strict=True)]
    assert same == [True] * 3 + [False] * 7


def test_a_population_of_all_trainings_is_refused() -> None:
    sets = ["search.method=regularized-evolution", "search.epochs=50"]
    assert build_config({}, [*sets, "search.population=9"]).search.population == 9
    with pytest.raises(ConfigError, match="make 10"):
        build_config({}, [*sets, "search.population=10"])

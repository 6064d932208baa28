"""Successive halving: what a budget is spent on, on simulated losses."""

import itertools
import random
from collections.abc import Callable, Sequence

import pytest

from d2nas.train.halving import Arm, Halving, schedule

BUDGETS = [*range(6, 130), 500, 10_000]


def halved(
    budget: int,
    loss: Callable[[int, int], float],
    *,
    cells: Sequence[int] | None = None,
    neighbour: Callable[[int], int] | None = None,
    log_probability: Callable[[int], float] = lambda cell: -float(cell),
) -> tuple[Halving[int], list[tuple[int, int]]]:
    """Run a whole comparison of numbers; neighbours are drawn from 1,000 on."""
    plan, numbers = schedule(budget), random.Random(0)
    halving = Halving(
        plan,
        range(plan.sampled) if cells is None else cells,
        log_probability=log_probability,
        neighbour=neighbour or (lambda cell: 1000 * (cell + 1) + numbers.randrange(1000)),
    )
    made = []
    for number, trained_in in halving.trainings():
        arm = halving.arms[number]
        arm.losses.append(loss(arm.cell, trained_in))
        made.append((number, trained_in))
    return halving, made


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_schedule_spends_its_budget_in_rounds_that_halve(budget: int) -> None:
    plan = schedule(budget)
    assert plan.num_trainings == budget
    rounds = [plan.sampled + plan.neighbours, *plan.later]
    assert len(rounds) >= 2
    assert all(2 * later <= earlier for earlier, later in itertools.pairwise(rounds))
    assert rounds[-1] in (2, 3)
    assert rounds[0] / budget == pytest.approx(0.6, abs=0.2)
    assert 0 <= plan.neighbours <= rounds[0] / 6
    assert (plan.neighbours > 0) == (rounds[0] >= 6)


def test_schedules_as_they_are_documented() -> None:
    found = {budget: schedule(budget) for budget in (6, 12, 24, 48)}
    assert {b: (p.sampled, p.neighbours, *p.later) for b, p in found.items()} == {
        6: (4, 0, 2),
        12: (8, 1, 3),
        24: (12, 2, 7, 3),
        48: (22, 4, 13, 6, 3),
    }


@pytest.mark.parametrize("budget", [6, 7, 12, 24, 48, 97])
def test_every_cell_of_a_round_has_the_same_seeds_and_the_most_probable_is_always_there(
    budget: int,
) -> None:
    # The first cell is the worst by far.
    halving, made = halved(budget, lambda cell, seed: 9.0 if cell == 0 else cell % 7 + 0.1 * seed)
    assert len(made) == len(set(made)) == budget
    for trained_in, numbers in enumerate(halving.rounds):
        assert [number for number, seed in made if seed == trained_in] == numbers
        assert 0 in numbers
        assert all(len(halving.arms[number].losses) > trained_in for number in numbers)
    assert [len(numbers) for numbers in halving.rounds[1:]] == [*schedule(budget).later]
    assert all(set(b) <= set(a) for a, b in itertools.pairwise(halving.rounds))
    assert halving.best() != 0


def test_the_better_half_goes_on_by_the_mean_over_seeds() -> None:
    # 5 is lucky with the first seed; over both it is behind 3 and 4.
    losses = {5: (0.0, 3.0), 4: (0.5, 0.5), 3: (0.6, 0.6)}
    halving, _ = halved(12, lambda cell, seed: losses.get(cell, (2.0, 2.0))[seed])
    assert halving.rounds[1] == [0, 5, 4]
    assert halving.arms[5].mean == 1.5
    assert halving.best() == 4


def test_the_lowest_mean_of_the_last_round_wins_not_a_lower_one_of_less_seeds() -> None:
    def loss(cell: int, seed: int) -> float:
        return 0.2 if seed == 0 and cell != 0 else 1.0 - 0.01 * (cell == 1)

    halving, _ = halved(6, loss)
    assert halving.rounds[1] == [0, 1]
    assert halving.arms[2].mean < halving.arms[1].mean  # one seed only
    assert halving.best() == 1


def test_of_equal_cells_the_more_probable_wins() -> None:
    halving, _ = halved(12, lambda cell, seed: 1.0)
    assert halving.rounds[1] == [0, 1, 2]
    assert halving.best() == 0
    rising, _ = halved(12, lambda cell, seed: float(cell == 0), log_probability=float)
    assert rising.best() == max(rising.rounds[1], key=lambda n: rising.arms[n].log_probability)
    assert rising.arms[rising.best()].log_probability > 7


def test_neighbours_are_of_the_two_best_in_turn_and_trained_from_the_first_seed() -> None:
    halving, _ = halved(48, lambda cell, seed: abs(cell - 6.2))
    born = [number for number, arm in enumerate(halving.arms) if arm.parent is not None]
    assert [halving.arms[number].parent for number in born] == [6, 7, 6, 7]
    assert born == halving.rounds[0][-4:]
    # Control: a neighbour that is better wins.
    better, _ = halved(48, lambda cell, seed: 0.0 if 7000 <= cell < 8000 else abs(cell - 6.2))
    assert better.arms[better.best()].parent == 6


def test_too_few_samples_are_made_up_by_neighbours_and_a_small_space_ends_sooner() -> None:
    halving, made = halved(24, lambda cell, seed: float(cell), cells=[0])
    assert len(made) == 24
    assert halving.arms[1].parent == 0
    known = iter([0, 1, 0, 2, *[1] * 10_000])
    halving, made = halved(
        24, lambda cell, seed: float(cell), cells=[0], neighbour=lambda _: next(known)
    )
    assert [arm.cell for arm in halving.arms] == [0, 1, 2]
    assert [len(numbers) for numbers in halving.rounds] == [3, 3, 3]
    assert len(made) == 9


def test_an_arm_is_worth_the_mean_of_its_losses() -> None:
    assert Arm("cell", 0.0, losses=[1.0, 2.0, 6.0]).mean == 3.0

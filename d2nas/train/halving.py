"""Successive halving: which cells a budget of trainings goes to (Karnin et al., ICML 2013).

Trainings are costly and noisy: one tells little, and many of every cell are not to be had. So all
cells are trained from one seed, the better half of them from another one, and so on. The seeds of a
round are the same for all of its cells, which are thus compared with what a seed does to all of
them left out; and every cell of a round has been trained from as many seeds as any other.

The first round is of the most probable cell, of sampled ones, and of neighbours of the best. The
most probable cell stays in every round, so that its mean is known where another one is preferred.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, TypeVar

Cell = TypeVar("Cell")

PARENTS = 2
"""Cells whose neighbours are trained: the best after one training is often not the best."""
NEIGHBOUR_PART = 6
"""One training of so many in the first round is a neighbour's."""
MAX_ATTEMPTS = 100
"""Draws per wanted neighbour before a cell counts as having no more."""

# A neighbour shares 15 of 16 edges with its parent, so one training tells them hardly apart, and it
# is hardly better where the parent was lucky. With effects that add up over edges a sixth costs and
# gains nothing up to 48 trainings (python -m benchmarks.derive_budget: 0.02 standard deviations of
# a cell's effect); it pays where single edges decide, and fills what a narrow distribution leaves.


@dataclass(frozen=True, slots=True)
class Schedule:
    """Numbers of cells that are trained in each round, from one new seed each.

    ``sampled``: the most probable cell and samples; ``neighbours`` join them in the first round;
    ``later``: cells of the rounds after it.
    """

    sampled: int
    neighbours: int
    later: tuple[int, ...]

    @property
    def num_trainings(self) -> int:
        """Trainings of all rounds."""
        return self.sampled + self.neighbours + sum(self.later)


def schedule(budget: int) -> Schedule:
    """Return the rounds that spend a budget of trainings, all of it.

    The most cells are taken whose trainings and those of the rounds after it, each of half as many
    down to two or three, fit; what is left makes the first round larger. That is half of the budget
    or somewhat more for the first: less leaves good cells untried, more does not tell them apart.
    """
    cells = next(n for n in range(budget, 0, -1) if n + sum(_halved(n)) <= budget)
    later = _halved(cells)
    first = budget - sum(later)
    neighbours = first // NEIGHBOUR_PART
    return Schedule(first - neighbours, neighbours, later)


def _halved(cells: int) -> tuple[int, ...]:
    found = list[int]()
    while (cells := cells // 2) >= 2:
        found.append(cells)
    return tuple(found)


@dataclass(slots=True)
class Arm(Generic[Cell]):
    """A cell and what its trainings say, one of each round that it is in."""

    cell: Cell
    log_probability: float
    parent: int | None = None
    """Of a neighbour: the number of the cell that it is one of."""
    losses: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean loss over the seeds so far."""
        return fmean(self.losses)


class Halving(Generic[Cell]):
    """Successive halving of cells, the most probable of which stands first.

    ``trainings`` says what to train; whoever trains adds the loss to the arm before it goes on.
    """

    def __init__(
        self,
        plan: Schedule,
        cells: Sequence[Cell],
        *,
        log_probability: Callable[[Cell], float],
        neighbour: Callable[[Cell], Cell],
    ) -> None:
        self._log_probability, self._neighbour = log_probability, neighbour
        self._plan = plan
        self.arms = [Arm(cell, log_probability(cell)) for cell in cells]
        self.rounds: list[list[int]] = []
        """Numbers of the arms that each round has trained so far, in that order."""

    def trainings(self) -> Iterator[tuple[int, int]]:
        """Yield the number of an arm to train and that of the round, from whose seed.

        Where fewer cells were sampled than planned, their trainings are neighbours', too; fewer
        trainings than planned remain where a space has no more cells.
        """
        self.rounds.append([])
        sampled = range(len(self.arms))
        yield from self._trained(sampled)
        parents = self._best(sampled)[:PARENTS]
        first = self._plan.sampled + self._plan.neighbours
        for number in range(first - len(sampled)):
            arm = self._new_neighbour(parents[number % len(parents)])
            if arm is not None:
                self.arms.append(arm)
                yield from self._trained([len(self.arms) - 1])
        for cells in self._plan.later:
            others = [number for number in self._best(self.rounds[-1]) if number != 0]
            self.rounds.append([])
            yield from self._trained([0, *others[: cells - 1]])

    def best(self) -> int:
        """Return the number of the last round's arm of the lowest mean loss; of equal ones, of the
        most probable.
        """
        return self._best(self.rounds[-1])[0]

    def _trained(self, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        for number in numbers:
            yield number, len(self.rounds) - 1
            self.rounds[-1].append(number)

    def _best(self, numbers: Sequence[int]) -> list[int]:
        """Return these arms' numbers, the best first."""
        arms = self.arms
        return sorted(numbers, key=lambda each: (arms[each].mean, -arms[each].log_probability))

    def _new_neighbour(self, parent: int) -> Arm[Cell] | None:
        """Return a neighbour that is no arm yet; None where none turns up."""
        known = [arm.cell for arm in self.arms]
        for _ in range(MAX_ATTEMPTS):
            cell = self._neighbour(known[parent])
            if cell not in known:
                return Arm(cell, self._log_probability(cell), parent)
        return None

"""SPOS and FairNAS: weights trained on sampled paths, then an evolution of cells under them.

Our readings: neither was published for cells. SPOS (Guo et al., arXiv 1904.00420) samples one
operation in each layer of a chain; here a path is a sub-network of two edges per node, uniform
among all. FairNAS (Chu et al., arXiv 1907.01845, section 3.2) trains each operation of a layer
exactly once per step, its gradients summed before one update; here that holds for the operations of
each edge of the step, whose edges are drawn uniformly as in SPOS. An edge of fewer operations than
another one's has each of its own as often as the others, up to one.

After the last epoch cells are compared by accuracy on the architecture half, their batch norm's
statistics estimated anew on batches of the weight half (SPOS, section 3.4). A generation is one
half crossovers of the ten best so far, one half mutations of them with a probability of 0.1, as the
published code; the gene is a node with both of its edges (ours). 20 generations of 50 are compared
after as many steps as 50 epochs of CIFAR-10 have, fewer after fewer (ours, as in random search with
weight sharing), each on ten batches (published: statistics on 200, accuracy on 50,000 images).
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..genotype import Genotype, choices, uniform
from ..nn.sampling import ArchLogits, CellDraw, Draw
from ..spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace
from .base import Batch, EpochEnd, Measured, Sizes, StepContext, register_method
from .derivation import draw_of, write_genotype
from .passes import measure
from .rsws import num_candidates
from .uniform_paths import UniformPaths

POPULATION, GENERATIONS = 50, 20
PARENTS = 10
"""The best so far, of which children are made."""
MUTATION = 0.1
BATCHES = 10
"""Batches for the statistics of a cell, and for its accuracy."""
MAX_ATTEMPTS = 10
"""Draws per wanted child before others take its place."""

Score = tuple[float, float]
"""Error and loss: the lower is better, of equal errors that of the lower loss."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells of a generation, and generations."""

    population: int
    generations: int

    @classmethod
    def after(cls, steps: int) -> "Plan":
        """Return what follows a training of so many steps."""
        candidates = num_candidates(steps)
        population = min(POPULATION, candidates)
        return cls(population, min(GENERATIONS, max(1, candidates // population)))


def evolve(
    plan: Plan, space: SearchSpace, numbers: random.Random, score: Callable[[Genotype], Score]
) -> dict[Genotype, Score]:
    """Return all cells of an evolution with their scores, each compared once.

    Fewer than planned where the space has no more cells.
    """
    scores = dict[Genotype, Score]()

    def add(make: Callable[[], Genotype], upto: int) -> None:
        for _ in range(MAX_ATTEMPTS * plan.population):
            if len(scores) >= upto:
                return
            cell = make()
            if cell not in scores:
                scores[cell] = score(cell)

    for generation in range(plan.generations):
        first = generation * plan.population
        if generation:
            best = sorted(scores, key=scores.__getitem__)[:PARENTS]

            def crossover(best: list[Genotype] = best) -> Genotype:
                return mixed(numbers.choice(best), numbers.choice(best), 0.5, numbers)

            def mutation(best: list[Genotype] = best) -> Genotype:
                return mixed(numbers.choice(best), uniform(space, numbers), MUTATION, numbers)

            add(crossover, first + plan.population // 2)
            add(mutation, first + plan.population)
        add(lambda: uniform(space, numbers), first + plan.population)
    return scores


def mixed(one: Genotype, other: Genotype, share: float, numbers: random.Random) -> Genotype:
    """Return a cell with each node of ``other`` at a probability of ``share``, else of ``one``."""
    cells = []
    for cell_type in CELL_TYPES:
        pairs = list(one.cell(cell_type))
        for first in range(0, len(pairs), EDGES_PER_NODE):
            if numbers.random() < share:
                node = slice(first, first + EDGES_PER_NODE)
                pairs[node] = other.cell(cell_type)[node]
        cells.append(tuple(pairs))
    return Genotype(cells[0], cells[1])


@register_method("spos")
class Spos(UniformPaths):
    """SPOS (arXiv 1904.00420) on cells, our reading: uniform paths, then an evolution."""

    precisions = ("fp32", "tf32")  # an evaluation with running statistics knows no bf16
    recipe: Mapping[str, Any] = {"weight_lr": 0.025}

    def close_epoch(self, end: EpochEnd) -> int:
        """After the last epoch compare cells, and write the best into the logits."""
        if end.is_last:
            numbers = random.Random(end.draws(0).initial_seed())
            plan = Plan.after(end.epochs * end.steps)
            scores = evolve(plan, self.logits.space, numbers, lambda cell: self.judged(cell, end))
            write_genotype(self.logits, min(scores, key=scores.__getitem__))
        return end.epoch + 1

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return how many cells are run on how many batches, forward alone."""
        if epoch + 1 < epochs:
            return 0
        plan = Plan.after(epochs * steps)
        return plan.population * plan.generations * 2 * min(BATCHES, steps)

    def judged(self, cell: Genotype, end: EpochEnd) -> Score:
        """Return a cell's score on batches of the architecture half, with statistics of its own."""
        draw, count = draw_of(cell, self.logits.space), min(BATCHES, end.steps)
        norms = [one for one in self.supernet.modules() if isinstance(one, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in norms]
        for index in range(count):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # the mean of all batches so far
            self.predictions(end.weight_batch(index), [draw], [end.draws(1)])
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
        total = torch.zeros(2, dtype=torch.float64)
        self.supernet.eval()
        for index in range(count):
            batch = end.arch_batch(index)
            (found,) = self.predictions(batch, [draw], [end.draws(2)])
            loss, accuracy = measure(found[-1], batch.labels, batch.weights)
            total += torch.stack([1.0 - accuracy, loss.double()]).cpu()
        self.supernet.train()
        error, loss_sum = total.tolist()
        return error, loss_sum


@register_method("fairnas")
class FairNas(Spos):
    """FairNAS (arXiv 1907.01845) on cells, our reading: each operation of an edge once a step."""

    unread = tuple(key for key in Spos.unread if key != "clip")

    def __init__(
        self, space: SearchSpace, sizes: Sizes, generator: torch.Generator, *, recompute: str
    ) -> None:
        super().__init__(space, sizes, generator, recompute=recompute)
        self.draws = max(
            len(choices(space, cell, *edge)) for cell in CELL_TYPES for edge in space.edges
        )
        self.passes = (0, self.draws)

    def weight_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Sum the gradients of draws that have each operation of the step's edges once."""
        edges = self.sample(context.temperature, context.draws(0))
        draws = fair_draws(self.logits, edges, self.draws, context.draws(self.draws))
        return self.run(batch, draws, [context.draws(index) for index in range(self.draws)])


def fair_draws(
    logits: ArchLogits, edges: Draw, number: int, generator: torch.Generator
) -> list[Draw]:
    """Return so many sub-networks of the same edges, an edge's operations in random order: each
    once before one comes again.
    """
    orders = {
        cell: [
            _order(logits.choosable(cell)[row].nonzero().flatten(), number, generator)
            for row in edges.cell(cell).edges
        ]
        for cell in CELL_TYPES
    }

    def cell(cell_type: str, index: int) -> CellDraw:
        columns = tuple(order[index] for order in orders[cell_type])
        return CellDraw.of_ones(edges.cell(cell_type).edges, columns, None)

    return [Draw(cell("normal", index), cell("reduce", index)) for index in range(number)]


def _order(columns: torch.Tensor, number: int, generator: torch.Generator) -> list[int]:
    found = list[int]()
    while len(found) < number:
        found += columns[torch.randperm(len(columns), generator=generator)].tolist()
    return found[:number]

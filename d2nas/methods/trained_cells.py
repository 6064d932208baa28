"""Searches that share no weights: one cell is trained after another, and the best one is derived.

Each cell is trained alone, from new weights, for ``search.training_epochs`` epochs of the weight
half, by the settings of a search and with the modules of its supernet: a pass costs what a pass of
a sampled search does, so that as many passes are as much time. Then it is judged by its calibrated
loss on an epoch of the architecture half, batch norm with each batch's own statistics. As many
cells are trained as ``search.epochs`` allow; epochs that are too few for one more are left out.

- ``best-of-n``: uniform cells, n of them.
- ``local-search`` (White et al., arXiv 2005.02960, for tabular benchmarks): neighbours of the
  current cell in random order, of which the first that is better is the next current one; where
  none of them is, a uniform cell begins another climb (ours: there the search ends).
- ``regularized-evolution`` (Real et al., arXiv 1802.01548, Algorithm 1): the child of the best of
  a sample joins the population, the oldest leaves it. Ours: a population of a third of the
  trainings, at most 10, and samples of 3 (published: 100 and 25 for 20,000 trainings), and a child
  always differs from its parent by one operation or predecessor (published: in 5 % it is trained
  again unchanged).

The learning rate is that of d2nas's search, 0.05, not the 0.025 of DARTS and its kind.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..genotype import Genotype, neighbour, neighbours, uniform
from ..measure.calibration import calibrated_loss
from ..nn.operations import initialize, noises_in
from ..nn.sampling import CellDraw, Draw
from ..spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace
from .base import EpochEnd, Method, Sizes, register_method
from .derivation import draw_of, genotype_of, write_genotype
from .uniform_paths import UniformPaths


@dataclass(frozen=True, slots=True)
class Trained:
    """A cell that was trained, and its calibrated loss."""

    cell: Genotype
    loss: float


class _Trainings(nn.Module):
    """All cells so far, ``cells[k]`` as rows and columns (cell types, edges, 2); the loss of each
    but the one in training, which is number ``finished``.
    """

    cells: Tensor
    losses: Tensor
    finished: Tensor

    def __init__(self, number: int, space: SearchSpace) -> None:
        super().__init__()
        shape = (number, len(CELL_TYPES), EDGES_PER_NODE * len(space.nodes), 2)
        self.register_buffer("cells", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("losses", torch.zeros(number, dtype=torch.float64))
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))

    def begin(self, number: int, draw: Draw) -> None:
        """Make a cell the one in training, the ``number``-th."""
        for kind, cell_type in enumerate(CELL_TYPES):
            cell = draw.cell(cell_type)
            places = list(zip(cell.edges, cell.operations, strict=True))
            self.cells[number, kind] = torch.tensor(places)

    def draw(self, number: int) -> Draw:
        """Return a cell as it was begun."""

        def cell(places_S2: Tensor) -> CellDraw:
            rows, columns = places_S2.T.tolist()
            return CellDraw.of_ones(tuple(rows), tuple(columns), None)

        normal, reduce = self.cells[number]
        return Draw(cell(normal), cell(reduce))


class TrainedCells(UniformPaths):
    """Base of searches that train one cell after another; a subclass says which one is next."""

    unread = tuple(key for key in UniformPaths.unread if key != "training_epochs")
    memory: _Trainings

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        recompute: str,
        epochs: int,
        training_epochs: int,
    ) -> None:
        super().__init__(space, sizes, generator, recompute=recompute)
        self.training_epochs = training_epochs
        self.memory = _Trainings(epochs // self.length(epochs), space)
        self.memory.begin(0, draw_of(uniform(space, _numbers(generator)), space))

    @classmethod
    def build(
        cls, config: SearchConfig, space: SearchSpace, sizes: Sizes, generator: torch.Generator
    ) -> Method:
        """Return the method with its first cell drawn."""
        return cls(space, sizes, generator, **cls.options(config))

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {
            "recompute": config.recompute,
            "epochs": config.epochs,
            "training_epochs": config.training_epochs,
        }

    def next_cell(self, tried: Sequence[Trained], numbers: random.Random) -> Genotype:
        """Return the cell to train after those that were ``tried``, in their order."""
        raise NotImplementedError

    def length(self, epochs: int) -> int:
        """Return the epochs of a training in a search of so many."""
        return min(self.training_epochs, epochs)

    def schedule(self, epoch: int, epochs: int) -> tuple[int, int]:
        """Return the epoch in its training, and of how many."""
        return epoch % self.length(epochs), self.length(epochs)

    def sample(self, temperature: float, generator: torch.Generator) -> Draw:
        """Return the cell in training."""
        return self.memory.draw(int(self.memory.finished))

    def tried(self) -> list[Trained]:
        """Return the cells whose training has finished, in their order."""
        losses = self.memory.losses[: int(self.memory.finished)].tolist()
        draws = map(self.memory.draw, range(len(losses)))
        cells = (genotype_of(draw, self.logits.space) for draw in draws)
        return [Trained(*pair) for pair in zip(cells, losses, strict=True)]

    def close_epoch(self, end: EpochEnd) -> int:
        """After a training judge its cell, write the best so far, and begin the next one's."""
        memory = self.memory
        if (end.epoch + 1) % self.length(end.epochs):
            return end.epoch + 1
        memory.losses[int(memory.finished)] = self._judged(end)
        memory.finished += 1
        tried = self.tried()
        write_genotype(self.logits, min(tried, key=lambda each: each.loss).cell)
        if len(tried) == len(memory.losses):
            return end.epochs
        cell = self.next_cell(tried, _numbers(end.draws(0)))
        memory.begin(len(tried), draw_of(cell, self.logits.space))
        self.rebuild()
        initialize(self.supernet, end.draws(1))
        return end.epoch + 1

    def _judged(self, end: EpochEnd) -> float:
        """Return the calibrated loss of the cell in training, on the architecture half."""
        draw, noise = self.sample(1.0, end.draws(0)), end.draws(2)
        logits, labels, weights = [], [], []
        for index in range(end.steps):
            batch = end.arch_batch(index)
            logits += [found[-1].cpu() for found in self.predictions(batch, [draw], [noise])]
            labels.append(batch.labels.cpu())
            weights += [] if batch.weights is None else [batch.weights.cpu()]
        weights_N = torch.cat(weights) if weights else None
        return calibrated_loss(torch.cat(logits), torch.cat(labels), weights_N)[0]

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return the forward passes that judge a cell."""
        return 0 if (epoch + 1) % self.length(epochs) else steps

    def describe(self) -> dict[str, Any]:
        """Return how many trainings have finished, and the last one's loss."""
        finished = int(self.memory.finished)
        loss = float(self.memory.losses[finished - 1]) if finished else None
        return {"trainings": finished, "calibrated_loss": loss}

    def rebuild(self) -> None:
        """Begin with new weights and moments, from the second cell on."""
        if self.memory.finished:
            self.replace(self._fresh_supernet(), self.logits)
            self._noises = noises_in(self.supernet)


def _numbers(generator: torch.Generator) -> random.Random:
    return random.Random(generator.initial_seed())


@register_method("best-of-n")
class BestOfN(TrainedCells):
    """The best of uniform cells, each trained alone for some epochs."""

    def next_cell(self, tried: Sequence[Trained], numbers: random.Random) -> Genotype:
        """Return a uniform cell."""
        return uniform(self.logits.space, numbers)


class Climb:
    """The walk of a local search: its current cell, and the neighbours that were not tried yet."""

    def __init__(self, space: SearchSpace) -> None:
        self._space, self._known = space, set[Genotype]()
        self.current: Trained | None = None
        self.left: list[Genotype] = []

    def add(self, each: Trained) -> None:
        """Take a trained cell, one of those that are left; any where none is, to begin anew."""
        self._known.add(each.cell)
        if self.current is None or not self.left or each.loss < self.current.loss:
            around = neighbours(each.cell, self._space)
            self.current, self.left = each, [cell for cell in around if cell not in self._known]
        else:
            self.left.remove(each.cell)


@register_method("local-search")
class LocalSearch(TrainedCells):
    """Local search (arXiv 2005.02960): to the first better neighbour, each trained alone."""

    def next_cell(self, tried: Sequence[Trained], numbers: random.Random) -> Genotype:
        """Return a neighbour of the current cell that was not tried; where there is none, a uniform
        cell.
        """
        climb = Climb(self.logits.space)
        for each in tried:
            climb.add(each)
        return numbers.choice(climb.left) if climb.left else uniform(self.logits.space, numbers)


@register_method("regularized-evolution")
class RegularizedEvolution(TrainedCells):
    """Regularized evolution (arXiv 1802.01548): the oldest dies, each cell is trained alone."""

    revision = 2  # 1: a population of 10, which few trainings never filled
    unread = tuple(key for key in TrainedCells.unread if key not in ("population", "sample_size"))

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        population: int,
        sample_size: int,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.population, self.sample_size = population, sample_size

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values over its own, with a population that leaves trainings for
        children; ``ValueError`` for a given one that does not.
        """
        values = super().settings(given)
        epochs, length = (
            values.get(key, SearchConfig.model_fields[key].default)
            for key in ("epochs", "training_epochs")
        )
        if not (isinstance(epochs, int) and isinstance(length, int) and length > 0):
            return values  # the field tells it
        trainings = max(1, epochs // length)
        population = values.setdefault("population", min(10, max(2, trainings // 3)))
        if "population" in given and isinstance(population, int) and population >= trainings:
            raise ValueError(
                f"search.population ({population}) leaves no training for children: search.epochs="
                f"{epochs} and search.training_epochs={length} make {trainings}"
            )
        return values

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        own = {"population": config.population, "sample_size": config.sample_size}
        return {**super().options(config), **own}

    def next_cell(self, tried: Sequence[Trained], numbers: random.Random) -> Genotype:
        """Return a uniform cell while the population grows, then a child of a sample's best."""
        if len(tried) < self.population:
            return uniform(self.logits.space, numbers)
        # Who joined last is in it, and as many as there is room for: age is all that decides.
        sample = numbers.choices(tried[-self.population :], k=self.sample_size)
        parent = min(sample, key=lambda each: each.loss)
        return neighbour(parent.cell, self.logits.space, numbers)

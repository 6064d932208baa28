"""DARTS-PT (Wang et al., arXiv 2108.04392): DARTS's supernet, and a choice that logits do not make.

After a search by DARTS of first order, operations are chosen one edge at a time, in random order:
the one stays whose removal costs the supernet the most accuracy on the architecture half
(section 4.1), the other weights of the edge not scaled up. Then each node keeps the two edges whose
removal costs the most. Between two choices the supernet is tuned for five epochs; the logits of the
edges still open learn on.

As the published code (ruocwang/darts-pt): 50 epochs of search and 81 of tuning, which
``search.epochs`` counts together (others are divided in the same ratio); tuning begins with SGD
anew, at a tenth of the first learning rate, and stays there; batch norm uses each batch's own
statistics; among operations of equal accuracy the first stays, among edges the last goes; an edge
of which ``none`` was kept weighs nothing, as one that was removed does, and is derived, where it
comes to that, as its first other operation; of two that weigh nothing the one from the smaller
predecessor stays, whichever was removed. S0 without ``none``. The published code looks at the edges
of a node again after each that goes, with what went still there, which gives the same accuracies;
here once. The order of edges and nodes is drawn before the search.

With ``search.warmup_epochs`` of all epochs of the search (50) the logits stay as they began: the
paper's variant with fixed ones.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..nn.mixed_supernet import MixtureWeights, mixture_weights
from ..nn.operations import set_noise_generator
from ..spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace, node_edges
from .base import EpochEnd, Sizes, register_method
from .darts import Darts
from .derivation import derive_strongest, write_genotype

PUBLISHED_SEARCH, PUBLISHED_TUNING = 50, 81
"""Epochs before the first choice and after it."""
TUNING_RATE = 0.1
"""Learning rate of the tuning, over that which the search begins with."""

Judge = Callable[[Sequence[MixtureWeights]], Sequence[float]]
"""Says how good a network is by each of several mixtures; larger is better."""


def search_epochs(epochs: int) -> int:
    """Return how many of all epochs come before the first choice: one or more."""
    return max(1, round(epochs * PUBLISHED_SEARCH / (PUBLISHED_SEARCH + PUBLISHED_TUNING)))


def open_nodes(space: SearchSpace) -> list[range]:
    """Return the edges, rows of ``space.edges``, of each node that has more than it keeps."""
    return [rows for rows in node_edges(len(space.edges)) if len(rows) > EDGES_PER_NODE]


def num_rounds(space: SearchSpace) -> int:
    """Return the choices in each cell type: an operation for each edge, then the edges of each
    node that has more than it keeps.
    """
    return len(space.edges) + len(open_nodes(space))


def rounds_after(epoch: int, epochs: int, rounds: int) -> list[int]:
    """Return which of all choices follow an epoch, both counted from 0: they are spread over the
    tuning, the last one an epoch before its end; without tuning all follow the search.
    """
    last_searched = search_epochs(epochs) - 1
    span = max(0, epochs - 2 - last_searched)
    return [
        number for number in range(rounds) if last_searched + number * span // (rounds - 1) == epoch
    ]


class _Choices(nn.Module):
    """The order of choices, and the weights of the edges that were chosen from."""

    def __init__(self, space: SearchSpace, numbers: torch.Generator) -> None:
        super().__init__()
        for cell in CELL_TYPES:
            edges, nodes = len(space.edges), len(open_nodes(space))
            shape = (edges, space.num_columns(cell))
            for name, value in (
                ("edge_order", torch.randperm(edges, generator=numbers)),
                ("node_order", torch.randperm(nodes, generator=numbers)),
                ("chosen", torch.zeros(edges, dtype=torch.bool)),
                ("kept", torch.zeros(shape, dtype=torch.bool)),
            ):
                self.register_buffer(f"{cell}_{name}", value)

    def of(self, cell: str, name: str) -> Tensor:
        """Return ``edge_order`` (E,) or ``node_order`` (open nodes,); ``chosen`` (E,), whether an
        edge was chosen from; ``kept`` (E, O), what then weighs 1, all else of the edge weighing 0.
        """
        found: Tensor = getattr(self, f"{cell}_{name}")
        return found

    def keep(self, cell: str, row: int, column: int | None) -> None:
        """Let an edge be one operation, or nothing."""
        self.of(cell, "chosen")[row] = True
        self.of(cell, "kept")[row] = False
        if column is not None:
            self.of(cell, "kept")[row, column] = True


@register_method("darts-pt")
class DartsPt(Darts):
    """DARTS-PT (arXiv 2108.04392): DARTS, then operations and edges by what their removal costs."""

    keeps_limits = False  # its cell is chosen by images in the end
    searches_none = False
    learns_edges = True  # written in the end
    several_processes = False  # each rank would choose by its own images
    recipe: Mapping[str, Any] = {
        **Darts.recipe,
        "epochs": PUBLISHED_SEARCH + PUBLISHED_TUNING,
    }
    memory: _Choices

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        weight_lr: float = 0.025,
        **options: Any,
    ) -> None:
        super().__init__(space, sizes, generator, **options)
        self.memory = _Choices(space, generator)
        self.rounds, self.num_edges = num_rounds(space), len(space.edges)
        self.tuning_lr = TUNING_RATE * weight_lr

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {**super().options(config), "weight_lr": config.weight_lr}

    def schedule(self, epoch: int, epochs: int) -> tuple[int, int]:
        """Return the epoch of the search, and of how many; the tuning stays at the last."""
        searched = search_epochs(epochs)
        return min(epoch, searched - 1), searched

    def weight_lr(self, scheduled: float, epoch: int, epochs: int) -> float:
        """Return the scheduled learning rate in the search, and the tuning's after it."""
        return scheduled if epoch < search_epochs(epochs) else self.tuning_lr

    def mixture(self, epoch: int = 0, epochs: int = 1) -> MixtureWeights:
        """Return the softmax of the logits of open edges, and what was kept of the others."""
        weights = {}
        for cell in CELL_TYPES:
            ops_EO, _ = mixture_weights(self.logits, cell)
            chosen_E1 = self.memory.of(cell, "chosen")[:, None]
            kept_EO = self.memory.of(cell, "kept").to(ops_EO.dtype)
            weights[cell] = (torch.where(chosen_E1, kept_EO, ops_EO), None)
        return weights

    def close_epoch(self, end: EpochEnd) -> int:
        """Make the choices that follow the epoch; in the end write the cells into the logits."""
        rounds = rounds_after(end.epoch, end.epochs, self.rounds)
        if 0 in rounds:
            end.restart_weight_optimizer()
        for number in rounds:
            for cell in CELL_TYPES:
                self.choose(cell, number, lambda mixtures: self._accuracies(mixtures, end))
        if end.is_last:
            self.write()
        return end.epoch + 1

    def closing_passes(self, epoch: int, epochs: int, steps: int) -> int:
        """Return the looks at the architecture half after an epoch, forward passes alone."""
        looks = [
            self._num_looks(cell, number)
            for number in rounds_after(epoch, epochs, self.rounds)
            for cell in CELL_TYPES
        ]
        return steps * sum(looks)

    def choose(self, cell: str, number: int, judge: Judge) -> None:
        """Make a cell type's choice of this ``number``, from 0 on."""
        if number < self.num_edges:
            row = int(self.memory.of(cell, "edge_order")[number])
            self.memory.keep(cell, row, self.operation_to_keep(cell, row, judge))
        else:
            rows = self._node(cell, number)
            for row in set(rows) - set(self.edges_to_keep(cell, rows, judge)):
                self.memory.keep(cell, row, None)

    def operation_to_keep(self, cell: str, row: int, judge: Judge) -> int:
        """Return the column without which the network is worst; of equal ones the first."""
        columns = range(len(self.logits.space.candidates(cell)[row]))
        scores = judge([self._without(cell, row, column) for column in columns])
        return min(columns, key=scores.__getitem__)

    def edges_to_keep(self, cell: str, rows: Sequence[int], judge: Judge) -> list[int]:
        """Return the two of a node's edges (rows) without which the network is worst;
        of equal ones the first.
        """
        scores = judge([self._without(cell, row) for row in rows])
        order = sorted(range(len(rows)), key=scores.__getitem__)
        return sorted(rows[place] for place in order[:EDGES_PER_NODE])

    @torch.no_grad()
    def write(self) -> None:
        """Write the chosen cells into the logits: of each node the two strongest edges."""
        weights = copy.deepcopy(self.logits)
        for cell in CELL_TYPES:
            weights.ops(cell).copy_(self.memory.of(cell, "kept"))
        write_genotype(self.logits, derive_strongest(weights, weights.space))

    def _node(self, cell: str, number: int) -> range:
        """Return the edges of the node that a choice of this number is among."""
        place = int(self.memory.of(cell, "node_order")[number - self.num_edges])
        return open_nodes(self.logits.space)[place]

    def _num_looks(self, cell: str, number: int) -> int:
        if number >= self.num_edges:
            return len(self._node(cell, number))
        row = int(self.memory.of(cell, "edge_order")[number])
        return len(self.logits.space.candidates(cell)[row])

    @torch.no_grad()
    def _without(self, cell: str, row: int, column: int | None = None) -> MixtureWeights:
        """Return the mixture without an operation of an edge, or without the edge."""
        mixture = dict(self.mixture())
        ops_EO = mixture[cell][0].clone()
        ops_EO[row, slice(None) if column is None else column] = 0.0
        return {**mixture, cell: (ops_EO, None)}

    @torch.no_grad()
    def _accuracies(self, mixtures: Sequence[MixtureWeights], end: EpochEnd) -> list[int]:
        """Return how many images of an epoch of the architecture half each mixture gets right, with
        the same noise for all.
        """
        totals = [0] * len(mixtures)
        for index in range(end.steps):
            batch = end.arch_batch(index)
            for place, mixture in enumerate(mixtures):
                set_noise_generator(self._noises, end.draws(0))
                best = self.predict(batch, end, mixture).argmax(dim=1)
                totals[place] += int((best == batch.labels).sum())
        return totals

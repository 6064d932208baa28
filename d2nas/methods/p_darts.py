"""P-DARTS (Chen et al., arXiv 1904.12760): three stages of DARTS, deeper, of fewer candidates.

After a third and two thirds of the epochs the candidates of the lowest weights are dropped from
each edge, and weights, logits and optimizers begin anew in a network of more cells (section 3.2):
5, 11 and 17 cells, 8, 5 and 3 candidates. Skip connections of stride 1 are dropped out, elementwise
and less and less, and at most two of them stay in the normal cell (section 3.3).

As the published code (chenxin061/pdarts): the first ten of a stage's 25 epochs train weights alone,
the learning rate's cosine starts anew with each, the logits' gradients are clipped at a norm of 5;
``none`` is dropped like any other. In the end an edge keeps its best operation but ``none``; while
the normal cell has more than two skips, the weakest one of them counts as nothing and edges and
operations are chosen again. The published two were chosen by hand, and are always taken here. Of
equal candidates the last ones of the space stay, of equal edges the later one. Other spaces (ours)
keep five and three eighths of an edge's candidates, rounded up.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..devices import send
from ..genotype import Genotype
from ..nn.mixed_supernet import MixedOperation, MixedSupernet, MixtureWeights, mixture_weights
from ..nn.operations import Noise, initialize, noises_in
from ..nn.sampling import ArchLogits
from ..spaces import CELL_TYPES, EDGES_PER_NODE, SearchSpace, node_edges
from .base import Batch, EpochEnd, Measured, Sizes, StepContext, register_method
from .darts import Darts

FURTHER_CELLS = (0, 6, 12)
"""Cells of each stage's network beyond ``search.num_cells``."""
KEPT_EIGHTHS = (8, 5, 3)
"""Candidates of an edge in each stage."""
SKIP_DROPOUT = (0.1, 0.4, 0.7)
"""Largest dropout rate of skip connections in each stage."""
LARGEST_LOGIT_GRADIENT = 5.0
"""Norm at which the gradient of the logits is clipped."""
MAX_SKIPS = 2
"""Skip connections of the normal cell, at most."""


class DroppedSkip(Noise):
    """A skip connection of stride 1 of which elements are dropped in training.

    Its masks come from the generator of ``Noise``, so that a recomputed cell drops the same.
    """

    def __init__(self) -> None:
        super().__init__(stride=1)
        self.rate = 0.0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the input, in training with each element zeroed at ``rate``, the mean kept."""
        if not self.training or self.rate == 0.0:
            return x_NCHW
        device = x_NCHW.device if self.generator is None else self.generator.device
        draws = torch.rand(x_NCHW.shape, generator=self.generator, device=device)
        kept = send((draws >= self.rate).to(x_NCHW.dtype), x_NCHW.device)
        return x_NCHW * kept / (1.0 - self.rate)


def stage_starts(epochs: int) -> list[int]:
    """Return the first epoch of each stage, and the number of epochs."""
    count = len(FURTHER_CELLS)
    return [math.ceil(stage * epochs / count) for stage in range(count + 1)]


def stage_of(epoch: int, epochs: int) -> int:
    """Return the stage of an epoch, counted from 0."""
    starts = stage_starts(epochs)
    return max(stage for stage, start in enumerate(starts[:-1]) if start <= epoch)


def skip_dropout(stage: int, epoch: int, epochs: int, warmup: int) -> float:
    """Return the rate in an epoch of a stage's ``epochs``, whose first ``warmup`` train weights
    alone.
    """
    if epoch < warmup:
        return SKIP_DROPOUT[stage] * (epochs - epoch - 1) / epochs
    return SKIP_DROPOUT[stage] * math.exp(-0.2 * (epoch - warmup))


def num_kept(names: Sequence[str], stage: int) -> int:
    """Return how many of an edge's candidates a stage has: all, five or three eighths of them."""
    return math.ceil(len(names) * KEPT_EIGHTHS[stage] / KEPT_EIGHTHS[0])


def strongest(logits: ArchLogits, cell_type: str, numbers: Sequence[int]) -> Tensor:
    """Return the mask (E, O) of the candidates that each edge keeps: those of the largest logits,
    as many as ``numbers`` says, one of them not ``none``.
    """
    kept_EO = torch.zeros(logits.ops(cell_type).shape, dtype=torch.bool)
    for row, names in enumerate(logits.space.candidates(cell_type)):
        values = logits.ops(cell_type)[row].tolist()
        order = sorted(range(len(names)), key=lambda column: (values[column], column), reverse=True)
        chosen = order[: numbers[row]]
        if {names[column] for column in chosen} == {"none"}:
            chosen = [next(column for column in order if names[column] != "none")]
        kept_EO[row, chosen] = True
    return kept_EO


def without_columns(space: SearchSpace, kept: Mapping[str, Tensor]) -> SearchSpace:
    """Return the space of the candidates that are ``kept``, masks (E, O) for each cell type."""
    edges = {
        cell: tuple(
            tuple(name for name, stays in zip(names, row, strict=False) if stays)
            for names, row in zip(space.candidates(cell), kept[cell].tolist(), strict=True)
        )
        for cell in CELL_TYPES
    }
    return SearchSpace(space.name, edges["normal"], edges["reduce"])


def derive_with_few_skips(logits: ArchLogits, max_skips: int = MAX_SKIPS) -> Genotype:
    """Return the genotype of the two strongest edges of each node, with at most ``max_skips`` skip
    connections in the normal cell, as far as its edges have other candidates.
    """
    return Genotype(
        normal=_derive(logits, "normal", max_skips),
        reduce=_derive(logits, "reduce", len(logits.space.edges)),
    )


def _derive(logits: ArchLogits, cell_type: str, max_skips: int) -> tuple[tuple[str, int], ...]:
    with torch.no_grad():
        weights_EO = mixture_weights(logits, cell_type)[0].double().tolist()
    candidates = logits.space.candidates(cell_type)
    while True:
        best = []
        for names, values in zip(candidates, weights_EO, strict=True):
            choosable = [column for column, name in enumerate(names) if name != "none"]
            best.append(max(choosable, key=lambda column: (values[column], column)))
        strength = [weights_EO[row][column] for row, column in enumerate(best)]
        edges = [
            row
            for rows in node_edges(len(best))
            for row in sorted(sorted(rows, key=lambda row: (strength[row], row))[-EDGES_PER_NODE:])
        ]
        skips = [row for row in edges if candidates[row][best[row]] == "skip_connect"]
        # One whose weight is 0 already has nothing else beside it, or it would not be the best.
        left = [row for row in skips if strength[row] > 0.0]
        weakest = min(left, key=strength.__getitem__, default=None)
        if weakest is None or len(skips) <= max_skips:
            return tuple((candidates[row][best[row]], logits.space.edges[row][0]) for row in edges)
        weights_EO[weakest][best[weakest]] = 0.0


class _Stages(nn.Module):
    """Which candidates of the whole space are left in this stage."""

    stage: Tensor

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        for cell in CELL_TYPES:
            shape = (len(space.edges), space.num_columns(cell))
            self.register_buffer(cell, torch.ones(shape, dtype=torch.bool))

    def kept(self) -> dict[str, Tensor]:
        """Return the masks (E, O) of both cell types."""
        return {cell: getattr(self, cell) for cell in CELL_TYPES}

    def drop(self, left: Mapping[str, Tensor]) -> None:
        """Begin the next stage with those of the candidates that are ``left``, masks over them."""
        self.stage += 1
        for cell, kept_EO in self.kept().items():
            for row, kept_O in enumerate(kept_EO):
                columns = kept_O.nonzero().flatten()
                kept_O[columns] = left[cell][row, : len(columns)]


@register_method("p-darts")
class PDarts(Darts):
    """P-DARTS (arXiv 1904.12760): three stages, each deeper and of fewer candidates."""

    keeps_limits = False  # its stages change the space
    revision = 2  # 1: other ties, and skips that could go stayed beside ones that could not
    several_processes = False  # the logits' gradient is clipped before it would be averaged
    recipe: Mapping[str, Any] = {
        "epochs": 75,
        "num_cells": 5,
        "batch_size": 96,
        "weight_lr": 0.025,
        "weight_lr_min": 0.0,
        "arch_lr": 6e-4,
    }
    memory: _Stages

    def __init__(
        self,
        space: SearchSpace,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        recompute: str,
        drop_path: float = 0.0,
        warmup: int = 0,
    ) -> None:
        super().__init__(space, sizes, generator, recompute=recompute, drop_path=drop_path)
        self._whole, self._sizes, self._recompute = space, sizes, recompute
        self._warmup = warmup
        self.memory = _Stages(space)
        self._use(self.supernet)

    @classmethod
    def settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the given values over its own, with two fifths of a stage to train weights alone:
        ``search.warmup_epochs`` counts in each stage.
        """
        values = super().settings(given)
        epochs = values["epochs"]
        if "warmup_epochs" not in given and isinstance(epochs, int):
            values["warmup_epochs"] = 2 * (epochs // len(FURTHER_CELLS)) // 5
        return values

    @classmethod
    def options(cls, config: SearchConfig) -> dict[str, Any]:
        """Return what of the configuration ``__init__`` takes."""
        return {
            **super().options(config),
            "warmup": config.warmup_epochs,
        }

    def schedule(self, epoch: int, epochs: int) -> tuple[int, int]:
        """Return the epoch in its stage, and of how many."""
        starts, stage = stage_starts(epochs), stage_of(epoch, epochs)
        return epoch - starts[stage], starts[stage + 1] - starts[stage]

    def predict(
        self,
        batch: Batch,
        context: StepContext | EpochEnd,
        weights: ArchLogits | MixtureWeights | None = None,
        *,
        look: int = 1,
    ) -> Tensor:
        """Return the supernet's logits (N, classes), skips dropped at the epoch's rate."""
        stage = stage_of(context.epoch, context.epochs)
        rate = skip_dropout(stage, *self.schedule(context.epoch, context.epochs), self._warmup)
        for skip in self._skips:
            skip.rate = rate
        return super().predict(batch, context, weights, look=look)

    def architecture_gradients(self, batch: Batch, context: StepContext) -> Measured:
        """Differentiate the validation loss, and clip the logits' gradient."""
        measured = super().architecture_gradients(batch, context)
        nn.utils.clip_grad_norm_(self.logits.parameters(), LARGEST_LOGIT_GRADIENT)
        return measured

    def close_epoch(self, end: EpochEnd) -> int:
        """After a stage drop candidates and begin the next one."""
        following = end.epoch + 1
        if not end.is_last and following in stage_starts(end.epochs):
            stage = int(self.memory.stage)
            numbers = {
                cell: [num_kept(names, stage + 1) for names in self._whole.candidates(cell)]
                for cell in CELL_TYPES
            }
            self.memory.drop(
                {cell: strongest(self.logits, cell, numbers[cell]) for cell in CELL_TYPES}
            )
            self.rebuild()
            initialize(self.supernet, end.draws(0))
            self.logits.load_state_dict(
                ArchLogits(self.logits.space, generator=end.draws(1)).state_dict()
            )
        return following

    def rebuild(self) -> None:
        """Make supernet and logits those of the stage in ``memory``; their values follow."""
        stage = int(self.memory.stage)
        if stage == 0:
            return
        space = without_columns(self._whole, self.memory.kept())
        supernet = MixedSupernet(
            space,
            num_cells=self._sizes.num_cells + FURTHER_CELLS[stage],
            init_channels=self._sizes.init_channels,
            num_classes=self._sizes.num_classes,
            in_channels=self._sizes.in_channels,
            stem=self._sizes.stem,
            recompute=self._recompute,
        )
        self.replace(supernet, ArchLogits(space, generator=torch.Generator()))
        self._use(supernet)

    def _use(self, supernet: MixedSupernet) -> None:
        """Let the skips of stride 1 drop elements; remember what draws random numbers."""
        for module in supernet.modules():
            if isinstance(module, MixedOperation):
                for index, candidate in enumerate(module.candidates):
                    if type(candidate) is nn.Identity:
                        module.candidates[index] = DroppedSkip()
        self._noises = noises_in(supernet)
        self._skips = [noise for noise in self._noises if isinstance(noise, DroppedSkip)]

    @classmethod
    def genotype_of(cls, logits: ArchLogits) -> Genotype:
        """Return the genotype of the strongest edges with at most two skips in the normal cell."""
        return derive_with_few_skips(logits)

"""The search network of DARTS and of PC-DARTS: every candidate of every edge runs, mixed.

DARTS (arXiv 1806.09055, Eq. 2): an edge is the sum of all its candidates, each weighted by the
softmax of the edge's operation logits. PC-DARTS (arXiv 1907.05737, section 3): only 1/K of an
edge's channels go through that sum, and edges are weighted too.

Shape letters: E edges (14 in a cell of four nodes), O = operation columns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..devices import send
from ..errors import ConfigError
from ..spaces import CELL_TYPES, NUM_INPUTS, SearchSpace, node_edges
from .network import DropPath
from .operations import CellPlan, build_candidate, build_stem, plan_cells, preprocess_inputs
from .recomputation import RECOMPUTE, recomputed
from .sampling import ArchLogits, choice_probabilities

MixtureWeights = Mapping[str, tuple[Tensor, Tensor | None]]
"""For each cell type the weights of the operations (E, O) and of the edges (E,), or None where
each is 1; as they are, whatever they add up to. ``mixture_weights`` returns one such pair."""


def mixture_weights(logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor]:
    """Return the operation weights (E, O), softmaxed per edge, and the edge weights (E,),
    softmaxed over each node's predecessors.

    Every candidate counts, ``none`` too; columns past an edge's last candidate weigh 0.
    """
    columns = range(logits.space.num_columns(cell_type))
    exists_EO = torch.tensor(
        [[column < len(edge) for column in columns] for edge in logits.space.candidates(cell_type)]
    )
    ops_EO, edges_E = logits.ops(cell_type), logits.edges(cell_type)
    return choice_probabilities(ops_EO, edges_E, exists_EO.to(ops_EO.device))


class MixedOperation(nn.Module):
    """All candidates of one edge, on the first 1/``channel_divisor`` of its channels.

    The other channels bypass them (a stride of 2 is then a 2x2 max-pooling); a channel shuffle
    moves them, so that the next node mixes others. The paper of PC-DARTS samples the channels;
    its published code takes the first ones and shuffles, and so does this.
    Raises ``ConfigError`` for a width that ``channel_divisor`` does not divide.
    """

    def __init__(
        self, operations: tuple[str, ...], channels: int, stride: int, *, channel_divisor: int
    ) -> None:
        super().__init__()
        if channel_divisor < 1 or channels % channel_divisor:
            raise ConfigError(
                f"{channels} channels: channel_divisor={channel_divisor} does not divide them",
                hint="choose search.init_channels as a multiple of it (pc-darts-4: of 4)",
            )
        self.stride = stride
        self.channel_divisor = channel_divisor
        self.candidates = nn.ModuleList(
            build_candidate(operation, channels // channel_divisor, stride)
            for operation in operations
        )

    def forward(
        self,
        x_NCHW: Tensor,
        weights_O: Tensor,
        edge_weight: Tensor | None,
        drop_N111: Tensor | None = None,
    ) -> Tensor:
        """Return the edge's output (N, C, ceil(H / stride), ceil(W / stride)).

        ``edge_weight`` (a scalar tensor, or None for 1) and drop-path's factor of each image
        multiply it.
        """
        if self.channel_divisor == 1:
            output = self._mixed(x_NCHW, weights_O)
        else:
            first = x_NCHW.shape[1] // self.channel_divisor
            bypass_NCHW = x_NCHW[:, first:]
            if self.stride == 2:
                # On odd sizes the last row and column are pooled alone, as candidates keep them.
                bypass_NCHW = F.max_pool2d(bypass_NCHW, 2, ceil_mode=True)
            mixed_NCHW = self._mixed(x_NCHW[:, :first], weights_O)
            joined_NCHW = torch.cat([mixed_NCHW, bypass_NCHW], dim=1)
            output = F.channel_shuffle(joined_NCHW, self.channel_divisor)
        if edge_weight is not None:
            output = output * edge_weight
        return output if drop_N111 is None else output * drop_N111.to(output.dtype)

    def _mixed(self, x_NCHW: Tensor, weights_O: Tensor) -> Tensor:
        # Added up one by one: a stack of all outputs would hold each of them twice.
        weights = weights_O.unbind()
        total: Tensor = weights[0] * self.candidates[0](x_NCHW)
        for weight, candidate in zip(weights[1:], self.candidates[1:], strict=False):
            total = total + weight * candidate(x_NCHW)
        return total


class MixedCell(nn.Module):
    """A cell in which all edges run."""

    def __init__(
        self,
        space: SearchSpace,
        plan: CellPlan,
        *,
        channel_divisor: int,
        recompute: str,
        extra: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.cell_type = plan.cell_type
        self.recompute = recompute
        self.preprocess0, self.preprocess1 = preprocess_inputs(plan, affine=False)
        self.edges = nn.ModuleList(
            MixedOperation(
                (*operations, *extra),
                plan.channels,
                plan.stride(source),
                channel_divisor=channel_divisor,
            )
            for (source, _), operations in zip(
                space.edges, space.candidates(plan.cell_type), strict=True
            )
        )

    def forward(
        self,
        input0: Tensor,
        input1: Tensor,
        ops_EO: Tensor,
        edges_E: Tensor | None,
        drop_EN111: Tensor | None = None,
    ) -> Tensor:
        """Return the concatenated nodes, (N, nodes x C, H, W).

        ``ops_EO`` and ``edges_E`` are weights, not logits; ``edges_E`` None weighs all edges 1.
        ``drop_EN111``: drop-path's factor of each edge and image.
        """
        states = [self._block(self.preprocess0, input0), self._block(self.preprocess1, input1)]
        op_weights = ops_EO.unbind()
        num_edges = len(op_weights)
        edge_weights = [None] * num_edges if edges_E is None else edges_E.unbind()
        drops = [None] * num_edges if drop_EN111 is None else drop_EN111.unbind()
        for rows in node_edges(num_edges):
            node: Tensor | None = None
            for source, row in zip(states, rows, strict=True):
                factors = (op_weights[row], edge_weights[row], drops[row])
                term = self._block(self.edges[row], source, *factors)
                node = term if node is None else node + term
            assert node is not None  # every node has predecessors
            states.append(node)
        return torch.cat(states[NUM_INPUTS:], dim=1)

    def _block(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        output: Tensor = recomputed(block, *inputs) if self.recompute == "op" else block(*inputs)
        return output


class MixedSupernet(nn.Module):
    """DARTS's search network, or PC-DARTS's with ``channel_divisor`` (its K) above 1.

    It holds no architecture logits: ``forward`` takes them. With ``channel_divisor=1`` the edge
    logits are not used. ``recompute``: what the backward pass computes again in place of being
    kept: ``"none"``, ``"cell"``, or ``"op"``, one edge with all its candidates. ``extra``: names of
    operations that every edge has besides the space's candidates, each with weights of its own;
    ``forward`` then takes mixture weights alone. Batch norm: no affine parameters inside cells.
    Raises ``ConfigError`` for sizes that cannot be built, such as
    a width that ``channel_divisor`` does not divide.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        num_cells: int = 8,
        init_channels: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        stem: str = "cifar",
        channel_divisor: int = 1,
        recompute: str = "none",
        extra: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if recompute not in RECOMPUTE:
            raise ConfigError(
                f"unknown recompute {recompute!r}", hint="known: " + ", ".join(RECOMPUTE)
            )
        self.space = space
        self.channel_divisor = channel_divisor
        self.recompute = recompute
        self.extra = extra
        # 3 x the cell width for both stems, as DARTS's and PC-DARTS's search networks.
        width = 3 * init_channels
        self.stem = build_stem(stem, in_channels, width)
        outputs = {cell_type: len(space.nodes) for cell_type in CELL_TYPES}
        plans = plan_cells(num_cells, init_channels, stem=stem, stem_width=width, outputs=outputs)
        self.cells = nn.ModuleList(
            MixedCell(
                space, plan, channel_divisor=channel_divisor, recompute=recompute, extra=extra
            )
            for plan in plans
        )
        self.classifier = nn.Linear(len(space.nodes) * plans[-1].channels, num_classes)

    def forward(
        self, x: Tensor, weights: ArchLogits | MixtureWeights, drop_path: DropPath | None = None
    ) -> Tensor:
        """Return logits (N, classes) of normalised images ``x`` (N, C, H, W).

        ``weights``: architecture logits, whose softmax weighs the candidates (Eq. 2), or the
        weights themselves. Those of operations have a column for each candidate; on an edge, the
        columns after its last candidate weigh the ``extra`` operations. Differentiable in all of
        them. ``drop_path`` acts in training only, on an edge's mixture, image by image (R-DARTS,
        arXiv 1909.09656, section 5.1). Raises ``ConfigError`` for logits of another space and
        weights of another shape.
        """
        pairs = {cell: self._pair(weights, cell, x) for cell in CELL_TYPES}
        drops: list[Tensor | None] = [None] * len(self.cells)
        if drop_path is not None and drop_path.probability > 0 and self.training:
            num_edges = len(self.space.edges)
            factors = drop_path.factors(len(self.cells) * num_edges, len(x), x.device)
            drops = list(torch.split(factors, num_edges))
        previous, current = self.stem(x)
        for cell, drop in zip(self.cells, drops, strict=True):
            assert isinstance(cell, MixedCell)
            inputs = (previous, current, *pairs[cell.cell_type], drop)
            output = recomputed(cell, *inputs) if self.recompute == "cell" else cell(*inputs)
            previous, current = current, output
        pooled = current.mean((2, 3), dtype=self.classifier.weight.dtype)
        prediction: Tensor = self.classifier(pooled)
        return prediction

    def _pair(
        self, weights: ArchLogits | MixtureWeights, cell_type: str, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(weights, ArchLogits):
            ops_EO, edges_E = self._softmaxed(weights, cell_type)
        else:
            ops_EO, edges_E = weights[cell_type]
        shape = (len(self.space.edges), self.space.num_columns(cell_type) + len(self.extra))
        if ops_EO.shape != shape or (edges_E is not None and edges_E.shape != shape[:1]):
            raise ConfigError(
                f"{cell_type} weights of shape {tuple(ops_EO.shape)} cannot weigh {shape[1]} "
                f"operations on each of {shape[0]} edges"
            )
        return send(ops_EO, x.device), None if edges_E is None else send(edges_E, x.device)

    def _softmaxed(self, logits: ArchLogits, cell_type: str) -> tuple[Tensor, Tensor | None]:
        if logits.space != self.space:
            raise ConfigError(
                f"logits of space {logits.space.name} cannot weigh a supernet of {self.space.name}"
            )
        ops_EO, edges_E = mixture_weights(logits, cell_type)
        return ops_EO, None if self.channel_divisor == 1 else edges_E

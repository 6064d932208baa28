"""The search network of DARTS and of PC-DARTS: every candidate of every edge runs, mixed.

DARTS (arXiv 1806.09055, Eq. 2): an edge is the sum of all its candidates, each weighted by the
softmax of the edge's operation logits. PC-DARTS (arXiv 1907.05737, section 3): only 1/K of an
edge's channels go through that sum, and edges are weighted too.

Shape letters: E = 14 edges, O = operation columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..devices import send
from ..errors import ConfigError
from ..spaces import CELL_TYPES, EDGES, NODE_EDGES, NODES, SearchSpace
from .operations import CellPlan, build_candidate, build_stem, plan_cells, preprocess_inputs
from .recomputation import RECOMPUTE, recomputed
from .sampling import ArchLogits, choice_probabilities


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

    def forward(self, x_NCHW: Tensor, weights_O: Tensor, edge_weight: Tensor | None) -> Tensor:
        """Return the edge's output (N, C, ceil(H / stride), ceil(W / stride)).

        ``edge_weight`` (a scalar tensor, or None for 1) multiplies it.
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
        return output if edge_weight is None else output * edge_weight

    def _mixed(self, x_NCHW: Tensor, weights_O: Tensor) -> Tensor:
        # Added up one by one: a stack of all outputs would hold each of them twice.
        weights = weights_O.unbind()
        total: Tensor = weights[0] * self.candidates[0](x_NCHW)
        for weight, candidate in zip(weights[1:], self.candidates[1:], strict=False):
            total = total + weight * candidate(x_NCHW)
        return total


class MixedCell(nn.Module):
    """A cell in which all 14 edges run."""

    def __init__(
        self, space: SearchSpace, plan: CellPlan, *, channel_divisor: int, recompute: str
    ) -> None:
        super().__init__()
        self.cell_type = plan.cell_type
        self.recompute = recompute
        self.preprocess0, self.preprocess1 = preprocess_inputs(plan, affine=False)
        self.edges = nn.ModuleList(
            MixedOperation(
                operations,
                plan.channels,
                plan.stride(source),
                channel_divisor=channel_divisor,
            )
            for (source, _), operations in zip(EDGES, space.candidates(plan.cell_type), strict=True)
        )

    def forward(
        self, input0: Tensor, input1: Tensor, ops_EO: Tensor, edges_E: Tensor | None
    ) -> Tensor:
        """Return the concatenated nodes, (N, 4C, H, W).

        ``ops_EO`` and ``edges_E`` are weights, not logits; ``edges_E`` None weighs all edges 1.
        """
        states = [self._block(self.preprocess0, input0), self._block(self.preprocess1, input1)]
        op_weights = ops_EO.unbind()
        edge_weights = [None] * len(EDGES) if edges_E is None else edges_E.unbind()
        for rows in NODE_EDGES:
            node: Tensor | None = None
            for row in rows:
                source = states[EDGES[row][0]]
                term = self._block(self.edges[row], source, op_weights[row], edge_weights[row])
                node = term if node is None else node + term
            assert node is not None  # every node has predecessors
            states.append(node)
        return torch.cat(states[-len(NODES) :], dim=1)

    def _block(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        output: Tensor = recomputed(block, *inputs) if self.recompute == "op" else block(*inputs)
        return output


class MixedSupernet(nn.Module):
    """DARTS's search network, or PC-DARTS's with ``channel_divisor`` (its K) above 1.

    It holds no architecture logits: ``forward`` takes them. With ``channel_divisor=1`` the edge
    logits are not used. ``recompute``: what the backward pass computes again in place of being
    kept: ``"none"``, ``"cell"``, or ``"op"``, one edge with all its candidates. Batch norm: no
    affine parameters inside cells. Raises ``ConfigError`` for sizes that cannot be built, such as
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
    ) -> None:
        super().__init__()
        if recompute not in RECOMPUTE:
            raise ConfigError(
                f"unknown recompute {recompute!r}", hint="known: " + ", ".join(RECOMPUTE)
            )
        self.space = space
        self.channel_divisor = channel_divisor
        self.recompute = recompute
        # 3 x the cell width for both stems, as DARTS's and PC-DARTS's search networks.
        width = 3 * init_channels
        self.stem = build_stem(stem, in_channels, width)
        outputs = {cell_type: len(NODES) for cell_type in CELL_TYPES}
        plans = plan_cells(num_cells, init_channels, stem=stem, stem_width=width, outputs=outputs)
        self.cells = nn.ModuleList(
            MixedCell(space, plan, channel_divisor=channel_divisor, recompute=recompute)
            for plan in plans
        )
        self.classifier = nn.Linear(len(NODES) * plans[-1].channels, num_classes)

    def forward(self, x: Tensor, logits: ArchLogits) -> Tensor:
        """Return logits (N, classes) of normalised images ``x`` (N, C, H, W).

        Differentiable in the weights and in ``logits``. Raises ``ConfigError`` for ``logits`` of
        another space.
        """
        if logits.space != self.space:
            raise ConfigError(
                f"logits of space {logits.space.name} cannot weigh a supernet of {self.space.name}"
            )
        weights = {cell_type: self._weights(logits, cell_type, x) for cell_type in CELL_TYPES}
        previous, current = self.stem(x)
        for cell in self.cells:
            assert isinstance(cell, MixedCell)
            inputs = (previous, current, *weights[cell.cell_type])
            output = recomputed(cell, *inputs) if self.recompute == "cell" else cell(*inputs)
            previous, current = current, output
        pooled = current.mean((2, 3), dtype=self.classifier.weight.dtype)
        prediction: Tensor = self.classifier(pooled)
        return prediction

    def _weights(
        self, logits: ArchLogits, cell_type: str, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ops_EO, edges_E = mixture_weights(logits, cell_type)
        weights_EO = send(ops_EO, x.device)
        return weights_EO, None if self.channel_divisor == 1 else send(edges_E, x.device)

"""The derived network as the original papers' codes write it: a module per layer, nothing shared.

What retraining is timed against, and a second opinion on its numbers. CIFAR stem only.
"""

import torch
from torch import Tensor, nn

from d2nas.genotype import Genotype
from d2nas.nn.network import AuxiliaryHead
from d2nas.spaces import EDGES_PER_NODE, NODES, NUM_INPUTS


def _depthwise(channels: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


class _Reduce(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        output: Tensor = self.norm(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))
        return output


def _operation(name: str, channels: int, stride: int) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else _Reduce(channels, channels)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    kernel = int(name[-1])
    if name.startswith("dil"):
        return nn.Sequential(*_depthwise(channels, kernel, stride, 2))
    return nn.Sequential(
        *_depthwise(channels, kernel, stride, 1), *_depthwise(channels, kernel, 1, 1)
    )


def _preprocess(in_channels: int, channels: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels))


class _Cell(nn.Module):
    def __init__(
        self,
        genotype: Genotype,
        widths: tuple[int, int],
        channels: int,
        *,
        reduces: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        if after_reduction:
            self.preprocess0: nn.Module = _Reduce(widths[0], channels)
        else:
            self.preprocess0 = _preprocess(widths[0], channels)
        self.preprocess1 = _preprocess(widths[1], channels)
        pairs = genotype.reduce if reduces else genotype.normal
        self.sources = [source for _, source in pairs]
        self.operations = nn.ModuleList(
            _operation(name, channels, 2 if reduces and source < NUM_INPUTS else 1)
            for name, source in pairs
        )

    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(len(NODES)):
            added = []
            for edge in range(EDGES_PER_NODE * node, EDGES_PER_NODE * (node + 1)):
                operation = self.operations[edge]
                output = operation(states[self.sources[edge]])
                if probability > 0 and not isinstance(operation, nn.Identity):
                    output = _drop_path(output, probability)
                added.append(output)
            states.append(added[0] + added[1])
        return torch.cat(states[NUM_INPUTS:], dim=1)


def _drop_path(x: Tensor, probability: float) -> Tensor:
    keep = 1.0 - probability
    mask = torch.empty(len(x), 1, 1, 1).bernoulli_(keep).to(x.device)
    return x.div(keep).mul(mask)


class PlainNetwork(nn.Module):
    """A genotype's network; every node is concatenated. ``drop_path`` is a probability."""

    def __init__(
        self,
        genotype: Genotype,
        *,
        num_cells: int,
        init_channels: int,
        num_classes: int,
        in_channels: int = 3,
        auxiliary: bool,
    ) -> None:
        super().__init__()
        channels, width = init_channels, 3 * init_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        reductions = (num_cells // 3, 2 * num_cells // 3)
        cells: list[nn.Module] = []
        widths, after_reduction = (width, width), False
        self.auxiliary_position, head = reductions[1], None
        for position in range(num_cells):
            reduces = position in reductions
            channels *= 2 if reduces else 1
            cells.append(
                _Cell(
                    genotype,
                    widths,
                    channels,
                    reduces=reduces,
                    after_reduction=after_reduction,
                )
            )
            after_reduction, widths = reduces, (widths[1], len(NODES) * channels)
            if position == self.auxiliary_position and auxiliary:
                head = AuxiliaryHead("cifar", widths[1], num_classes)
        self.cells = nn.ModuleList(cells)
        self.auxiliary_head = head
        self.classifier = nn.Linear(widths[1], num_classes)

    def forward(self, x: Tensor, drop_path: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Return the logits (N, classes) and, in training, the auxiliary head's."""
        s0 = s1 = self.stem(x)
        auxiliary = None
        for position, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, drop_path)
            if position == self.auxiliary_position and self.training and self.auxiliary_head:
                auxiliary = self.auxiliary_head(s1)
        return self.classifier(s1.mean((2, 3))), auxiliary

"""The candidate operations and the small convolution blocks of the DARTS space.

Shapes: every operation maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).
Definitions follow DARTS (arXiv 1806.09055, 3.1 and its published code): ReLU, convolutions without
bias, batch norm, in this order. ``affine`` is False while searching, True in a derived network.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..devices import send
from ..errors import ConfigError
from ..spaces import NUM_INPUTS, find_operation
from .units import (
    AvgPoolLayer,
    ConvLayer,
    FactorizedLayer,
    MaxPoolLayer,
    NormalizedUnit,
    shift_by_pixel,
)


class ConvUnit(NormalizedUnit):
    """ReLU (unless ``rectify`` is off), convolutions without bias, batch norm."""

    def __init__(self, *convs: nn.Conv2d, affine: bool, rectify: bool = True) -> None:
        super().__init__()
        self.relu: nn.Module = nn.ReLU() if rectify else nn.Identity()
        self.convs = nn.ModuleList(convs)
        self.norm = nn.BatchNorm2d(convs[-1].out_channels, affine=affine)
        self.layers = tuple(ConvLayer(conv) for conv in convs)
        self.rectify = rectify

    def weights(self) -> Sequence[Tensor]:
        """Return the convolutions' weights."""
        return [conv.weight for conv in self.convs]  # type: ignore[misc]

    def plain(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, C', ceil(H / stride), ceil(W / stride))."""
        x_NCHW = self.relu(x_NCHW)
        for conv in self.convs:
            x_NCHW = conv(x_NCHW)
        output: Tensor = self.norm(x_NCHW)
        return output


class ReLUConvBN(ConvUnit):
    """ReLU, 1x1 convolution, batch norm: brings an input to the cell's width."""

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), affine=affine)


class FactorizedReduce(NormalizedUnit):
    """Halves height and width without losing pixels: two 1x1 stride-2 convolutions, one of them on
    the input shifted by a pixel in both axes; concatenation; batch norm.

    DARTS's code slices the shifted input and so fails on odd sizes. Padding one row and column of
    zeros at the bottom right before the shift gives the same numbers on even sizes and works on
    odd ones. Raises ``ConfigError`` for an odd number of output channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool) -> None:
        super().__init__()
        if out_channels % 2:
            raise ConfigError(f"{out_channels} channels: a stride-2 skip needs an even number")
        self.relu: nn.Module = nn.ReLU()
        self.conv_even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv_odd = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)
        self.layers = (FactorizedLayer(),)

    def weights(self) -> Sequence[Tensor]:
        """Return both convolutions' weights."""
        return self.conv_even.weight, self.conv_odd.weight

    def plain(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        x_NCHW = self.relu(x_NCHW)
        halves = (self.conv_even(x_NCHW), self.conv_odd(shift_by_pixel(x_NCHW)))
        output: Tensor = self.norm(torch.cat(halves, dim=1))
        return output


class NormalizedPool(NormalizedUnit):
    """A 3x3 pooling and batch norm: DARTS's form of it in a search network."""

    rectify = False

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        self.pool = OPERATIONS[name](channels, stride, False)
        self.norm = nn.BatchNorm2d(channels, affine=False)
        layer = MaxPoolLayer if name == "max_pool_3x3" else AvgPoolLayer
        self.layers = (layer(stride),)

    def weights(self) -> Sequence[Tensor]:
        """Return nothing: pooling has no weights."""
        return ()

    def plain(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, C, ceil(H / stride), ceil(W / stride))."""
        output: Tensor = self.norm(self.pool(x_NCHW))
        return output


class Noise(nn.Module):
    """Standard normal noise of the (strided) input's shape, whatever the input holds (R-DARTS, S4).

    Drawn anew at every forward, also in evaluation. ``generator`` (None: torch's global one) is
    set by whoever runs the network, see ``set_noise_generator``.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.generator: torch.Generator | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return noise of shape (N, C, ceil(H / stride), ceil(W / stride))."""
        batch, channels, height, width = x_NCHW.shape
        shape = (batch, channels, -(-height // self.stride), -(-width // self.stride))
        device = x_NCHW.device if self.generator is None else self.generator.device
        noise = torch.randn(shape, generator=self.generator, dtype=x_NCHW.dtype, device=device)
        return send(noise, x_NCHW.device)


def noises_in(module: nn.Module) -> list[Noise]:
    """Return every ``Noise`` in ``module``."""
    return [child for child in module.modules() if isinstance(child, Noise)]


class Draws(Protocol):
    """What draws random numbers in a forward pass, from a generator that it is given."""

    generator: torch.Generator | None


def set_noise_generator(noises: Iterable[Draws], generator: torch.Generator | None) -> None:
    """Make all ``noises`` draw from ``generator``."""
    for noise in noises:
        noise.generator = generator


class Zero(nn.Module):
    """The ``none`` operation: zeros of the (strided) input's shape. Searched, never derived."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return zeros of shape (N, C, ceil(H / stride), ceil(W / stride))."""
        return x_NCHW[:, :, :: self.stride, :: self.stride] * 0.0


def build_depthwise_unit(
    channels: int, *, kernel: int, stride: int, dilation: int, affine: bool
) -> ConvUnit:
    """Build ReLU, depthwise convolution, 1x1 convolution, batch norm; sizes as the edge's."""
    spatial = nn.Conv2d(
        channels,
        channels,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=channels,
        bias=False,
    )
    return ConvUnit(spatial, nn.Conv2d(channels, channels, 1, bias=False), affine=affine)


def _separable(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    # Applied twice; only the first of the two carries the stride.
    return lambda channels, stride, affine: nn.Sequential(
        build_depthwise_unit(channels, kernel=kernel, stride=stride, dilation=1, affine=affine),
        build_depthwise_unit(channels, kernel=kernel, stride=1, dilation=1, affine=affine),
    )


def _dilated(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda channels, stride, affine: build_depthwise_unit(
        channels, kernel=kernel, stride=stride, dilation=2, affine=affine
    )


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


class _PlainModule(nn.Module):
    """An operation of plain modules, computed by autocast where features are bfloat16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the module's output, in the type of the input."""
        if x_NCHW.dtype != torch.bfloat16:
            output: Tensor = self.module(x_NCHW)
            return output
        with torch.autocast(x_NCHW.device.type, dtype=torch.bfloat16):
            output = self.module(x_NCHW)
        return output.to(torch.bfloat16)


class _Factorized7x7(nn.Sequential):
    """ReLU, 1x7 and 7x1 convolutions, batch norm."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
            nn.Conv2d(channels, channels, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, C, ceil(H / stride), ceil(W / stride)), in the type of the input."""
        if x_NCHW.dtype != torch.bfloat16:
            output: Tensor = super().forward(x_NCHW)  # type: ignore[no-untyped-call]
            return output
        with torch.autocast(x_NCHW.device.type, dtype=torch.bfloat16):
            output = super().forward(x_NCHW)  # type: ignore[no-untyped-call]
        return output


OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda _channels, stride, _affine: Zero(stride),
    "noise": lambda _channels, stride, _affine: Noise(stride),
    "max_pool_3x3": lambda _channels, stride, _affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "avg_pool_3x3": lambda _channels, stride, _affine: nn.AvgPool2d(
        3, stride=stride, padding=1, count_include_pad=False
    ),
    "skip_connect": _skip,
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "sep_conv_7x7": _separable(7),
    "dil_conv_3x3": _dilated(3),
    "dil_conv_5x5": _dilated(5),
    "conv_7x1_1x7": _Factorized7x7,
}
"""Operation name to ``(channels, stride, affine) -> module``."""


def build_operation(name: str, channels: int, stride: int) -> nn.Module:
    """Build an operation of a derived network (affine batch norm, bare pooling)."""
    return _build(name, channels, stride, affine=True)


def _build(name: str, channels: int, stride: int, *, affine: bool) -> nn.Module:
    own = find_operation(name)
    if own is None:
        return OPERATIONS[name](channels, stride, affine)
    module = own.build(channels, stride, affine)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the operation {name} builds {module!r}, no torch.nn.Module")
    return _PlainModule(module)


def build_candidate(name: str, channels: int, stride: int) -> nn.Module:
    """Build an operation of a supernet: no affine batch norm, and each pooling is normalised too
    (DARTS's search network), so that candidates are compared at equal scale.
    """
    if name in ("max_pool_3x3", "avg_pool_3x3"):
        return NormalizedPool(name, channels, stride)
    return _build(name, channels, stride, affine=False)


class CifarStem(ConvUnit):
    """3x3 convolution and batch norm at full resolution; both cell inputs are its output."""

    def __init__(self, in_channels: int, width: int) -> None:
        conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        super().__init__(conv, affine=True, rectify=False)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the two inputs of cell 0."""
        output = super().forward(x_NCHW)
        return output, output


class ImageNetStem(nn.Module):
    """Three stride-2 convolutions: cell 0 reads H/4 as input 0 and H/8 as input 1."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ConfigError(f"{width} channels: the imagenet stem needs an even number")

        def halve(inputs: int, outputs: int, *, rectify: bool = True) -> ConvUnit:
            conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            return ConvUnit(conv, affine=True, rectify=rectify)

        self.to_half = halve(in_channels, width // 2, rectify=False)
        self.to_quarter = halve(width // 2, width)
        self.to_eighth = halve(width, width)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two inputs of cell 0; the first has twice the second's height and width."""
        quarter = self.to_quarter(self.to_half(x_NCHW))
        return quarter, self.to_eighth(quarter)


def build_stem(stem: str, in_channels: int, width: int) -> CifarStem | ImageNetStem:
    """Build ``"cifar"`` or ``"imagenet"``. Raises ``ConfigError`` for another name."""
    if stem == "cifar":
        return CifarStem(in_channels, width)
    if stem == "imagenet":
        return ImageNetStem(in_channels, width)
    raise ConfigError(f"unknown stem {stem!r}", hint="known: cifar, imagenet")


def preprocess_inputs(
    plan: "CellPlan", *, affine: bool
) -> tuple[ReLUConvBN | FactorizedReduce, ReLUConvBN]:
    """Build the two blocks that bring a cell's inputs to its width.

    Input 0 has twice the cell's height and width where the previous cell was a reduction.
    """
    first = FactorizedReduce if plan.after_reduction else ReLUConvBN
    return (
        first(plan.input_channels[0], plan.channels, affine=affine),
        ReLUConvBN(plan.input_channels[1], plan.channels, affine=affine),
    )


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Place of a cell: its type, width and inputs."""

    cell_type: str
    channels: int
    input_channels: tuple[int, int]
    after_reduction: bool

    def stride(self, source: int) -> int:
        """Return the stride of an edge from ``source``: 2 from a reduction cell's two inputs."""
        return 2 if self.cell_type == "reduce" and source < NUM_INPUTS else 1


def reduction_positions(num_cells: int) -> tuple[int, ...]:
    """Return the positions of the reduction cells: a third and two thirds of the depth."""
    return tuple(sorted({num_cells // 3, 2 * num_cells // 3}))


def plan_cells(
    num_cells: int,
    init_channels: int,
    *,
    stem: str,
    stem_width: int,
    outputs: Mapping[str, int],
) -> list[CellPlan]:
    """Lay out ``num_cells`` cells; channels double at each reduction cell.

    ``outputs`` gives, for each cell type, how many nodes the cell's output concatenates.
    Raises ``ConfigError`` for sizes that cannot be built.
    """
    if num_cells < 1 or init_channels < 1:
        raise ConfigError("num_cells and init_channels must be at least 1")
    reductions = reduction_positions(num_cells)
    plans: list[CellPlan] = []
    inputs = (stem_width, stem_width)
    channels, after_reduction = init_channels, stem == "imagenet"
    for position in range(num_cells):
        cell_type = "reduce" if position in reductions else "normal"
        if cell_type == "reduce":
            channels *= 2
        plans.append(CellPlan(cell_type, channels, inputs, after_reduction))
        inputs = (inputs[1], outputs[cell_type] * channels)
        after_reduction = cell_type == "reduce"
    return plans


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Reset every weight as PyTorch does by default, drawing from ``generator`` alone."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(child.weight, a=math.sqrt(5), generator=generator)
            if child.bias is not None:
                bound = 1 / math.sqrt(child.weight[0].numel())
                nn.init.uniform_(child.bias, -bound, bound, generator=generator)
        elif isinstance(child, nn.BatchNorm2d):
            child.reset_parameters()

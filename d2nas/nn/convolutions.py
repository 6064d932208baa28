"""Convolutions and their gradients, with fast ways for those of cells on a CPU.

A 1 x 1 convolution on channels-last maps is a matrix product, pixels by channels, with nothing to
rearrange. The CPU's convolution packs channels into blocks of its own first, and takes longer for
the sizes of cells: at 20 cells x 36 channels a training step would take a tenth longer.

PyTorch's CPU backward of a depthwise convolution is as fast as its forward for 3 x 3 kernels, and
10 to 30 times slower for wider or dilated ones, which fall off the optimized path. The same sums
can be asked for in shapes that stay on it:

- the gradient of the input is a convolution of the output's gradient with the mirrored kernel;
- a dilated convolution is an ordinary one on each of the sub-grids that its taps visit;
- a wide kernel's gradient is that of its strips of up to three columns, side by side.

On other devices, and for other convolutions, this is PyTorch's own convolution and backward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FAST_COLUMNS = 3
"""Kernel width up to which the CPU's own gradient of a depthwise kernel is fast (measured)."""


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """Geometry of a convolution: square stride, padding and dilation."""

    stride: int
    padding: int
    dilation: int
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "ConvSpec":
        """Read it off a module whose height and width are treated alike."""
        padding = conv.padding[0]
        assert isinstance(padding, int)
        return cls(conv.stride[0], padding, conv.dilation[0], conv.groups)


_DENSE = ConvSpec(stride=1, padding=0, dilation=1, groups=1)


def convolve(x_NCHW: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    """Return the convolution without bias."""
    if _is_product(x_NCHW, weight, spec):
        return _as_map(_pixels(x_NCHW) @ _matrix(weight).t(), x_NCHW)
    return F.conv2d(x_NCHW, weight, None, spec.stride, spec.padding, spec.dilation, spec.groups)


def convolution_gradients(
    grad_NCHW: Tensor,
    x_NCHW: Tensor,
    weight: Tensor,
    spec: ConvSpec,
    *,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the input ``x_NCHW`` and of ``weight``, given that of the output;
    None for one that is not wanted. Without ``want_weight`` the input's values do not matter.
    """
    if _is_product(x_NCHW, weight, spec):
        return _product_gradients(grad_NCHW, x_NCHW, weight, want_input, want_weight)
    if not _has_fast_way(x_NCHW, weight, spec):
        return _builtin(grad_NCHW, x_NCHW, weight, spec, want_input, want_weight)
    # The weight's first: what it needs beside, a padded input, is gone before the other is made.
    grad_weight = _weight_gradient(grad_NCHW, x_NCHW, weight, spec) if want_weight else None
    grad_input = _input_gradient(grad_NCHW, x_NCHW, weight, spec) if want_input else None
    return grad_input, grad_weight


def _is_product(x_NCHW: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether this is a dense 1x1 convolution on the CPU of maps whose channels lie together."""
    return (
        x_NCHW.device.type == "cpu"
        and x_NCHW.dtype in (torch.float32, torch.float64)
        and weight.shape[2:] == (1, 1)
        and spec == _DENSE
        and x_NCHW.stride(1) == 1
    )


def _product_gradients(
    grad_NCHW: Tensor, x_NCHW: Tensor, weight: Tensor, want_input: bool, want_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    grad, grad_input, grad_weight = _pixels(grad_NCHW), None, None
    if want_weight:
        # With the strides that PyTorch's own gradient has: those of channels-last weights.
        product = grad.t() @ _pixels(x_NCHW)
        grad_weight = product[:, None, None, :].permute(0, 3, 1, 2)
    if want_input:
        grad_input = _as_map(grad @ _matrix(weight), grad_NCHW)
    return grad_input, grad_weight


def _pixels(x_NCHW: Tensor) -> Tensor:
    """Return (N x H x W, C): a view of channels-last maps, a copy of a part of one."""
    return x_NCHW.permute(0, 2, 3, 1).reshape(-1, x_NCHW.shape[1])


def _matrix(weight: Tensor) -> Tensor:
    """Return the weight of a 1x1 convolution as (C', C)."""
    return weight.flatten(1)


def _as_map(pixels: Tensor, like_NCHW: Tensor) -> Tensor:
    """Return pixels (N x H x W, C) as channels-last maps of the size of ``like_NCHW``."""
    batch, _, height, width = like_NCHW.shape
    return pixels.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _input_gradient(
    grad_NCHW: Tensor, x_NCHW: Tensor, weight: Tensor, spec: ConvSpec
) -> Tensor | None:
    if spec.stride == 1:
        return _mirrored(grad_NCHW, weight, spec)
    if spec.dilation == 2:
        # Taps and strides are both two apart: only every second row and column takes part.
        gradient = torch.zeros_like(x_NCHW)
        gradient[:, :, ::2, ::2] = _mirrored(grad_NCHW, weight, _on_subgrid(spec))
        return gradient
    return _builtin(grad_NCHW, x_NCHW, weight, spec, True, False)[0]


def _weight_gradient(
    grad_NCHW: Tensor, x_NCHW: Tensor, weight: Tensor, spec: ConvSpec
) -> Tensor | None:
    if spec.dilation == 2 and spec.stride == 2:
        return _weight_gradient(grad_NCHW, x_NCHW[:, :, ::2, ::2], weight, _on_subgrid(spec))
    if spec.dilation == 1 and weight.shape[2] <= _FAST_COLUMNS:
        return _builtin(grad_NCHW, x_NCHW, weight, spec, False, True)[1]
    padded = F.pad(x_NCHW, (spec.padding,) * 4)
    if spec.dilation == 2:
        grad_NCHW, padded = _subgrids(grad_NCHW), _subgrids(padded)
    return _by_strips(grad_NCHW, padded, weight, spec.stride)


def _has_fast_way(x_NCHW: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether this is a depthwise convolution on the CPU of a form handled here."""
    kernel = weight.shape[2]
    return (
        x_NCHW.device.type == "cpu"
        and weight.shape[0] == weight.shape[1] * spec.groups == spec.groups
        and weight.shape[3] == kernel
        and kernel % 2 == 1
        and spec.padding == spec.dilation * (kernel // 2)
        and (spec.stride, spec.dilation) in ((1, 1), (1, 2), (2, 1), (2, 2))
        and (kernel > _FAST_COLUMNS or spec.dilation > 1)
    )


def _builtin(
    grad_NCHW: Tensor,
    x_NCHW: Tensor,
    weight: Tensor,
    spec: ConvSpec,
    want_input: bool,
    want_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    gradients: tuple[Tensor | None, Tensor | None, None] = torch.ops.aten.convolution_backward(
        grad_NCHW,
        x_NCHW,
        weight,
        None,
        [spec.stride, spec.stride],
        [spec.padding, spec.padding],
        [spec.dilation, spec.dilation],
        False,
        [0, 0],
        spec.groups,
        [want_input, want_weight, False],
    )
    return gradients[:2]


def _on_subgrid(spec: ConvSpec) -> ConvSpec:
    return ConvSpec(1, spec.padding // 2, 1, spec.groups)


def _mirrored(grad_NCHW: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    # Odd kernels padded to keep the size: the transposed convolution has the same padding.
    return convolve(
        grad_NCHW, weight.flip(2, 3), ConvSpec(1, spec.padding, spec.dilation, spec.groups)
    )


def _subgrids(x_NCHW: Tensor) -> Tensor:
    """Return the four sub-grids of every second row and column, one after the other in the batch.

    Odd sizes get a row or column of zeros, which add nothing to a sum of products.
    """
    height, width = x_NCHW.shape[2:]
    if height % 2 or width % 2:
        x_NCHW = F.pad(x_NCHW, (0, width % 2, 0, height % 2))
    return torch.cat([x_NCHW[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)])


def _by_strips(grad_NCHW: Tensor, padded: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the kernel's gradient of an undilated convolution on an already padded input."""
    channels, kernel = weight.shape[0], weight.shape[2]
    spec = ConvSpec(stride, 0, 1, channels)
    reach = stride * (grad_NCHW.shape[3] - 1)
    strips = []
    for first in range(0, kernel, _FAST_COLUMNS):
        columns = min(_FAST_COLUMNS, kernel - first)
        window = padded[:, :, :, first : first + reach + columns]
        shape_only = weight[:, :, :, first : first + columns]
        _, strip = _builtin(grad_NCHW, window, shape_only, spec, False, True)
        assert strip is not None
        strips.append(strip)
    return torch.cat(strips, dim=3) if len(strips) > 1 else strips[0]

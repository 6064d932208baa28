"""Batch norm over the batch, forward and backward, with a fast way for some widths on a CPU.

PyTorch's channels-last kernel works along the channels, and what is left over of whole vectors one
by one: it takes three to five times as long for 36 channels as for 32, and with four it does a
quarter of what it could. The same sums over rows of ``width x channels`` neighbours use whole
vectors, whatever the number of channels.
"""

import torch
from torch import Tensor, nn

_FEW_CHANNELS = 8
"""Up to this many the rows are faster than PyTorch's own kernel (measured)."""
_VECTOR = 8
_MANY_CHANNELS = 64
"""From here on what is left over of whole vectors hardly counts."""


def normalize(x_NCHW: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of ``norm`` in training mode, the batch's mean and one over its deviation
    as ``normalize_gradients`` takes them (by channel, in the fast way repeated along a row; of at
    least float32). Updates the running statistics.
    """
    assert norm.momentum is not None  # a cumulative average is not used here
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if not _has_fast_way(x_NCHW):
        return torch.native_batch_norm(
            x_NCHW,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            True,
            norm.momentum,
            norm.eps,
        )
    rows, channels = _rows(x_NCHW), x_NCHW.shape[1]
    count = x_NCHW.numel() // channels
    mean = _summed(rows, channels) / count
    centred = rows - mean
    variance = _summed(centred * centred, channels) / count
    inverse_std = (variance + norm.eps).rsqrt()
    if norm.weight is None:
        output = centred.mul_(inverse_std)
    else:
        factor = _repeated(norm.weight.detach(), rows) * inverse_std
        output = torch.addcmul(_repeated(norm.bias.detach(), rows), centred, factor)
    if norm.running_mean is not None and norm.running_var is not None:
        unbiased = variance[:channels] * (count / max(1, count - 1))
        norm.running_mean.lerp_(mean[:channels], norm.momentum)
        norm.running_var.lerp_(unbiased, norm.momentum)
    return _as_map(output, x_NCHW), mean, inverse_std


def normalize_gradients(
    grad_NCHW: Tensor,
    kept_NCHW: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    scale: Tensor | None,
    *,
    want_affine: bool,
    epsilon: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of the input, of the scale and of the shift, given the output's.

    ``kept_NCHW`` is the input, with ``scale``; without, it is the output, which is the input
    normalised.
    """
    if not _has_fast_way(kept_NCHW):
        # The gradient of a cell's state is a slice of the concatenation's, and of such a stride
        # PyTorch's kernel reads number by number: on a CPU it takes fourteen times as long.
        grad_NCHW = grad_NCHW.contiguous(memory_format=_layout(kept_NCHW))
        if scale is None:
            # Told that y has mean 0 and deviation 1, the kernel computes the bracket of the formula
            # below; its factor 1 / std comes in as the scale.
            scale, mean, inverse_std = inverse_std, torch.zeros_like(mean), torch.ones_like(mean)
        gradients: tuple[Tensor, Tensor | None, Tensor | None] = (
            torch.ops.aten.native_batch_norm_backward(
                grad_NCHW,
                kept_NCHW,
                scale,
                None,
                None,
                mean,
                inverse_std,
                True,
                epsilon,
                [True, want_affine, want_affine],
            )
        )
        return gradients
    # Over the n values of a channel y = (x - mean) / std, std = sqrt(variance + eps), the output is
    # scale * y + shift and g its gradient. Mean and std depend on every x; the chain rule leaves
    #
    #     dL/dx = scale / std * (g - sum(g) / n - y * sum(g * y) / n)
    #
    # g less its projections on the ones and on y: what moves all x alike, or scales them, changes
    # no y. sum(g) is the gradient of the shift, sum(g * y) that of the scale. Only y is looked at,
    # so without scale and shift the output, which is y, is enough: x need not be kept.
    rows, grad, channels = _rows(kept_NCHW), _rows(grad_NCHW), grad_NCHW.shape[1]
    factor, deviation = inverse_std, torch.ones_like(inverse_std)
    if scale is not None:
        # y is (x - mean) * deviation: centred only, its division left to what is summed up already.
        rows, deviation = rows - mean, inverse_std
        factor = inverse_std * _repeated(scale, rows)
    products = grad * rows
    grad_shift, grad_scale = _summed(grad, channels), _summed(products, channels) * deviation
    share = factor * (-channels / grad_NCHW.numel())
    total = torch.addcmul(grad_shift * share, grad, factor, out=products)
    total.addcmul_(rows, grad_scale * share * deviation)
    gradient = _as_map(total, kept_NCHW)
    if not want_affine:
        return gradient, None, None
    return gradient, grad_scale[:channels], grad_shift[:channels]


def _has_fast_way(x_NCHW: Tensor) -> bool:
    channels = x_NCHW.shape[1]
    return (
        x_NCHW.device.type == "cpu"
        and (channels <= _FEW_CHANNELS or (channels % _VECTOR > 0 and channels < _MANY_CHANNELS))
        and x_NCHW.dtype in (torch.float32, torch.float64)
        and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    )


def _layout(x_NCHW: Tensor) -> torch.memory_format:
    if x_NCHW.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _rows(x_NCHW: Tensor) -> Tensor:
    """Return (N x H, W x C)."""
    channels, width = x_NCHW.shape[1], x_NCHW.shape[3]
    return x_NCHW.permute(0, 2, 3, 1).reshape(-1, width * channels)


def _as_map(rows: Tensor, like_NCHW: Tensor) -> Tensor:
    batch, channels, height, width = like_NCHW.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _summed(rows: Tensor, channels: int) -> Tensor:
    """Return each channel's sum, repeated along a row."""
    sums = rows.sum(0).view(-1, channels).sum(0)
    return _repeated(sums, rows)


def _repeated(values_C: Tensor, rows: Tensor) -> Tensor:
    """Return the values repeated along a row of ``rows``."""
    channels = values_C.shape[0]
    return values_C.expand(rows.shape[1] // channels, channels).reshape(-1)

"""ReLU, convolutions, batch norm: the unit that all operations are made of, trained with less.

The same numbers as the modules one after the other, with a backward written by hand that keeps
less for it, and asks for gradients in forms that are fast (``convolutions``):

- The rectified input is not kept: it is derived from the input, which is alive anyway and shared
  by all edges that leave the same node.
- Without affine parameters, batch norm's backward needs its *output* and not its input. The output
  lives on as the operation's result, or as the next unit's input.

So a depthwise-separable unit keeps two feature maps for its backward in place of four.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import normalize, normalize_gradients
from .convolutions import ConvSpec, convolution_gradients, convolve


class Layer(Protocol):
    """One linear (or pooling) layer of a unit, on maps (N, C, H, W)."""

    num_weights: int

    def forward(self, x_NCHW: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the output, and what else the backward needs."""

    def backward(
        self,
        grad_NCHW: Tensor,
        x_NCHW: Tensor,
        extra: Tensor | None,
        weights: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the gradients of the input and of each weight, those that are ``wanted``."""


class ConvLayer:
    """A convolution without bias."""

    num_weights = 1

    def __init__(self, conv: nn.Conv2d) -> None:
        self.spec = ConvSpec.of(conv)

    def forward(self, x_NCHW: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the convolution."""
        return convolve(x_NCHW, weights[0], self.spec), None

    def backward(
        self,
        grad_NCHW: Tensor,
        x_NCHW: Tensor,
        extra: Tensor | None,
        weights: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return both gradients."""
        want_input, want_weight = wanted
        return list(
            convolution_gradients(
                grad_NCHW,
                x_NCHW,
                weights[0],
                self.spec,
                want_input=want_input,
                want_weight=want_weight,
            )
        )


def shift_by_pixel(x_NCHW: Tensor) -> Tensor:
    """Return the map without its first row and column; odd sizes get one of zeros at the end."""
    odd_height, odd_width = x_NCHW.shape[2] % 2, x_NCHW.shape[3] % 2
    shifted = x_NCHW[:, :, 1:, 1:]
    return F.pad(shifted, (0, odd_width, 0, odd_height)) if odd_height or odd_width else shifted


class FactorizedLayer:
    """Two 1x1 stride-2 convolutions side by side, the second one on the input shifted by a pixel.

    Odd sizes are padded by a row and column of zeros before the shift.
    """

    num_weights = 2
    spec = ConvSpec(stride=2, padding=0, dilation=1, groups=1)

    def forward(self, x_NCHW: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the concatenated halves."""
        parts = (x_NCHW, shift_by_pixel(x_NCHW))
        halves = [
            convolve(part, weight, self.spec) for part, weight in zip(parts, weights, strict=True)
        ]
        return torch.cat(halves, dim=1), None

    def backward(
        self,
        grad_NCHW: Tensor,
        x_NCHW: Tensor,
        extra: Tensor | None,
        weights: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the gradients of the input and of both weights."""
        # Each half reads a quarter of the pixels: dense convolutions on those. PyTorch's gradient
        # of a strided 1x1 convolution on a CPU writes past the end of a buffer where there are few
        # channels (oneDNN issue 6035): wrong gradients, or a crash.
        height, width = x_NCHW.shape[2:]
        odd_NCHW = F.pad(x_NCHW[:, :, 1::2, 1::2], (0, width % 2, 0, height % 2))
        dense = ConvSpec(stride=1, padding=0, dilation=1, groups=1)
        (even, first), (odd, second) = (
            convolution_gradients(
                half, part, weight, dense, want_input=wanted[0], want_weight=want_weight
            )
            for half, part, weight, want_weight in zip(
                grad_NCHW.chunk(2, dim=1),
                (x_NCHW[:, :, ::2, ::2], odd_NCHW),
                weights,
                wanted[1:],
                strict=True,
            )
        )
        if even is None or odd is None:
            return [None, first, second]
        gradient = torch.zeros_like(x_NCHW)
        gradient[:, :, ::2, ::2] = even
        gradient[:, :, 1::2, 1::2] = odd[:, :, : height // 2, : width // 2]
        return [gradient, first, second]


class MaxPoolLayer:
    """3x3 max pooling with padding 1."""

    num_weights = 0

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def forward(self, x_NCHW: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the pooled map, and where each maximum was."""
        return F.max_pool2d_with_indices(x_NCHW, (3, 3), (self.stride, self.stride), (1, 1))

    def backward(
        self,
        grad_NCHW: Tensor,
        x_NCHW: Tensor,
        extra: Tensor | None,
        weights: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the input's gradient."""
        stride = [self.stride, self.stride]
        gradient: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            grad_NCHW, x_NCHW, [3, 3], stride, [1, 1], [1, 1], False, extra
        )
        return [gradient]


class AvgPoolLayer:
    """3x3 average pooling with padding 1, over the pixels inside the image alone.

    As a depthwise convolution with ones, divided by each window's number of pixels: on a CPU
    several times faster than the pooling kernel, and fast backwards too.
    """

    num_weights = 0

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def forward(self, x_NCHW: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the pooled map."""
        ones, spec = self._window(x_NCHW)
        return convolve(x_NCHW, ones, spec) * self._shares(x_NCHW), None

    def backward(
        self,
        grad_NCHW: Tensor,
        x_NCHW: Tensor,
        extra: Tensor | None,
        weights: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the input's gradient."""
        ones, spec = self._window(x_NCHW)
        grad_NCHW = grad_NCHW * self._shares(x_NCHW)
        gradient, _ = convolution_gradients(
            grad_NCHW, x_NCHW, ones, spec, want_input=True, want_weight=False
        )
        return [gradient]

    def _window(self, x_NCHW: Tensor) -> tuple[Tensor, ConvSpec]:
        channels = x_NCHW.shape[1]
        return x_NCHW.new_ones(channels, 1, 3, 3), ConvSpec(self.stride, 1, 1, channels)

    def _shares(self, x_NCHW: Tensor) -> Tensor:
        """Return one over the number of pixels in each window, (H', W')."""
        shares = []
        for size in x_NCHW.shape[2:]:
            starts = torch.arange(0, size, self.stride, device=x_NCHW.device) - 1
            inside = (starts + 3).clamp(max=size) - starts.clamp(min=0)
            shares.append(1.0 / inside.to(x_NCHW.dtype))
        return shares[0][:, None] * shares[1]


_REFUSAL = (
    "units with a hand-written backward have first derivatives by backward() only\n"
    "hint: d2nas.nn.units.keep_everything(module) before the forward makes them "
    "PyTorch's own modules"
)


class _FirstDerivative(torch.autograd.Function):
    """A gradient that refuses to be differentiated by what it was computed from.

    ``once_differentiable`` would not do: where the gradient that comes in is a constant, as that
    of a sum, it leaves one that depends on nothing, and second derivatives are wrong silently.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"a second derivative is not supported: {_REFUSAL}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        raise NotImplementedError(f"a second derivative is not supported: {_REFUSAL}")


class _NormalizedLayers(torch.autograd.Function):
    """(ReLU), layers, batch norm over the batch."""

    # u = max(x, 0); v_0 = u, v_i = layer_i(v_(i-1)); y = normalise(v_n). Backwards, with g_n from
    # ``normalize_gradients``, which asks for y alone where there is no scale:
    #
    #     g_(i-1) = layer_i's transpose applied to g_i        (a convolution, transposed)
    #     dL/dw_i = correlation of v_(i-1) with g_i          (looks at v_(i-1), so it is kept)
    #     dL/dx   = g_0 where x > 0, else 0                  (x is alive: u need not be kept)
    #
    # Kept are v_1 ... v_(n-1) and y, of which y is the unit's output, which others keep anyway. A
    # module-by-module graph keeps u and v_n as well, and batch norm's input beside its output.

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        norm: nn.BatchNorm2d,
        layers: tuple[Layer, ...],
        rectify: bool,
        scale: Tensor | None,
        shift: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        ctx.epsilon, ctx.layers, ctx.rectify = norm.eps, layers, rectify
        current = x_NCHW.relu() if rectify else x_NCHW
        sources, extras = [], []
        for layer, own in zip(layers, _by_layer(layers, weights), strict=True):
            sources.append(current)
            current, extra = layer.forward(current, _cast(own, x_NCHW.dtype))
            extras.append(extra)
        output, mean, inverse_std = normalize(current, norm)
        kept = output if scale is None else current
        statistics = (mean, inverse_std, scale)
        ctx.save_for_backward(x_NCHW, kept, *statistics, *sources[1:], *extras, *weights)
        return output

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        raise NotImplementedError(f"forward-mode derivatives are not supported: {_REFUSAL}")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: with recomputation they cannot be had again
        with torch.no_grad():
            found = _NormalizedLayers._gradients(ctx, saved, gradients)
        if not torch.is_grad_enabled():
            return found
        # create_graph: whoever asks for it may differentiate what is found here.
        sources = [
            tensor for tensor in (*gradients, *saved) if tensor is not None and tensor.requires_grad
        ]
        return tuple(
            None if gradient is None else _FirstDerivative.apply(gradient, *sources)
            for gradient in found
        )

    @staticmethod
    def _gradients(
        ctx: Any, saved: tuple[Any, ...], gradients: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        x_NCHW, kept, mean, inverse_std, scale, *rest = saved
        layers, num_layers = ctx.layers, len(ctx.layers)
        sources, extras = (
            [x_NCHW, *rest[: num_layers - 1]],
            rest[num_layers - 1 : 2 * num_layers - 1],
        )
        owns = _by_layer(layers, rest[2 * num_layers - 1 :])
        wanteds = _by_layer(layers, ctx.needs_input_grad[6:])
        # Only the weights' gradient looks at the values of the first layer's input.
        if ctx.rectify and any(wanteds[0]):
            sources[0] = x_NCHW.relu()
        gradient, grad_scale, grad_shift = normalize_gradients(
            gradients[0],
            kept,
            mean,
            inverse_std,
            scale,
            want_affine=any(ctx.needs_input_grad[4:6]),
            epsilon=ctx.epsilon,
        )
        grad_weights: list[Tensor | None] = []
        for index in reversed(range(num_layers)):
            own, source = owns[index], sources.pop()
            wanted = (index > 0 or ctx.needs_input_grad[0], *wanteds[index])
            found = layers[index].backward(
                gradient, source, extras[index], _cast(own, source.dtype), wanted
            )
            gradient = found[0]
            grad_weights = [
                None if grad is None else grad.to(weight.dtype)
                for grad, weight in zip(found[1:], own, strict=True)
            ] + grad_weights
        del source, found
        if gradient is not None and ctx.rectify:
            # In place: a convolution's gradient is a tensor of its own.
            torch.ops.aten.threshold_backward.grad_input(gradient, x_NCHW, 0, grad_input=gradient)
        return gradient, None, None, None, grad_scale, grad_shift, *grad_weights


def _by_layer(layers: Sequence[Layer], items: Sequence[Any]) -> list[Sequence[Any]]:
    """Split ``items``, one per weight, by the layer each belongs to."""
    parts, first = [], 0
    for layer in layers:
        parts.append(items[first : first + layer.num_weights])
        first += layer.num_weights
    return parts


def _cast(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    # Weights stay in float32 whatever the features are computed in.
    return [weight.to(dtype) for weight in weights]


class MemorySaving(nn.Module):
    """Base of units that train with less memory than the published codes do.

    ``saves_memory`` off: as they do, module by module, for comparison (``keep_everything``).
    """

    saves_memory = True


class NormalizedUnit(MemorySaving):
    """Base of the units: subclasses set ``layers``, and say what they are module by module.

    The memory-saving way is the hand-written backward.
    """

    norm: nn.BatchNorm2d
    layers: tuple[Layer, ...]
    rectify = True
    shares_relu = False
    """Whether the hand-written way is given an input that is rectified already."""

    def weights(self) -> Sequence[Tensor]:
        """Return the layers' weights, in order."""
        raise NotImplementedError

    def plain(self, x_NCHW: Tensor) -> Tensor:
        """Run the modules one after the other."""
        raise NotImplementedError

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, C', ceil(H / stride), ceil(W / stride))."""
        if not self._has_own_way():
            return self.plain(x_NCHW)
        kind = x_NCHW.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return self._run_in_autocast(x_NCHW)
        return self._run(x_NCHW)

    def _has_own_way(self) -> bool:
        return self.saves_memory and self.norm.training and not _is_watched(self)

    def _run(self, x_NCHW: Tensor) -> Tensor:
        norm = self.norm
        if not torch.is_grad_enabled():
            return self.forward_only(x_NCHW, rectified=self.shares_relu)
        output: Tensor = _NormalizedLayers.apply(
            x_NCHW,
            norm,
            self.layers,
            self.rectify and not self.shares_relu,
            norm.weight,
            norm.bias,
            *self.weights(),
        )
        return output

    def forward_only(self, x_NCHW: Tensor, *, rectified: bool = False) -> Tensor:
        """Compute the same where no backward follows: each map is gone when the next is there.

        The input may be ``rectified`` already.
        """
        if not self._has_own_way():
            return self.plain(x_NCHW)  # a second ReLU changes nothing
        current = x_NCHW.relu() if self.rectify and not rectified else x_NCHW
        for layer, own in zip(self.layers, _by_layer(self.layers, self.weights()), strict=True):
            current, _ = layer.forward(current, _cast(own, x_NCHW.dtype))
        output, _, _ = normalize(current, self.norm)
        return output

    def _run_in_autocast(self, x_NCHW: Tensor) -> Tensor:
        # The unit casts its weights to its input's type: autocast only has to say which. It leaves
        # float64 as it is, and what has no weights.
        kind = x_NCHW.device.type
        if self.weights() and x_NCHW.dtype != torch.float64:
            x_NCHW = x_NCHW.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            return self._run(x_NCHW)


def _is_watched(module: nn.Module) -> bool:
    """Whether someone's hook waits for the module, or one inside, to run."""
    # Module.modules() would take longer than a small convolution.
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ) or any(_is_watched(child) for child in module._modules.values() if child is not None)


def share_relu(operation: nn.Module) -> NormalizedUnit | None:
    """Return an operation's first unit, which from now on is given rectified inputs while its batch
    norm trains; None if the operation does not begin with ReLU.

    Whoever does so computes the ReLU once for all units that read the same state.
    """
    first = operation[0] if isinstance(operation, nn.Sequential) else operation
    if not isinstance(first, NormalizedUnit) or not first.rectify:
        return None
    first.shares_relu = True
    return first


def keep_everything(module: nn.Module) -> None:
    """Make everything in ``module`` train as the published codes do: by PyTorch's own backward,
    which keeps each intermediate map, every unit with a ReLU of its own.
    """
    for child in module.modules():
        if isinstance(child, MemorySaving):
            child.saves_memory = False


@contextlib.contextmanager
def everything_kept(module: nn.Module) -> Iterator[None]:
    """Train as after ``keep_everything`` for a while: for second derivatives."""
    saving = [
        child
        for child in module.modules()
        if isinstance(child, MemorySaving) and child.saves_memory
    ]
    for child in saving:
        child.saves_memory = False
    try:
        yield
    finally:
        for child in saving:
            child.saves_memory = True

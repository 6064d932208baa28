"""Convolutions and their gradients by fast ways: the numbers of PyTorch's own."""

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from d2nas.data.batches import channels_last
from d2nas.nn import convolutions
from d2nas.nn.convolutions import ConvSpec, convolution_gradients, convolve
from d2nas.nn.operations import ConvUnit, FactorizedReduce, ReLUConvBN

CHANNELS = 3
SIZES = [(8, 8), (9, 7), (6, 5), (1, 6), (7, 1), (1, 1), (2, 3), (13, 16)]
CASES = [
    (kernel, dilation, stride, size)
    for kernel, dilation, stride in itertools.product((1, 3, 5, 7), (1, 2), (1, 2))
    for size in SIZES
]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spec_of(kernel: int, dilation: int, stride: int, groups: int = CHANNELS) -> ConvSpec:
    return ConvSpec(stride, dilation * (kernel // 2), dilation, groups)


def own_gradients(grad: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    """PyTorch's backward of the forward convolution."""
    found: tuple[Tensor, Tensor, Any] = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        [spec.stride] * 2,
        [spec.padding] * 2,
        [spec.dilation] * 2,
        False,
        [0, 0],
        spec.groups,
        [True, True, False],
    )
    return found[:2]


def largest_error(kernel: int, dilation: int, stride: int, size: tuple[int, int]) -> float:
    """The largest distance of both gradients from PyTorch's; infinite where shapes differ."""
    x, weight = randn(1, 2, CHANNELS, *size), randn(2, CHANNELS, 1, kernel, kernel)
    spec = spec_of(kernel, dilation, stride)
    output = convolve(x, weight, spec)
    grad = randn(3, *output.shape)
    try:
        got = convolution_gradients(grad, x, weight, spec, want_input=True, want_weight=True)
    except RuntimeError:
        return float("inf")
    wanted = own_gradients(grad, x, weight, spec)
    if [g.shape for g in got if g is not None] != [w.shape for w in wanted]:
        return float("inf")
    return max(float((g - w).abs().max()) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("kernel", "dilation", "stride", "size"), CASES)
def test_gradients_are_pytorchs(
    kernel: int, dilation: int, stride: int, size: tuple[int, int]
) -> None:
    assert largest_error(kernel, dilation, stride, size) <= 1e-12


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_fast_way_is_taken_where_it_is_one(kernel: int, dilation: int, stride: int) -> None:
    """Control of the comparison above: it does not compare PyTorch with itself."""
    x, weight = randn(1, 2, CHANNELS, 8, 8), randn(2, CHANNELS, 1, kernel, kernel)
    taken = convolutions._has_fast_way(x, weight, spec_of(kernel, dilation, stride))
    assert taken == (kernel > 3 or dilation > 1)


def test_other_convolutions_and_devices_are_left_to_pytorch() -> None:
    x, weight = randn(1, 2, CHANNELS, 8, 8), randn(2, CHANNELS, 1, 5, 5)
    spec = spec_of(5, 1, 1)
    assert convolutions._has_fast_way(x, weight, spec)
    assert not convolutions._has_fast_way(x.to("meta"), weight.to("meta"), spec)
    full = randn(2, CHANNELS, CHANNELS, 5, 5)
    assert not convolutions._has_fast_way(x, full, spec_of(5, 1, 1, groups=1))
    wider = randn(2, 2 * CHANNELS, 1, 5, 5)  # two outputs per channel
    assert not convolutions._has_fast_way(x, wider, spec)
    assert not convolutions._has_fast_way(x, weight, ConvSpec(1, 1, 1, CHANNELS))  # shrinks the map
    assert not convolutions._has_fast_way(x, weight[:, :, :, :3], spec)
    assert not convolutions._has_fast_way(x, weight, ConvSpec(3, 2, 1, CHANNELS))


@pytest.mark.parametrize("groups", [1, CHANNELS])
@pytest.mark.parametrize(
    ("want_input", "want_weight"), [*itertools.product((False, True), repeat=2)]
)
def test_only_what_is_wanted_is_computed(groups: int, want_input: bool, want_weight: bool) -> None:
    x, weight = randn(1, 2, CHANNELS, 8, 8), randn(2, CHANNELS, CHANNELS // groups, 5, 5)
    spec = spec_of(5, 1, 1, groups)
    grad = randn(3, 2, CHANNELS, 8, 8)
    wanted = own_gradients(grad, x, weight, spec)
    got = convolution_gradients(
        grad,
        x if want_weight else torch.full_like(x, torch.nan),  # its values then do not matter
        weight,
        spec,
        want_input=want_input,
        want_weight=want_weight,
    )
    for gradient, own, asked in zip(got, wanted, (want_input, want_weight), strict=True):
        assert (gradient is not None) == asked
        if gradient is not None:
            torch.testing.assert_close(gradient, own, rtol=1e-12, atol=1e-12)


def test_bf16_gradients_are_close_and_bf16() -> None:
    for kernel, dilation, stride in itertools.product((3, 5), (1, 2), (1, 2)):
        x, weight = randn(1, 4, CHANNELS, 9, 8), randn(2, CHANNELS, 1, kernel, kernel)
        spec = spec_of(kernel, dilation, stride)
        grad = randn(3, *convolve(x, weight, spec).shape)
        low = [tensor.bfloat16() for tensor in (grad, x, weight)]
        got = convolution_gradients(*low, spec, want_input=True, want_weight=True)
        wanted = own_gradients(*(tensor.double() for tensor in low), spec)
        for gradient, own in zip(got, wanted, strict=True):
            assert gradient is not None
            assert gradient.dtype == torch.bfloat16
            assert float((gradient.double() - own).norm() / own.norm()) < 0.02


# --- 1x1 convolutions as matrix products ---------------------------------------------------------

DENSE = ConvSpec(1, 0, 1, 1)


def dense_case(size: tuple[int, int], channels: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output's gradient, the input and the weight of a 1x1 convolution, channels last."""
    x, weight = randn(1, 2, channels, *size), randn(2, outputs, channels, 1, 1)
    grad = randn(3, 2, outputs, *size)
    return channels_last(grad), channels_last(x), channels_last(weight)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (1, 4), (5, 1), (6, 4), (36, 8)])
@pytest.mark.parametrize("part", [False, True])
def test_a_product_is_the_convolution(
    size: tuple[int, int], channels: int, outputs: int, part: bool
) -> None:
    grad, x, weight = dense_case(size, channels, outputs)
    if part:  # every second pixel of a larger map, as a factorized reduction reads it
        height, width = size
        x = channels_last(randn(4, 2, channels, 2 * height, 2 * width))[:, :, ::2, ::2]
    output = convolve(x, weight, DENSE)
    wanted = torch.conv2d(x, weight)
    torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
    if convolutions._is_product(x, weight, DENSE):
        assert output.is_contiguous(memory_format=torch.channels_last)
    else:
        assert channels == 1  # parts of one channel have no strides to tell them by
    got = convolution_gradients(grad, x, weight, DENSE, want_input=True, want_weight=True)
    for gradient, own in zip(got, own_gradients(grad, x, weight, DENSE), strict=True):
        torch.testing.assert_close(gradient, own, rtol=1e-12, atol=1e-12)
    # What adds gradients, or sends them to other ranks, expects the weight's strides.
    assert got[1] is not None
    assert got[1].stride() == weight.stride()


def test_control_a_product_that_is_not_the_convolution_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grad, x, weight = dense_case((8, 8), 4, 4)
    monkeypatch.setattr(convolutions, "_matrix", lambda weight: weight.flatten(1).t())
    assert float((convolve(x, weight, DENSE) - torch.conv2d(x, weight)).abs().max()) > 0.01
    got = convolution_gradients(grad, x, weight, DENSE, want_input=True, want_weight=False)
    assert got[0] is not None
    assert float((got[0] - own_gradients(grad, x, weight, DENSE)[0]).abs().max()) > 0.01


def test_what_is_no_product_is_left_to_pytorch() -> None:
    _, x, weight = dense_case((8, 8), 6, 4)
    assert convolutions._is_product(x, weight, DENSE)
    assert not convolutions._is_product(x.contiguous(), weight, DENSE)
    assert not convolutions._is_product(x.bfloat16(), weight.bfloat16(), DENSE)
    assert not convolutions._is_product(x.to("meta"), weight.to("meta"), DENSE)
    assert not convolutions._is_product(x, randn(2, 4, 6, 3, 3), ConvSpec(1, 1, 1, 1))
    for spec in (ConvSpec(2, 0, 1, 1), ConvSpec(1, 1, 1, 1), ConvSpec(1, 0, 1, 2)):
        assert not convolutions._is_product(x, weight, spec)


# --- strided 1x1 convolutions, for which PyTorch's own backward can write past its buffer ---------


def test_pytorchs_own_strided_1x1_gradient_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strides: list[int] = []
    real = convolutions._builtin

    def record(grad: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec, *wanted: bool) -> Any:
        strides.append(spec.stride)
        return real(grad, x, weight, spec, *wanted)

    monkeypatch.setattr(convolutions, "_builtin", record)
    for module in (FactorizedReduce(6, 4, affine=False), ReLUConvBN(6, 4, affine=False)):
        module(randn(0, 2, 6, 8, 8).float()).sum().backward()
    assert strides == [1, 1, 1]
    strided = torch.nn.Conv2d(6, 4, 1, stride=2, bias=False)  # control: asked as it stands
    ConvUnit(strided, affine=False)(randn(0, 2, 6, 8, 8).float()).sum().backward()
    assert strides[3:] == [2]


def test_a_strided_skip_of_few_channels_survives() -> None:
    """In a process of its own: what it guards against ends the process."""
    script = """
import torch
from d2nas.nn.operations import FactorizedReduce
torch.set_num_threads(1)
numbers = torch.Generator().manual_seed(0)
for channels in (2, 6, 8, 12):
    module = FactorizedReduce(channels, 2, affine=False)
    for _ in range(10):
        images = torch.randn(4, channels, 56, 56, generator=numbers)
        module(images.contiguous(memory_format=torch.channels_last)).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- controls: each part of a fast way, slipped -------------------------------------------------


def _strips_to_the_right(grad: Tensor, padded: Tensor, weight: Tensor, stride: int) -> Tensor:
    return REAL_STRIPS(grad, padded.roll(1, dims=3), weight, stride)


def _strips_of_one_stride(grad: Tensor, padded: Tensor, weight: Tensor, stride: int) -> Tensor:
    return REAL_STRIPS(grad, padded, weight, 1)


def _first_strip_alone(grad: Tensor, padded: Tensor, weight: Tensor, stride: int) -> Tensor:
    whole = REAL_STRIPS(grad, padded, weight, stride).clone()
    whole[:, :, :, 3:] = 0
    return whole


def _three_subgrids(x: Tensor) -> Tensor:
    parts = list(REAL_SUBGRIDS(x).chunk(4))
    parts[3] = torch.zeros_like(parts[3])
    return torch.cat(parts)


def _swapped_rows_and_columns(x: Tensor) -> Tensor:
    # For one of the two maps: swapped in both, the sum would be the same.
    parts = REAL_SUBGRIDS(x).chunk(4)
    is_padded = bool((x[:, :, 0] == 0).all())
    return torch.cat([parts[i] for i in ((0, 2, 1, 3) if is_padded else range(4))])


REAL_STRIPS, REAL_SUBGRIDS = convolutions._by_strips, convolutions._subgrids
SLIPS: dict[str, tuple[str, Any]] = {
    "strips one column to the right": ("_by_strips", _strips_to_the_right),
    "strips without the stride": ("_by_strips", _strips_of_one_stride),
    "the first strip alone": ("_by_strips", _first_strip_alone),
    "a sub-grid left out": ("_subgrids", _three_subgrids),
    "sub-grids that do not match": ("_subgrids", _swapped_rows_and_columns),
    "the kernel not mirrored": (
        "_mirrored",
        lambda grad, weight, spec: convolve(grad, weight, spec),
    ),
    "padding of the whole grid": (
        "_on_subgrid",
        lambda spec: ConvSpec(1, spec.padding, 1, spec.groups),
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_control_a_slip_is_seen(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, replacement = SLIPS[slip]
    monkeypatch.setattr(convolutions, name, replacement)
    errors = [largest_error(*case) for case in CASES]
    assert max(errors) > 0.01
    assert min(errors) <= 1e-12  # and where the part is not used, nothing changes

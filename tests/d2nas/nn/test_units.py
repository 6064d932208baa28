"""Units with a hand-written backward: the numbers of their own modules, with less kept."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from d2nas.nn import units
from d2nas.nn.operations import (
    CifarStem,
    FactorizedReduce,
    ImageNetStem,
    NormalizedPool,
    ReLUConvBN,
    build_depthwise_unit,
    initialize,
)
from d2nas.nn.units import NormalizedUnit, keep_everything

EXACT = {"rtol": 1e-12, "atol": 1e-12}
IN, OUT = 6, 4

Build = Callable[[int, bool], nn.Module]
"""From the number of input channels, and whether batch norm is affine."""


def depthwise(kernel: int, dilation: int, stride: int) -> Build:
    return lambda channels, affine: build_depthwise_unit(
        channels, kernel=kernel, stride=stride, dilation=dilation, affine=affine
    )


UNITS: dict[str, Build] = {
    "1x1": lambda channels, affine: ReLUConvBN(channels, OUT, affine=affine),
    "factorized": lambda channels, affine: FactorizedReduce(channels, OUT, affine=affine),
    **{
        f"depthwise {kernel}, dilation {dilation}, stride {stride}": depthwise(
            kernel, dilation, stride
        )
        for kernel in (3, 5, 6)
        for dilation in (1, 2)
        for stride in (1, 2)
    },
}
NOT_AFFINE: dict[str, Build] = {
    f"{kind} {stride}": lambda channels, _, kind=kind, stride=stride: NormalizedPool(
        kind, channels, stride
    )
    for kind in ("max_pool_3x3", "avg_pool_3x3")
    for stride in (1, 2)
}
ALWAYS_AFFINE: dict[str, Build] = {
    "cifar stem": lambda channels, _: CifarStem(channels, OUT),
    "imagenet stem": lambda channels, _: ImageNetStem(channels, OUT),
}
CASES = [
    *((name, affine) for name in UNITS for affine in (False, True)),
    *((name, False) for name in NOT_AFFINE),
    *((name, True) for name in ALWAYS_AFFINE),
]
SIZES = [(8, 8), (7, 5), (1, 6), (3, 2)]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(name: str, affine: bool = False, channels: int = IN) -> nn.Module:
    """A unit in float64; scale and shift are not the 1 and 0 they start with."""
    module = (UNITS | NOT_AFFINE | ALWAYS_AFFINE)[name](channels, affine).double()
    initialize(module, torch.Generator().manual_seed(0))
    for seed, norm in enumerate(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        if norm.affine:
            with torch.no_grad():
                norm.weight.copy_(1 + 0.3 * randn(seed, len(norm.weight)))
                norm.bias.copy_(randn(seed + 1, len(norm.bias)))
    return module


def plain_twin(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    keep_everything(twin)
    return twin


def results(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, all gradients and all running statistics of one forward and backward."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = module(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((out * randn(7 + i, *out.shape)).sum() for i, out in enumerate(outputs))
    loss.backward()
    found = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    found["input"] = x.grad
    found |= {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, **EXACT, msg=lambda text, n=name: f"{n}{text}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "affine"), CASES)
def test_a_unit_gives_the_numbers_of_its_modules(
    name: str, affine: bool, size: tuple[int, int]
) -> None:
    unit = built(name, affine)
    plain = plain_twin(unit)
    x = randn(3, 5, IN, *size)
    wanted = results(plain, x)
    assert_same(results(unit, x), wanted)
    counts = {int(b) for key, b in unit.named_buffers() if key.endswith("num_batches_tracked")}
    assert counts == {1}
    moved = [key for key, _ in unit.named_parameters()]
    assert {"input", "output 0", *moved} <= wanted.keys()


@pytest.mark.parametrize("channels", [IN, 12])  # few, and more than batch norm's fast way takes
@pytest.mark.parametrize(("name", "affine"), CASES)
def test_the_memory_layout_changes_no_number_and_is_handed_on(
    name: str, affine: bool, channels: int
) -> None:
    unit = built(name, affine, channels)
    x = randn(3, 2, channels, 6, 6)
    wanted = results(plain_twin(unit), x)
    last = x.contiguous(memory_format=torch.channels_last)
    got = results(unit, last)
    assert got["output 0"].is_contiguous(memory_format=torch.channels_last)
    assert_same(got, wanted)


class BackwardLayouts(TorchDispatchMode):
    """Writes down the strides of the two maps that batch norm's backward is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.seen.append((args[0].stride(), args[1].stride()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_slice_of_a_gradient_is_laid_out_anew_for_batch_norm(
    layout: torch.memory_format,
) -> None:
    channels = 16  # not one of the widths that are summed by rows
    units = [built("depthwise 3, dilation 1, stride 1", channels=channels) for _ in range(2)]
    x = randn(0, 2, channels, 6, 6).contiguous(memory_format=layout).requires_grad_()
    state = torch.cat([unit(x) for unit in units], dim=1)
    with BackwardLayouts() as layouts:
        state.backward(torch.ones_like(state))
    assert len(layouts.seen) == 2
    assert all(grad == kept for grad, kept in layouts.seen)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    case=st.sampled_from(CASES),
    shape=st.tuples(st.integers(2, 4), st.integers(1, 9), st.integers(1, 9)),
    last=st.booleans(),
    zeros=st.booleans(),
)
def test_any_shape_and_exact_zeros_give_the_numbers_of_the_modules(
    case: tuple[str, bool], shape: tuple[int, int, int], last: bool, zeros: bool
) -> None:
    """Rounded inputs meet the kink of the ReLU and ties of the maximum."""
    unit = built(*case)
    batch, height, width = shape
    x = randn(batch + 10 * height + 100 * width, batch, IN, height, width)
    x = x.round() if zeros else x
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    wanted = results(plain_twin(unit), x)
    got = results(unit, x)
    assert got.keys() == wanted.keys()
    # Few values, some the same, can have a deviation near zero, by which all is divided.
    for key, value in wanted.items():
        scale = max(1.0, float(value.double().abs().max()))
        assert (got[key] - value).abs().max() <= 1e-9 * scale, key


@contextmanager
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, bool]]]:
    """Collect (input, weight) of every gradient of a convolution that a unit asks for."""
    wanted: list[tuple[bool, bool]] = []
    real = units.convolution_gradients

    def record(*arguments: Any, want_input: bool, want_weight: bool) -> Any:
        wanted.append((want_input, want_weight))
        return real(*arguments, want_input=want_input, want_weight=want_weight)

    with monkeypatch.context() as patch:
        patch.setattr(units, "convolution_gradients", record)
        yield wanted


@pytest.mark.parametrize(("name", "affine"), [case for case in CASES if "pool" not in case[0]])
def test_frozen_weights_cost_nothing_and_leave_the_input_its_gradient(
    name: str, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, x = built(name, affine), randn(3, 2, IN, 8, 8)
    wanted = results(unit, x)["input"]
    unit.zero_grad()
    unit.requires_grad_(False)
    with asked_for(monkeypatch) as asked:
        got = results(unit, x)
    torch.testing.assert_close(got["input"], wanted, **EXACT)
    assert asked
    assert set(asked) == {(True, False)}
    assert all(parameter.grad is None for parameter in unit.parameters())


@pytest.mark.parametrize(("name", "affine"), [case for case in CASES if "pool" not in case[0]])
def test_an_input_without_gradient_is_not_asked_for_one(
    name: str, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, x = built(name, affine), randn(3, 2, IN, 8, 8)
    wanted = results(plain_twin(unit), x)
    with asked_for(monkeypatch) as asked:
        outputs = unit(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((out * randn(7 + i, *out.shape)).sum() for i, out in enumerate(outputs)).backward()
    first = 2 if name == "factorized" else 1  # convolutions that read the unit's input
    assert asked[-first:] == [(False, True)] * first
    assert all(pair == (True, True) for pair in asked[:-first])
    for key, parameter in unit.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key], **EXACT)


@pytest.mark.parametrize("frozen", [{"weight"}, {"bias"}, {"weight", "bias"}])
def test_scale_and_shift_can_be_frozen_one_by_one(frozen: set[str]) -> None:
    unit = built("1x1", True)
    for key in frozen:
        getattr(unit.norm, key).requires_grad_(False)
    x = randn(3, 2, IN, 5, 5)
    wanted = results(plain_twin(unit), x)
    assert {"norm.weight", "norm.bias"} - wanted.keys() == {f"norm.{key}" for key in frozen}
    assert_same(results(unit, x), wanted)


def test_one_frozen_weight_of_two_is_left_alone() -> None:
    for name, key in (("factorized", "conv_even"), ("depthwise 5, dilation 1, stride 1", "convs")):
        unit = built(name)
        frozen = next(w for n, w in unit.named_parameters() if n.startswith(key))
        frozen.requires_grad_(False)
        x = randn(3, 2, IN, 8, 8)
        wanted = results(plain_twin(unit), x)
        assert_same(results(unit, x), wanted)
        assert frozen.grad is None


def test_nothing_to_differentiate_makes_no_graph() -> None:
    unit = built("1x1").requires_grad_(False)
    assert unit(randn(3, 2, IN, 4, 4)).grad_fn is None
    with torch.no_grad():
        assert built("1x1")(randn(3, 2, IN, 4, 4)).grad_fn is None


# --- types --------------------------------------------------------------------------------------


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("name", "affine"), CASES)
def test_bf16_features_leave_weights_gradients_and_statistics_in_fp32(
    name: str, affine: bool
) -> None:
    unit = built(name, affine).float()
    x = randn(3, 8, IN, 8, 8).bfloat16()
    wanted = results(plain_twin(unit).double(), x.double())
    got = results(unit, x)
    for key, value in got.items():
        if key.startswith("output") or key == "input":
            assert value.dtype == torch.bfloat16, key
        elif not key.endswith("tracked"):
            assert value.dtype == torch.float32, key
        if not key.endswith("tracked"):
            assert relative(value, wanted[key]) < 0.03, key


@pytest.mark.parametrize(("name", "affine"), CASES)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_gives_the_type_and_about_the_numbers_of_the_modules(
    name: str, affine: bool, given: torch.dtype
) -> None:
    unit = built(name, affine).to(torch.float64 if given == torch.float64 else torch.float32)
    x = randn(3, 8, IN, 8, 8).to(given)
    runs = []
    for module in (unit, plain_twin(unit)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            runs.append(results(module, x))
    got, wanted = runs
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got[key].dtype == value.dtype, key
        if not key.endswith("tracked"):
            assert relative(got[key], value) < 0.03, key


# --- when the modules run themselves ------------------------------------------------------------


def count_plain(unit: NormalizedUnit) -> list[int]:
    """Count the calls of the unit's own modules one by one."""
    calls: list[int] = []
    real = unit.plain

    def plain(x: Tensor) -> Tensor:
        calls.append(1)
        return real(x)

    unit.plain = plain  # type: ignore[method-assign]
    return calls


@pytest.mark.parametrize("name", ["1x1", "factorized", "depthwise 5, dilation 1, stride 1"])
def test_evaluation_runs_the_modules_on_running_statistics(name: str) -> None:
    unit = built(name)
    results(unit, randn(1, 4, IN, 6, 6))
    calls = count_plain(unit)
    unit(randn(2, 4, IN, 6, 6))
    assert calls == []  # control: training does not
    unit.eval()
    before = {key: buffer.clone() for key, buffer in unit.named_buffers()}
    x = randn(2, 4, IN, 6, 6)
    output = unit(x)
    assert calls == [1]
    assert all(torch.equal(before[key], buffer) for key, buffer in unit.named_buffers())
    alone = unit(x[:1])
    torch.testing.assert_close(alone, output[:1], **EXACT)


REGISTER = {
    "forward": "register_forward_hook",
    "before forward": "register_forward_pre_hook",
    "backward": "register_full_backward_hook",
    "before backward": "register_full_backward_pre_hook",
}


@pytest.mark.parametrize("inner", ["relu", "convs.0", "convs.1", "norm"])
@pytest.mark.parametrize("kind", REGISTER)
def test_a_hook_inside_is_called(kind: str, inner: str) -> None:
    unit = built("depthwise 3, dilation 1, stride 1")
    x = randn(2, 4, IN, 6, 6)
    wanted = results(copy.deepcopy(unit), x)
    called: list[str] = []
    handle = getattr(unit.get_submodule(inner), REGISTER[kind])(lambda *_: called.append(inner))
    assert_same(results(unit, x), wanted)
    assert called == [inner]
    handle.remove()
    calls = count_plain(unit)
    unit(x)
    assert calls == []
    assert called == [inner]

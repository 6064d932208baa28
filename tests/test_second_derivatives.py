"""Second derivatives and forward mode: right, or refused with the way to have them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from d2nas import SPACES, units
from d2nas.ops import build_candidate, initialize
from d2nas.units import keep_everything

OPERATIONS = [name for name in SPACES["S0"].candidates("normal")[0] if name != "skip_connect"]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(operation: str) -> nn.Module:
    module = build_candidate(operation, 4, 1).double()
    initialize(module, torch.Generator().manual_seed(0))
    return module


def linear(output: Tensor) -> Tensor:
    """A loss whose own gradient is a constant: nothing of the chain is left but the unit's."""
    return (output * randn(2, *output.shape)).sum()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": linear,
    "square": lambda output: output.square().sum(),
}


def twice(module: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The gradient, by the input, of the gradient by input and weights along a direction."""
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(loss(module(x)), wanted, create_graph=True)
    along = sum((g * randn(9 + i, *g.shape)).sum() for i, g in enumerate(first))
    assert isinstance(along, Tensor)
    if not along.requires_grad:
        return None
    return torch.autograd.grad(along, x, allow_unused=True)[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_second_derivative_of_a_unit_is_refused(operation: str, loss: str) -> None:
    module, x = built(operation), randn(1, 3, 4, 5, 5).requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivative.*\nhint: .*units\.keep_everything"):
        twice(module, x, LOSSES[loss])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_with_everything_kept_it_is_that_of_finite_differences(operation: str, loss: str) -> None:
    module, x = built(operation), randn(1, 3, 4, 5, 5).requires_grad_()
    keep_everything(module)
    got = twice(module, x, LOSSES[loss])
    assert got is not None
    along = randn(5, *x.shape)

    def first(at: Tensor) -> float:
        at = at.detach().requires_grad_()
        found = torch.autograd.grad(LOSSES[loss](module(at)), [at, *module.parameters()])
        return float(sum((g * randn(9 + i, *g.shape)).sum() for i, g in enumerate(found)))

    step = 1e-6
    numeric = (first(x + step * along) - first(x - step * along)) / (2 * step)
    assert float((got * along).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-6)
    assert abs(numeric) > 1e-3


def test_control_without_the_refusal_there_is_none_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units._FirstDerivative, "apply", lambda gradient, *_: gradient)
    for operation in OPERATIONS:
        assert twice(built(operation), randn(1, 3, 4, 5, 5).requires_grad_(), linear) is None


def test_a_graph_that_nobody_differentiates_is_no_error_and_the_same_gradient() -> None:
    module, x = built("sep_conv_3x3"), randn(1, 3, 4, 5, 5).requires_grad_()
    wanted = [x, *module.parameters()]
    once = torch.autograd.grad(linear(module(x)), wanted)
    for got, expected in zip(
        torch.autograd.grad(linear(module(x)), wanted, create_graph=True), once, strict=True
    ):
        assert torch.equal(got, expected)


def test_forward_mode_is_refused() -> None:
    module, x = built("sep_conv_3x3"), randn(1, 3, 4, 5, 5)
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match=r"forward-mode.*\nhint: .*keep_everything"):
            module(forward_ad.make_dual(x, x))
        keep_everything(module)  # control: PyTorch's own modules have it
        assert forward_ad.unpack_dual(module(forward_ad.make_dual(x, x))).tangent is not None


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda module, x: torch.func.grad(lambda y: module(y).sum())(x),
    "jvp": lambda module, x: torch.func.jvp(module, (x,), (x,)),
    "vmap": lambda module, x: torch.func.vmap(module)(x[None]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_functions_are_refused(transform: str) -> None:
    with pytest.raises(RuntimeError, match="functorch transforms"):
        TRANSFORMS[transform](built("sep_conv_3x3"), randn(1, 3, 4, 5, 5))

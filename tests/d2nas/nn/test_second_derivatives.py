"""Second derivatives and forward mode: right, or refused with the way to have them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from d2nas import SPACES
from d2nas.nn import sampling, units
from d2nas.nn.mixed_supernet import MixedSupernet
from d2nas.nn.operations import build_candidate, initialize
from d2nas.nn.recomputation import RECOMPUTE
from d2nas.nn.sampling import ArchLogits, CellDraw, sample, sample_operations
from d2nas.nn.supernet import Supernet, _GatedSum
from d2nas.nn.units import keep_everything
from d2nas.spaces import SearchSpace

OPERATIONS = [name for name in SPACES["S0"].candidates("normal")[0] if name != "skip_connect"]
SMOOTH = SearchSpace.from_dict({"name": "smooth", "normal": ["skip_connect", "dil_conv_3x3"]})
LABELS = torch.arange(4) % 3


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


# --- supernets ----------------------------------------------------------------------------------


def spread_logits() -> ArchLogits:
    logits = ArchLogits(SMOOTH).double()
    with torch.no_grad():
        for seed, parameter in enumerate(logits.parameters()):
            parameter.copy_(0.5 * randn(seed, *parameter.shape))
    return logits


class Sampled:
    """A supernet of one branch, its logits, and the loss as a function of both."""

    def __init__(self, recompute: str = "none", every_edge: bool = False) -> None:
        self.supernet = Supernet(
            SMOOTH, num_cells=2, init_channels=2, num_classes=3, branch_length=2,
            recompute=recompute,
        ).double()  # fmt: skip
        initialize(self.supernet, torch.Generator().manual_seed(1))
        self.logits, self.every_edge = spread_logits(), every_edge

    def loss(self) -> Tensor:
        numbers = torch.Generator().manual_seed(3)
        if self.every_edge:
            draw = sample_operations(self.logits, 2.0, numbers)
        else:
            draw = sample(self.logits, 2.0, numbers, edge_gate_scale=0.5)
        return F.cross_entropy(self.supernet(randn(2, 4, 3, 8, 8), draw), LABELS)


class Mixed:
    """DARTS's supernet, likewise."""

    def __init__(self, recompute: str = "none") -> None:
        self.supernet = MixedSupernet(
            SMOOTH, num_cells=2, init_channels=2, num_classes=3, recompute=recompute
        ).double()
        initialize(self.supernet, torch.Generator().manual_seed(1))
        self.logits = spread_logits()

    def loss(self) -> Tensor:
        return F.cross_entropy(self.supernet(randn(2, 4, 3, 8, 8), self.logits), LABELS)


CASES: dict[str, Callable[[str], Any]] = {
    "two edges per node": Sampled,
    "every edge": lambda recompute: Sampled(recompute, every_edge=True),
    "mixed": Mixed,
}


def parameters_of(case: Any) -> list[nn.Parameter]:
    return [*case.supernet.parameters(), *case.logits.parameters()]


def directions(case: Any) -> list[Tensor]:
    return [randn(20 + i, *p.shape) for i, p in enumerate(parameters_of(case))]


def product(case: Any) -> list[Tensor]:
    """The Hessian of the loss, by weights and logits together, times a direction."""
    wanted = parameters_of(case)
    first = torch.autograd.grad(case.loss(), wanted, create_graph=True, allow_unused=True)
    pairs = zip(first, directions(case), strict=True)
    along = sum((g * d).sum() for g, d in pairs if g is not None)
    assert isinstance(along, Tensor)
    found = torch.autograd.grad(along, wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


def differences(case: Any) -> list[Tensor]:
    """The same by central differences of first derivatives."""
    wanted, step, sides = parameters_of(case), 1e-5, []
    start = [p.detach().clone() for p in wanted]
    case.loss()  # the constants of the gates belong to the start
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for p, begin, direction in zip(wanted, start, directions(case), strict=True):
                p.copy_(begin + sign * step * direction)
        sides.append(torch.autograd.grad(case.loss(), wanted, allow_unused=True))
    with torch.no_grad():
        for p, begin in zip(wanted, start, strict=True):
            p.copy_(begin)
    return [
        torch.zeros_like(p) if plus is None else (plus - minus) / (2 * step)
        for p, plus, minus in zip(wanted, *sides, strict=True)
    ]


class Relaxed:
    """In place of the gates: what they stand for, whose values move with the logits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.constants: dict[int, tuple[Tensor, Tensor]] = {}
        monkeypatch.setattr(sampling._StraightThrough, "apply", self.gates)
        monkeypatch.setattr(CellDraw, "of_ones", CellDraw)

    def gates(
        self, ops: Tensor, edges: Tensor, soft: Tensor, _: Tensor, sampled: Any, temperature: float,
        factors: tuple[float, float], soften: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tensor:  # fmt: skip
        ops_EO, edges_E = soften()
        start = self.constants.setdefault(id(ops), (ops_EO.detach(), edges_E.detach()))
        rows, columns = sampled
        moved_ops, moved_edges = (ops_EO - start[0])[rows, columns], (edges_E - start[1])[rows]
        return (1 + factors[0] * moved_ops) * (1 + factors[1] * moved_edges)


def worst(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest number."""
    scale = max(float(w.abs().max()) for w in wanted)
    return max(float((g - w).abs().max()) for g, w in zip(got, wanted, strict=True)) / scale


@pytest.mark.parametrize("name", CASES)
def test_a_supernets_hessian_is_refused_or_that_of_finite_differences(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {recompute: CASES[name](recompute) for recompute in RECOMPUTE}
    for case in cases.values():
        with pytest.raises(RuntimeError, match=r"\nhint: .*units\.keep_everything"):
            product(case)
        keep_everything(case.supernet)
    got = {recompute: product(case) for recompute, case in cases.items()}
    with monkeypatch.context() as patch:
        Relaxed(patch)
        wanted = differences(cases["none"])
    offset = len(list(cases["none"].supernet.parameters()))
    for part in (wanted[:offset], wanted[offset:]):
        assert max(float(product.abs().max()) for product in part) > 1e-3
    for recompute in RECOMPUTE:
        assert worst(got[recompute][:offset], wanted[:offset]) < 1e-5, recompute
        assert worst(got[recompute][offset:], wanted[offset:]) < 1e-5, recompute


@pytest.mark.parametrize("function", [sampling._StraightThrough, _GatedSum])
def test_control_a_function_differentiated_once_gives_another_hessian(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Sampled()
    keep_everything(case.supernet)
    wanted = product(case)
    real = function.backward

    def constant(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            return real(ctx, *gradients)

    monkeypatch.setattr(function, "backward", staticmethod(constant))
    assert worst(product(case), wanted) > 1e-3


def test_gates_of_logits_that_have_changed_are_not_differentiated_twice() -> None:
    logits = spread_logits()
    gates = sample(logits, 1.0, torch.Generator().manual_seed(0)).normal.gates
    assert gates is not None
    with torch.no_grad():
        logits.normal_ops.mul_(2.0)
    torch.autograd.grad(gates.sum(), logits.normal_ops, retain_graph=True)  # control: once
    with pytest.raises(RuntimeError, match="changed since the draw"):
        torch.autograd.grad(gates.sum(), logits.normal_ops, create_graph=True)

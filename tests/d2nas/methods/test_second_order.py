"""DARTS of second order against Eq. 7 and 8 computed another way, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from d2nas.methods import darts
from d2nas.methods.base import Batch, Sizes, StepContext
from d2nas.methods.darts import Darts, DartsSecondOrder
from d2nas.nn.operations import initialize, noises_in, set_noise_generator
from d2nas.nn.units import keep_everything
from d2nas.spaces import SearchSpace
from d2nas.train.loop import sgd

SIZES = Sizes(num_cells=3, init_channels=2, num_classes=4, in_channels=3, stem="cifar")
PLAIN = SearchSpace.from_dict(
    {"name": "plain", "normal": ["none", "skip_connect", "avg_pool_3x3", "dil_conv_3x3"]}
)
NOISY = SearchSpace.from_dict({"name": "noisy", "normal": ["noise", "dil_conv_3x3"]})
LR, MOMENTUM, DECAY = 0.1, 0.9, 3e-4


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(seed: int) -> Batch:
    return Batch(randn(seed, 8, 3, 8, 8), torch.arange(8) % 4)


TRAINING, VALIDATION = batch_of(1), batch_of(2)


class Forgetful(torch.Generator):
    """Never goes back."""

    def set_state(self, new_state: Tensor) -> torch.Generator:
        return self


def noise(kind: type[torch.Generator] = torch.Generator) -> torch.Generator:
    return kind().manual_seed(7)


class Case:
    """A method in the middle of a search: spread logits, momentum from earlier steps."""

    def __init__(self, space: SearchSpace, kind: type[Darts] = DartsSecondOrder) -> None:
        numbers = torch.Generator().manual_seed(0)
        self.method = kind(space, SIZES, numbers, recompute="none")
        initialize(self.method.supernet, numbers)
        self.method.supernet.double().train()
        self.method.logits.double()
        with torch.no_grad():
            for seed, parameter in enumerate(self.method.logits.parameters()):
                parameter.copy_(0.5 * randn(seed, *parameter.shape))
        self.optimizer = sgd(self.method.supernet, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        for seed, parameter in enumerate(self.method.supernet.parameters()):
            moment = 0.02 * randn(100 + seed, *parameter.shape)
            self.optimizer.state[parameter]["momentum_buffer"].copy_(moment)

    def gradients(self, numbers: type[torch.Generator] = torch.Generator) -> dict[str, Tensor]:
        """What the method leaves in the logits."""
        context = StepContext(
            temperature=1.0,
            draws=lambda _: noise(numbers),
            weight_batch=lambda: TRAINING,
            weight_lr=LR,
            weight_optimizer=self.optimizer,
        )
        self.method.architecture_gradients(VALIDATION, context)
        named = self.method.logits.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}


class Direct:
    """The same equations with weights as plain values, by PyTorch's own differentiable modules."""

    def __init__(self, case: Case) -> None:
        self.case = case
        supernet = case.method.supernet
        keep_everything(supernet)
        self.weights = {n: p.detach().clone() for n, p in supernet.named_parameters()}
        self.velocity = {
            n: case.optimizer.state[p]["momentum_buffer"].clone()
            for n, p in supernet.named_parameters()
        }
        self.logits = list(case.method.logits.parameters())[:2]  # DARTS has no edge logits

    def loss(self, weights: dict[str, Tensor], batch: Batch, numbers: torch.Generator) -> Tensor:
        supernet = self.case.method.supernet
        set_noise_generator(noises_in(supernet), numbers)
        prediction = functional_call(supernet, weights, (batch.images, self.case.method.logits))
        return nn.functional.cross_entropy(prediction, batch.labels)

    def ahead(self, *, differentiable: bool) -> tuple[dict[str, Tensor], torch.Generator]:
        """The weights after a step with momentum and decay, and the noise where it then stands."""
        weights = {n: w.clone().requires_grad_() for n, w in self.weights.items()}
        numbers = noise()
        loss = self.loss(weights, TRAINING, numbers)
        found = torch.autograd.grad(
            loss, list(weights.values()), create_graph=differentiable, allow_unused=True
        )
        moved = {}
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            if gradient is None:
                moved[name] = weight
                continue
            step = gradient + DECAY * self.weights[name] + MOMENTUM * self.velocity[name]
            moved[name] = self.weights[name] - LR * step
        return moved, numbers

    def exact(self) -> list[Tensor]:
        """Eq. 7, differentiated through the look-ahead step by autograd."""
        weights, numbers = self.ahead(differentiable=True)
        return list(torch.autograd.grad(self.loss(weights, VALIDATION, numbers), self.logits))

    def finite_difference(self, scale: float) -> list[Tensor]:
        """Eq. 8: the second derivative as a difference along the validation gradient."""
        weights, numbers = self.ahead(differentiable=False)
        weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
        loss = self.loss(weights, VALIDATION, numbers)
        found = torch.autograd.grad(
            loss, [*self.logits, *weights.values()], allow_unused=True, materialize_grads=True
        )
        along = dict(zip(weights, found[2:], strict=True))
        length = torch.cat([part.flatten() for part in along.values()]).norm()
        ends = []
        for sign in (1, -1):
            step = sign * scale / length
            moved = {n: w + step * along[n] for n, w in self.weights.items()}
            ends.append(torch.autograd.grad(self.loss(moved, TRAINING, noise()), self.logits))
        return [
            first - LR * (plus - minus) / (2 * scale / length)
            for first, plus, minus in zip(found[:2], *ends, strict=True)
        ]


def distance(got: dict[str, Tensor], wanted: list[Tensor]) -> float:
    assert list(got) == ["normal_ops", "reduce_ops"]
    return max(float((g - w).abs().max()) for g, w in zip(got.values(), wanted, strict=True))


@pytest.mark.parametrize("space", [PLAIN, NOISY], ids=["plain", "noisy"])
@pytest.mark.parametrize("scale", [darts.FINITE_DIFFERENCE, 0.1])
def test_the_gradient_is_equation_8(
    space: SearchSpace, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(darts, "FINITE_DIFFERENCE", scale)
    got = Case(space).gradients()
    wanted = Direct(Case(space)).finite_difference(scale)
    assert min(float(value.abs().max()) for value in got.values()) > 1e-3
    assert distance(got, wanted) <= 1e-10


@pytest.mark.parametrize("space", [PLAIN, NOISY], ids=["plain", "noisy"])
def test_with_a_small_step_it_becomes_equation_7(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact gradient, and controls: first order, and no momentum, are far from it.

    Small enough that no ReLU switches between the two ends of the difference.
    """
    exact = Direct(Case(space)).exact()
    monkeypatch.setattr(darts, "FINITE_DIFFERENCE", 1e-6)
    assert distance(Case(space).gradients(), exact) <= 1e-7
    assert distance(Case(space, Darts).gradients(), exact) > 1e-4
    still = Case(space)
    for state in still.optimizer.state.values():
        state["momentum_buffer"].zero_()
    assert distance(still.gradients(), exact) > 1e-4


def test_control_other_noise_at_the_ends_of_the_difference_is_seen() -> None:
    wanted = Direct(Case(NOISY)).finite_difference(darts.FINITE_DIFFERENCE)
    assert distance(Case(NOISY).gradients(), wanted) <= 1e-10
    assert distance(Case(NOISY).gradients(Forgetful), wanted) > 0.1


def test_weights_moments_and_gradients_are_as_before() -> None:
    case = Case(PLAIN)
    weights = {n: p.detach().clone() for n, p in case.method.supernet.named_parameters()}
    moments = [s["momentum_buffer"].clone() for s in case.optimizer.state.values()]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in case.optimizer.param_groups]
    case.gradients()
    for name, parameter in case.method.supernet.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None
        assert parameter.requires_grad
    after: list[Any] = [s["momentum_buffer"] for s in case.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))
    assert groups == [
        {k: v for k, v in g.items() if k != "params"} for g in case.optimizer.param_groups
    ]

"""RMSprop of the supernet's weights: what it computes, keeps and leaves alone."""

import pytest
import torch
from searches import CHEAP, continued, finish, run_with_states, same_end, search_by
from torch import nn

from d2nas.train.loop import sgd, step_if_finite
from d2nas.train.rmsprop import SQUARES_KEPT, RmsProp

RMSPROP = "search.weight_optimizer=rmsprop"


def linear() -> nn.Linear:
    module = nn.Linear(3, 2).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return module


def give_gradients(module: nn.Module, step: int, *, bias: bool = True) -> None:
    numbers = torch.Generator().manual_seed(step)
    for name, parameter in module.named_parameters():
        gradient = torch.randn(parameter.shape, generator=numbers, dtype=parameter.dtype)
        parameter.grad = gradient if bias or name != "bias" else None


def test_it_is_adam_whose_first_beta_is_zero() -> None:
    one, other = linear(), linear()
    ours = RmsProp(one, lr=0.1, weight_decay=0.01)
    adam = torch.optim.Adam(
        other.parameters(), lr=0.1, betas=(0.0, SQUARES_KEPT), weight_decay=0.01
    )
    for step in range(20):
        for module in (one, other):
            give_gradients(module, step, bias=step % 3 == 0)  # what is not sampled stays
        ours.step()
        adam.step()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["rmsprop", "sgd"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(kind: str, bad: float) -> None:
    module = linear()
    optimizer: torch.optim.Optimizer = (
        RmsProp(module, lr=0.1, weight_decay=0.01)
        if kind == "rmsprop"
        else sgd(module, lr=0.1, momentum=0.9, weight_decay=0.01)
    )
    give_gradients(module, 0)
    step_if_finite(optimizer, torch.tensor(True))

    def everything() -> list[torch.Tensor]:
        moments = [value for of_one in optimizer.state.values() for value in of_one.values()]
        return [value.clone() for value in (*module.parameters(), *moments)]

    before = everything()
    give_gradients(module, 1)
    module.weight.grad.fill_(bad)  # type: ignore[union-attr]
    step_if_finite(optimizer, torch.tensor(False))
    assert all(torch.equal(*pair) for pair in zip(before, everything(), strict=True))
    give_gradients(module, 1)  # control
    step_if_finite(optimizer, torch.tensor(True))
    assert not all(torch.equal(*pair) for pair in zip(before, everything(), strict=True))


def test_its_step_does_not_depend_on_how_many_gradients_are_summed() -> None:
    moved = []
    for factor in (1.0, 100.0):
        module = linear()
        optimizer = RmsProp(module, lr=0.1, weight_decay=0.0)
        give_gradients(module, 0)
        for parameter in module.parameters():
            parameter.grad *= factor
        optimizer.step()
        moved.append([parameter.detach().clone() for parameter in module.parameters()])
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["d2nas", "darts", "gdas"])
def test_a_resumed_search_is_bit_equal(method: str) -> None:
    whole = search_by(method, RMSPROP, space=CHEAP)
    states = run_with_states(whole)
    assert same_end(whole, continued(search_by(method, RMSPROP, space=CHEAP), states[2]))
    other = finish(search_by(method, space=CHEAP))  # control: SGD goes elsewhere
    assert not torch.equal(next(whole.supernet.parameters()), next(other.supernet.parameters()))


def test_it_keeps_as_much_as_sgd() -> None:
    def elements(*settings: str) -> int:
        optimizer = search_by("d2nas", *settings).weight_optimizer
        moments = [value for of_one in optimizer.state.values() for value in of_one.values()]
        return sum(value.numel() for value in moments if value.dim())

    assert elements(RMSPROP) == elements()


def test_a_step_looked_ahead_is_one_of_sgd() -> None:
    search = search_by("darts-second-order", RMSPROP)
    assert isinstance(search.weight_optimizer, torch.optim.SGD)
    assert search.config.weight_lr == 0.025
    assert "weight_optimizer" in search.method.unread
    assert isinstance(search_by("darts", RMSPROP).weight_optimizer, RmsProp)  # control


def test_a_rate_of_sgd_is_refused() -> None:
    with pytest.raises(Exception, match=r"search.weight_lr \(0.1\) of rmsprop must be at most"):
        search_by("d2nas", RMSPROP, "search.weight_lr=0.1")
    assert search_by("d2nas", "search.weight_lr=0.1").config.weight_lr == 0.1  # control


def test_the_learning_rate_is_the_optimizers() -> None:
    assert search_by("d2nas").config.weight_lr == 0.05
    assert search_by("d2nas", RMSPROP).config.weight_lr == 0.015
    assert search_by("d2nas", RMSPROP, "search.weight_lr=0.03").config.weight_lr == 0.03

"""The networks, batches and logits of ``data/rivals.json``, and distances from its numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from reference import fill, uniform
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from d2nas import SPACES
from d2nas.methods import r_darts, zarts
from d2nas.methods.base import Batch, Method, Sizes, StepContext
from d2nas.methods.darts_pt import DartsPt
from d2nas.nn.sampling import ArchLogits
from d2nas.spaces import CELL_TYPES, SearchSpace

SIZES = Sizes(num_cells=5, init_channels=4, num_classes=10, in_channels=3, stem="cifar")
TOLERANCE = 1e-9
ALPHA_SALTS = (20, 21)

MethodKind = TypeVar("MethodKind", bound=Method)


@cache
def rivals() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "data" / "rivals.json").read_text()
    return json.loads(text)


def space_of(name: str, *, with_none: bool) -> SearchSpace:
    """The space that a case calls so: s5 is S0."""
    if name != "s5":
        return SPACES[name.upper()]
    return SPACES["S0"].with_none() if with_none else SPACES["S0"]


def random_values(salt: int, size: float, shape: Sequence[int]) -> Tensor:
    return torch.tensor(np.random.RandomState(salt).uniform(-size, size, tuple(shape)))


def batch_of(half: str) -> Batch:
    """The architecture's or the weights' batch."""
    salt, first = (8, 0) if half == "architecture" else (9, 4)
    pixels = (uniform((4, 3, 16, 16), salt) - 0.5) * 12**0.5
    return Batch(pixels, (torch.arange(4) + first) % 10)


def built(
    kind: Callable[..., MethodKind],
    space: SearchSpace,
    salts: Sequence[int] = ALPHA_SALTS,
    sizes: Sizes = SIZES,
) -> MethodKind:
    """The method with the cases' weights and logits, in float64."""
    method = kind(space, sizes, torch.Generator(), recompute="none")
    fill(method.supernet).train()
    method.logits.double()
    with torch.no_grad():
        for cell, salt in zip(CELL_TYPES, salts, strict=True):
            logits = method.logits.ops(cell)
            logits.copy_(random_values(salt, 1.0, logits.shape))
    return method


def context_of(epoch: int, epochs: int) -> StepContext:
    return StepContext(
        temperature=1.0,
        draws=lambda index: torch.Generator().manual_seed(index),
        weight_batch=lambda later=0: batch_of("weights"),
        weight_lr=0.025,
        weight_optimizer=torch.optim.SGD([torch.zeros(1)]),
        epoch=epoch,
        epochs=epochs,
    )


def distance(tensor: Tensor, case: Mapping[str, Any]) -> float:
    """How far a tensor is from a case's norm, weighed sum and first row."""
    tensor = tensor.detach().double()
    weighed = float((tensor * (uniform(tensor.shape, 77) - 0.5)).sum())
    row = torch.tensor(case["first_row"], dtype=torch.float64)
    return max(
        abs(float(tensor.norm()) / case["l2"] - 1),
        abs(weighed - case["probe"]),
        float((tensor[0] - row).abs().max()),
    )


def logit_distances(method: Method, cases: Sequence[Mapping[str, Any]]) -> list[float]:
    """How far the gradients of both cells' operation logits are from the cases'."""
    found = []
    for cell, case in zip(CELL_TYPES, cases, strict=True):
        gradient = method.logits.ops(cell).grad
        assert gradient is not None
        found.append(distance(gradient, case))
    return found


def outer_product(_supernet: nn.Module, logits: ArchLogits, loss: Callable[[], Tensor]) -> Tensor:
    """In place of a Hessian, each of whose rows is a backward pass, the gradient times itself: it
    depends on the same tensors.
    """
    gradients = torch.autograd.grad(loss(), [logits.ops(cell) for cell in CELL_TYPES])
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return torch.outer(flat, flat).double()


def make_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long and is looked at in the rivals' own tests: a Hessian, copies and
    their tuning, the effect of every removal.
    """
    monkeypatch.setattr(r_darts, "operation_hessian", outer_product)
    monkeypatch.setattr(zarts, "SAMPLES", 2)
    monkeypatch.setattr(zarts, "TUNING_STEPS", 1)
    monkeypatch.setattr(DartsPt, "_accuracies", lambda self, mixtures, end: [0] * len(mixtures))


def weight_norm(method: Method) -> float:
    """The norm of all gradients of the weights."""
    return float(get_total_norm([p.grad for p in method.weights if p.grad is not None]))

"""Curvature of the loss in the operation logits: its Hessian, and the largest eigenvalue of it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..nn.sampling import ArchLogits
from ..nn.units import everything_kept
from ..spaces import CELL_TYPES


def num_operation_logits(logits: ArchLogits) -> int:
    """Return how many operation logits belong to a candidate, ``none`` too, in both cells."""
    return sum(int(logits.choosable(cell, none_too=True).sum()) for cell in CELL_TYPES)


def operation_hessian(
    supernet: nn.Module, logits: ArchLogits, loss: Callable[[], Tensor]
) -> Tensor:
    """Return the Hessian of ``loss()`` in the operation logits, (n, n) float64 on the CPU.

    Their order: the normal cell's edge by edge, then the reduction cell's, columns past an edge's
    last candidate left out. Exact; see ``hessian_rows``.
    """
    return torch.stack([*hessian_rows(supernet, logits, loss)]).to("cpu", torch.float64)


def hessian_rows(
    supernet: nn.Module, logits: ArchLogits, loss: Callable[[], Tensor]
) -> Iterator[Tensor]:
    """Yield the rows (n,) of the Hessian, one backward pass each through the gradient's graph,
    which holds every map of ``supernet`` and of its backward. No gradient is left in any parameter.
    """
    parameters = [logits.ops(cell) for cell in CELL_TYPES]

    def flat(gradients: tuple[Tensor | None, ...]) -> Tensor:
        found = []
        for cell, parameter, gradient in zip(CELL_TYPES, parameters, gradients, strict=True):
            own_EO = torch.zeros_like(parameter) if gradient is None else gradient
            candidates = logits.space.candidates(cell)
            found += [row[: len(names)] for row, names in zip(own_EO, candidates, strict=True)]
        return torch.cat(found)

    with everything_kept(supernet):
        first = flat(torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True))
        for one in first.unbind():
            # A cell type that the network does not have gives a constant.
            yield (
                flat(torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True))
                if one.requires_grad
                else torch.zeros_like(first)
            )


def largest_eigenvalue(hessian: Tensor) -> float:
    """Return the largest eigenvalue, by value and not by size, of a symmetric matrix.

    What rounding leaves of asymmetry is taken out first. Raises ``NonFiniteError``.
    """
    if not torch.isfinite(hessian).all():
        raise NonFiniteError("the Hessian of the validation loss is not finite")
    return float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])

"""Computing a block again in the backward pass, in place of keeping what its forward made.

The second forward is the first one to the bit: the same noise, and batch norm statistics that do
not count the batch twice.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .operations import Noise

RECOMPUTE = ("none", "cell", "op")
"""What a supernet computes again: nothing, whole cells, or one operation (or edge) at a time."""


@contextlib.contextmanager
def _frozen_statistics(
    norms: Sequence[nn.BatchNorm2d], noise_states: dict[Noise, Tensor]
) -> Iterator[None]:
    """Compute again without counting the batch twice and with the noise of the first time."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    later = {noise: _generator(noise).get_state() for noise in noise_states}
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    for noise, state in noise_states.items():
        _generator(noise).set_state(state)
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
        for noise, state in later.items():
            _generator(noise).set_state(state)


class _Recomputation:
    """``_frozen_statistics``, to be entered at each backward: second derivatives take several."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments, self._entered = arguments, contextlib.ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(_frozen_statistics(*self._arguments))

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)


def _generator(noise: Noise) -> torch.Generator:
    assert noise.generator is not None  # callers hold only those with one
    return noise.generator


def recomputed(
    module: Callable[..., Any], *inputs: Any, parts: Iterable[nn.Module] | None = None
) -> Any:
    """Run ``module``, keep only its inputs, and run it again in the backward pass.

    ``parts``: the modules that will run, where that is known; a supernet's cell need not look at
    the candidates that were not sampled, and a function has no modules of its own. Gradients,
    outputs and batch norm statistics are those of ``module(*inputs)``. Noise without a generator of
    its own is outside this promise: it would be drawn anew.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    if parts is None:
        parts = (module,) if isinstance(module, nn.Module) else ()
    running = [child for part in parts for child in part.modules()]
    norms = [child for child in running if isinstance(child, nn.BatchNorm2d)]
    noise_states = {
        child: child.generator.get_state()
        for child in running
        if isinstance(child, Noise) and child.generator is not None
    }
    return checkpoint(
        module,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (
            contextlib.nullcontext(),
            _Recomputation(norms, noise_states),
        ),
    )

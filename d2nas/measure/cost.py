"""Cost of a module: parameters, multiply-adds, and the peak memory of a step."""

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError

ALLOCATION_BLOCK = 512
"""Bytes; CUDA's caching allocator rounds every allocation up to a multiple of it."""

MACS_CONVENTION = "multiply-adds of convolutions and linears for one image"


@dataclass(frozen=True, slots=True)
class Cost:
    """Trainable elements, and multiply-adds of convolutions and linears for one image.

    Batch norm, pooling, activations, additions and biases count nothing.
    """

    params: int
    macs: int


def count_cost(module: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Count a module's parameters and the multiply-adds of its evaluation forward.

    ``input_shape`` is (C, H, W), or (N, C, H, W), of which N is not used: the count is for one
    image, which the module computes once. It is left as it was.
    Raises ``ConfigError`` for another shape.
    """
    if len(input_shape) not in (3, 4):
        raise ConfigError(f"input shape {tuple(input_shape)} is not (C, H, W)")
    like = next(module.parameters(), torch.empty(0))
    image = torch.zeros((1, *input_shape[-3:]), dtype=like.dtype, device=like.device)
    trains = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            module(image)
    finally:
        for part, was in trains.items():
            part.training = was
    # PyTorch counts a multiply-add as two operations, convolutions and matrix products alone.
    macs = counted.get_total_flops() // 2
    return Cost(sum(parameter.numel() for parameter in module.parameters()), macs)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all live tensors made (or listed as ``alive``) while it is active.

    Each storage counts once, in blocks of 512 bytes, until it is collected. Works on real tensors
    of any device, and where nothing is computed: in ``AllocateOnly`` or PyTorch's
    ``FakeTensorMode`` (enter that one first).
    """

    def __init__(self, alive: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in alive:
            self._add(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // ALLOCATION_BLOCK) * ALLOCATION_BLOCK

        def collected(_reference: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, collected)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_memory(step: Callable[[], Any], *, alive: Iterable[Tensor] = ()) -> int:
    """Return the peak of live tensor bytes while ``step()`` runs.

    Tensors made before the call (weights, optimizer state, the batch) count if they are listed in
    ``alive``. Also works under fake tensors. This is what the tensors need, not what a process
    reserves: allocator caches and workspaces are not in it.
    """
    gc.collect()
    with LiveBytes(alive) as live:
        step()
    return int(live.peak)

"""Runs operations without computing them: what they would allocate is allocated and left as it is.

To know what a step's tensors take, their values are not needed. PyTorch's fake tensors know the
shape of every result, but each of them is made in Python, and answers there at each look at its
device. Here they are asked once for each operation and shape of its inputs; the results are
ordinary CPU tensors, all over one stretch of addresses that nobody touches.
"""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

_Results = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
"""From an operation's arguments to what it returns, nothing computed."""


_FIRST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tensor: ``count`` elements from its first to its last in memory."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    count: int


class AllocateOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, operations on CPU tensors allocate their results and compute nothing.

    Views are views, and what is written in place is returned as it was. An operation that asks a
    tensor for a number (``item``, ``equal``) raises PyTorch's ``DataDependentOutputException``,
    one whose result's shape depends on values (a mask as an index) ``DynamicOutputShapeException``:
    there are none. With ``zeros`` ``item`` is told 0 (False): for code in which no number decides
    what is allocated. Nothing may be computed with the results afterwards: they share their memory.
    """

    def __init__(self, *, zeros: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._zeros = zeros
        self._fake = FakeTensorMode()
        self._known: dict[Any, _Results] = {}
        self._stretch = mmap.mmap(-1, _FIRST_BYTES)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return what ``func`` returns, unwritten."""
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # marks, whose arguments cannot be compared
            return func(*args, **kwargs)
        if self._zeros and func is torch.ops.aten._local_scalar_dense.default:
            return torch.zeros((), dtype=args[0].dtype).item()
        key = (func, _described(args), _described(tuple(kwargs.items())))
        results = self._known.get(key)
        if results is None:
            results = self._known[key] = self._results_of(func, args, kwargs)
        return results(args, kwargs)

    def _results_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Results:
        returns = func._schema.returns
        written = [part.alias_info is not None and part.alias_info.is_write for part in returns]
        is_view = any(part.alias_info is not None for part in returns) and not any(written)
        if is_view or torch.Tag.inplace_view in func.tags:
            return lambda args, kwargs: func(*args, **kwargs)
        if all(written):
            return _returns_written(func)
        assert not any(written), f"{func} both writes and allocates what it returns"
        with self._fake:
            fake_args, fake_kwargs = tree_map(_fake_like, (args, kwargs))
            result = func(*fake_args, **fake_kwargs)
        leaves, structure = tree_flatten(result)
        given = {
            _storage(leaf) for leaf in tree_leaves((fake_args, fake_kwargs)) if _is_tensor(leaf)
        }
        if any(_is_tensor(leaf) and _storage(leaf) in given for leaf in leaves):
            # A view that its schema does not call one.
            return lambda args, kwargs: func(*args, **kwargs)
        wanted = [_wanted_like(leaf) if _is_tensor(leaf) else leaf for leaf in leaves]
        return lambda _args, _kwargs: tree_unflatten(map(self._allocated, wanted), structure)

    def _allocated(self, wanted: Any) -> Any:
        """Return a tensor with a storage of its own, though not with memory of its own."""
        if not isinstance(wanted, _Wanted):
            return wanted
        if wanted.count == 0:
            return torch.empty_strided(wanted.size, wanted.stride, dtype=wanted.dtype)
        needed = wanted.count * wanted.dtype.itemsize
        if needed > len(self._stretch):
            # What lies over the old one keeps it.
            self._stretch = mmap.mmap(-1, 2 * needed)
        flat = torch.frombuffer(self._stretch, dtype=wanted.dtype, count=wanted.count)
        return flat.as_strided(wanted.size, wanted.stride)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _wanted_like(tensor: Tensor) -> _Wanted:
    count = tensor.untyped_storage().nbytes() // tensor.itemsize
    return _Wanted(tensor.size(), tensor.stride(), tensor.dtype, count)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _described(value: Any) -> Any:
    """Return what the shapes of results can depend on, hashable."""
    if isinstance(value, Tensor):
        return (value.size(), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return (type(value), value)  # 1 and 1.0 are equal, and lead to different types


def _fake_like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)


def _returns_written(func: Any) -> _Results:
    """Return the arguments that ``func`` returns once it has written them."""
    arguments = func._schema.arguments
    found: list[tuple[int, str]] = []
    for part in func._schema.returns:
        (index,) = (
            index
            for index, argument in enumerate(arguments)
            if argument.alias_info is not None
            and argument.alias_info.before_set == part.alias_info.before_set
        )
        found.append((index, arguments[index].name))

    def results(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        values = [args[index] if index < len(args) else kwargs[name] for index, name in found]
        return values[0] if len(values) == 1 else tuple(values) or None

    return results

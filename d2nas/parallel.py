"""Several processes that train one network: each takes an equal part of every batch.

All ranks draw the same architectures and the same random numbers for the whole batch; gradients
and what is reported are means over the ranks. Batch norm sees each rank's part alone, and rank 0's
running statistics are the result, as in PyTorch's DistributedDataParallel.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .errors import ConfigError, LostRankError

TIMEOUT = datetime.timedelta(minutes=30)
"""How long one rank waits for the others; a rank whose process ended is noticed at once."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together. One alone needs no other."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number among the processes of the same machine: which of its GPUs is this one's."""

    def part(self, num_images: int) -> slice:
        """Return which images of a whole batch are this rank's.

        Raises ``ConfigError`` where they cannot be shared equally.
        """
        if num_images % self.size:
            raise ConfigError(
                f"{num_images} images of a batch cannot be shared equally by {self.size} processes",
                hint="choose a batch_size that is a multiple of the number of processes",
            )
        share = num_images // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's own device of the kind of ``device``."""
        if self.size == 1 or device.type != "cuda":
            return device
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the ranks, the same on all. Raises ``LostRankError``."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        with _lost_ranks():
            distributed.all_reduce(total)
        return total / self.size

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients, of the same parameters on all ranks, by their means.

        One message for each type and device. Raises ``LostRankError``.
        """
        if self.size == 1:
            return
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                groups.setdefault((parameter.dtype, parameter.device), []).append(parameter.grad)
        for gradients in groups.values():
            means = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(means, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what is called in training: with other ranks, PyTorch's data parallelism, which
        sends gradients while others are still computed.
        """
        if self.size == 1:
            return network
        with _lost_ranks():
            return nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)

    def largest(self, *numbers: int) -> list[int]:
        """Return each number's largest value among the ranks. Waits for them, not for a device."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers)
        with _lost_ranks():
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return [int(value) for value in values]

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value (JSON) on every rank; the others' is not looked at."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor(len(content))
        with _lost_ranks():
            distributed.broadcast(length, src=0)
            message = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0:
                message.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            distributed.broadcast(message, src=0)
        return json.loads(message.numpy().tobytes())


ALONE = Ranks()


def environment_ranks() -> Ranks:
    """Return the place that torchrun, or d2nas's own launcher, gave this process.

    Raises ``ConfigError`` for variables that make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "WORLD_SIZE" not in given:
        return ALONE
    try:
        rank, size, local = (int(given[name]) for name in names)
    except (KeyError, ValueError):
        raise ConfigError(
            f"the variables {', '.join(names)} must be numbers, all or none", hint="use torchrun"
        ) from None
    return Ranks(rank, size, local)


@contextlib.contextmanager
def connected(ranks: Ranks) -> Iterator[None]:
    """Connect the ranks for the time of the ``with``: gloo for the host, NCCL for GPUs."""
    if ranks.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _lost_ranks():
        distributed.init_process_group(
            backend, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT
        )
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


@contextlib.contextmanager
def lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Turn what a step's communication raises when another rank is gone into ``LostRankError``."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "Connection closed", "Connection reset", "ProcessGroup")
        if ranks.size == 1 or not any(word in str(error) for word in words):
            raise
        raise _lost(error) from error


@contextlib.contextmanager
def _lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what every backend raises, with texts of its own
        raise _lost(error) from error


def _lost(error: Exception) -> LostRankError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return LostRankError(
        f"another process of this training is gone: {reason[0][:200]}",
        hint="the same command continues from the last checkpoint",
    )

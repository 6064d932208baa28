"""Several processes that train one network: each takes an equal part of every batch.

All ranks draw the same architectures and the same random numbers for the whole batch; gradients
and what is reported are means over the ranks. Batch norm sees each rank's part alone, and rank 0's
running statistics are the result, as in PyTorch's DistributedDataParallel.
"""

import contextlib
import datetime
import json
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .compiler import load_compiler
from .errors import ConfigError, LostRankError
from .torchrun import after_a_loss, is_torchrun

TIMEOUT = datetime.timedelta(minutes=30)
"""How long one rank waits for the others; a rank whose process ended is noticed at once."""
PATIENCE = datetime.timedelta(days=7)
"""How long the ranks wait for what rank 0 decides: it may download a data set meanwhile."""

_decisions: distributed.ProcessGroup | None = None
"""The connection for ``Ranks.from_first``, with a patience of its own; PyTorch's are global too."""

_SOURCE_PLACE = re.compile(r"\[[^\]\s]*\.\w+:\d+\] ?")
"""As gloo begins its messages: ``[/where/it/was/built/pair.cc:538]``."""

_MEET = "MASTER_ADDR and MASTER_PORT must name a free port of the first machine; torchrun sets them"


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
        """Return this rank's own device of the kind of ``device``.

        Raises ``ConfigError`` where this machine has no GPU for it.
        """
        if self.size == 1 or device.type != "cuda":
            return device
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise ConfigError(
                f"process {self.local_rank + 1} of this machine has no GPU: there are {count}",
                hint="start as many processes as there are GPUs (--nproc)",
            )
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def own_name(self, name: str) -> str:
        """Return what this rank calls its device where the configuration says ``name``.

        Several processes take a GPU each by their number: raises ``ConfigError`` for ``cuda:N``.
        """
        if self.size == 1 or name == "cpu":
            return name
        if name not in ("auto", "cuda"):
            raise ConfigError(
                f"device={name} is one GPU, for {self.size} processes",
                hint="device=cuda gives each process its own; CUDA_VISIBLE_DEVICES chooses which",
            )
        if name == "auto" and not torch.cuda.is_available():
            return "cpu"
        # Not the first GPU, on which every process would leave a context.
        return f"cuda:{self.local_rank}"

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
        load_compiler()
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
        """Return rank 0's value (JSON) on every rank; the others' is not looked at.

        Waits long for it: rank 0 may have much to do before it can tell.
        """
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor(len(content))
        with _lost_ranks():
            distributed.broadcast(length, src=0, group=_decisions)
            message = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0:
                message.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            distributed.broadcast(message, src=0, group=_decisions)
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
    if not (size >= 1 and 0 <= rank < size and local >= 0):
        raise ConfigError(
            f"RANK={rank} LOCAL_RANK={local} WORLD_SIZE={size} are no place among processes",
            hint="use torchrun, or d2nas's --nproc",
        )
    return Ranks(rank, size, local)


def local_size() -> int:
    """Return how many processes of this training share the machine, as torchrun tells it."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(told)) if told.isdecimal() else 1


@contextlib.contextmanager
def connected(ranks: Ranks) -> Iterator[None]:
    """Connect the ranks for the time of the ``with``: gloo for the host, NCCL for GPUs."""
    if ranks.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(
            backend, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT
        )
    except ValueError as error:  # a variable is missing, or makes no sense
        raise ConfigError(f"the processes cannot meet: {_first_line(error)}", hint=_MEET) from None
    except RuntimeError as error:
        problem = f"the processes did not meet: {_first_line(error)}"
        if "EADDRINUSE" in str(error):
            hint = "torchrun --master-port takes another port" if is_torchrun() else _MEET
            raise ConfigError(problem, hint=hint) from None
        # Under torchrun the address is torchrun's own: who is missing has failed.
        raise LostRankError(problem, hint=after_a_loss() if is_torchrun() else _MEET) from error
    global _decisions
    try:
        with _lost_ranks():
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, distributed.ProcessGroup)  # every rank is a member of it
        _decisions = group
        yield
    finally:
        _decisions = None
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
    return LostRankError(
        f"another process of this training is gone: {_first_line(error)}",
        hint=after_a_loss(),
    )


def _first_line(error: Exception) -> str:
    """Return what an error says, without the places in the library's sources; whole words."""
    reason = _SOURCE_PLACE.sub("", str(error)).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(reason[0], 200, placeholder=" ...")

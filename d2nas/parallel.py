"""Several processes that train one network: each takes an equal part of every batch.

All ranks draw the same architectures and the same random numbers for the whole batch; gradients
and what is reported are means over the ranks. Batch norm sees each rank's part alone, and rank 0's
running statistics are the result, as in PyTorch's DistributedDataParallel.

All run one program. Where they could differ, they meet: ``Ranks.decide`` calls a function on rank 0
and gives its value to all, ``Ranks.largest`` gives all the largest of their numbers. A meeting has
a name, which all must come with: a rank that decides once more or once less than the others ends
all of them with an error that names both. Nobody is left waiting: an exception of the function ends
the others too, and a rank that waits for another says so, for which, and for what.
"""

import contextlib
import datetime
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""How long the ranks wait for what is decided: rank 0 may download a data set meanwhile. No less,
as who watches is told of every wait and can end it, and a bound would end what only takes long.
"""
FIRST_WORD = 30.0
"""Seconds after which a rank that waits says so; again whenever it has waited twice as long."""
_SLICE = datetime.timedelta(seconds=1)
"""How long a rank waits without looking at the clock and at signals."""
_LAST_SLICES = 10
"""How long a rank waits for the others, or for rank 0's end, when it is going to end itself."""
_HEADER_BYTES = 256
"""Of each rank's part of a meeting."""

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
            work = distributed.all_reduce(total, async_op=not total.is_cuda)
            if work is not None:
                _connection().finish(work, "a mean over the ranks")
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

    def largest(self, what: str, *numbers: int) -> list[int]:
        """Return each number's largest value among the ranks. Waits for them, not for a device.

        ``what`` names the meeting. Raises ``LostRankError``, also where another rank came to a
        meeting of another name.
        """
        if self.size == 1:
            return list(numbers)
        return [max(each) for each in zip(*_connection().meet(what, *numbers), strict=True)]

    def decide(
        self,
        what: str,
        make: Callable[[], Any],
        exit_code: Callable[[Exception], int] = lambda error: getattr(error, "exit_code", 1),
    ) -> Any:
        """Return on every rank what ``make`` returns on rank 0, where alone it is called (JSON).

        ``what`` names the decision, in words for who waits for it. What ``make`` raises is raised
        on rank 0, which tells it; the other ranks end silently, after it, with its ``exit_code``.
        ``make`` may take long, and may not meet the other ranks. Raises ``LostRankError``, also
        where another rank came to a meeting of another name.
        """
        if self.size == 1:
            return make()
        if self.rank > 0:
            return _connection().hear(what)
        try:
            content = json.dumps(make()).encode()
        except Exception as error:
            _connection().end(what, exit_code(error))
            raise
        return _connection().tell(what, content)


ALONE = Ranks()


def unsynchronized(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return what keeps gradients on this rank for now, of a model that ``Ranks.wrap`` returned."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


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


class _Connection:
    """Meetings of the ranks, in a group with a patience of its own, and waits that are told.

    In ``places``, PyTorch's store of keys that all ranks see, a rank that waits writes for what.
    """

    def __init__(
        self,
        ranks: Ranks,
        group: distributed.ProcessGroup,
        places: Any,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ranks, self._group, self._places = ranks, group, places
        self._say, self._clock = say, clock
        self._waits = 0

    def meet(self, what: str, *numbers: int) -> list[list[int]]:
        """Return the numbers of every rank, once all have come here."""
        work, parts = self._gather(what, *numbers)
        self.finish(work, what)
        came = [json.loads(part.numpy().tobytes()) for part in parts]
        _require_same([name for name, _ in came])
        return [numbers for _, numbers in came]

    def _gather(self, what: str, *numbers: int) -> tuple[distributed.Work, list[Tensor]]:
        header = json.dumps([what, numbers]).encode().ljust(_HEADER_BYTES)
        assert len(header) == _HEADER_BYTES, what
        own = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self._ranks.size)]
        with _lost_ranks():
            work = distributed.all_gather(parts, own, group=self._group, async_op=True)
        assert work is not None
        return work, parts

    def tell(self, what: str, content: bytes) -> Any:
        """Give the other ranks the value that rank 0 has decided on, and return it."""
        self.meet(what, 0, len(content))
        return self._broadcast(what, torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def hear(self, what: str) -> Any:
        """Return the value that rank 0 tells, or end as it does."""
        code, length = self.meet(what, 0, 0)[0]
        if code:
            # Who starts the ranks may end all when the first one has: that is to be rank 0.
            self._gather_briefly("the end of rank 0")
            raise SystemExit(code)
        return self._broadcast(what, torch.empty(length, dtype=torch.uint8))

    def end(self, what: str, code: int) -> None:
        """Let the other ranks know that rank 0 ends here."""
        self._gather_briefly(what, code, 0)

    def _gather_briefly(self, what: str, *numbers: int) -> None:
        """Take part in a meeting, as far as the others come in time."""
        with contextlib.suppress(LostRankError):
            work, _ = self._gather(what, *numbers)
            for _slice in range(_LAST_SLICES):
                if _ends_in_a_slice(work):
                    break

    def _broadcast(self, what: str, message: Tensor) -> Any:
        with _lost_ranks():
            work = distributed.broadcast(message, src=0, group=self._group, async_op=True)
        assert work is not None
        self.finish(work, what)
        return json.loads(message.numpy().tobytes())

    def finish(self, work: distributed.Work, what: str) -> None:
        """Wait until all ranks have taken part in ``work``, and say so where that takes long.

        Raises ``LostRankError``, also where all wait and not for the same.
        """
        self._waits += 1
        began, due = self._clock(), FIRST_WORD
        while not _ends_in_a_slice(work):
            with _lost_ranks():
                self._places.set(self._place(self._ranks.rank), json.dumps([self._waits, what]))
                seconds = self._clock() - began
                if seconds >= due:
                    self._tell_the_wait(what, seconds)
                    due *= 2
        with _lost_ranks():
            work.wait()

    def _tell_the_wait(self, what: str, seconds: float) -> None:
        """Say for whom the ranks wait: once, by the first of those that do."""
        waiting = self._waiting()
        others = [str(rank) for rank in range(self._ranks.size) if rank not in waiting]
        if not others:
            _require_same(list(waiting.values()))
        elif self._ranks.rank == min(waiting):
            them = f"rank{'s' * (len(others) > 1)} {', '.join(others)}"
            self._say(f"rank {self._ranks.rank} has waited {seconds:.0f} s for {them}: {what}")

    def _waiting(self) -> dict[int, str]:
        """Return for what the ranks wait that have come as far as this one."""
        found = {}
        for rank in range(self._ranks.size):
            if self._places.check([self._place(rank)]):
                number, what = json.loads(self._places.get(self._place(rank)))
                if number == self._waits:
                    found[rank] = what
        return found

    def _place(self, rank: int) -> str:
        return f"d2nas/waits/{rank}"


def _ends_in_a_slice(work: distributed.Work) -> bool:
    with contextlib.suppress(RuntimeError):  # the slice has ended, or the work with an error
        work.wait(_SLICE)
    return work.is_completed()


def _require_same(names: Sequence[str]) -> None:
    """Raise ``LostRankError`` where a rank has come to something else than rank 0."""
    for rank, name in enumerate(names):
        if name != names[0]:
            raise LostRankError(
                f"the processes are out of step: rank 0 is at {names[0]!r}, rank {rank} at "
                f"{name!r}",
                hint=f"this is a bug in d2nas, please report it; {after_a_loss()}",
            )


_connected: _Connection | None = None
"""Of this process; PyTorch's groups are global too."""


def _connection() -> _Connection:
    assert _connected is not None, "ranks meet inside of ``connected``"
    return _connected


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextlib.contextmanager
def connected(ranks: Ranks, say: Callable[[str], None] = _say) -> Iterator[None]:
    """Connect the ranks for the time of the ``with``: gloo for the host, NCCL for GPUs.

    ``say`` shows a line about a long wait for another rank.
    """
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
    global _connected
    try:
        with _lost_ranks():
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, distributed.ProcessGroup)  # every rank is a member of it
        places = distributed.distributed_c10d._get_default_store()
        _connected = _Connection(ranks, group, places, say)
        yield
    finally:
        _connected = None
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

"""Shared parts of search and retraining: devices, finite checks, memory errors, evaluation."""

import contextlib
import re
import resource
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compiler import load_compiler
from ..data.batches import Batches, channels_last
from ..data.images import Images, Normalizer
from ..errors import ConfigError, NonFiniteError, OutOfMemoryError
from ..nn.operations import noises_in, set_noise_generator
from ..parallel import ALONE, Ranks, lost_ranks
from ..randomness import generator
from .precision import Arithmetic
from .state import Trained, TrainState

EVALUATION_BATCH = 256
_NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED"
)
"""What PyTorch says where it has no class of its own for it."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step.

    ``step`` counts from 0; ``metrics`` is the row of the epoch this step completed, else None.
    """

    step: int
    metrics: dict[str, Any] | None


def torch_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that was really used once.

    Raises ``ConfigError`` for a CUDA device that does not work: an explicit choice never falls
    back. ``auto`` takes CUDA where it works, else the CPU.
    """
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    try:
        torch.ones(8, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        if name == "auto":
            return torch.device("cpu")
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"device {name} does not work here: {reason}",
            hint="d2nas doctor says what is missing; cpu as device needs no GPU",
        ) from None
    return device


def to_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to ``device``, convolution weights channels-last (faster on CPU and CUDA).

    Depthwise ones too, whose bytes are the same either way: their gradients come with these
    strides, and what sends or adds gradients expects the weight's.
    """
    module.to(device)
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.weight.data = channels_last(child.weight.data)
    return module


class Loop:
    """Base of search and retraining: steps in order, epochs of equal length, resumable anywhere.

    A subclass sets these attributes, and says what a step does and what an epoch's row holds.
    """

    network: nn.Module
    """What is set to training mode."""
    trained: Trained
    device: torch.device
    ranks: Ranks = ALONE
    batch_size: int
    num_steps: int
    steps_per_epoch: int
    precision: str | None = None
    """What is computed in, where the device has a say in it."""
    arithmetic: Arithmetic
    """How it is computed; held while a step runs."""
    metrics: list[dict[str, Any]]
    """One row per finished epoch."""

    def streams(self) -> tuple[Batches, ...]:
        """Return where its batches come from."""
        return ()

    def prepare(self) -> None:
        """Do what a process needs before its first step, new or continued; changes no state."""

    def take_step(self, step: int) -> None:
        """Run one step."""
        raise NotImplementedError

    def describe_epoch(self, step: int, means: dict[str, float]) -> dict[str, Any]:
        """Return the row of the epoch that ``step`` completes; ``means`` are the sums' per step."""
        raise NotImplementedError

    def end_epoch(self, step: int) -> None:
        """Do what follows an epoch, whose row is the last one; ``num_steps`` may change."""

    def restore(self, state: TrainState) -> None:
        """Continue from ``state``. Raises ``DamagedArtifactError`` for one that does not fit."""
        self.trained.restore(state.tensors)
        self.metrics = list(state.metrics)

    def cautions(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Yield what a user should know after the epoch that has just finished, with its row."""
        yield from ()

    def run(self, state: TrainState | None = None) -> Iterator[StepReport]:
        """Run every step, from ``state`` on if given; yields after each one.

        Raises ``NonFiniteError``, ``OutOfMemoryError``, ``ConfigError`` for a state of another
        kind of device or precision, and ``DamagedArtifactError`` for one that does not fit.
        """
        step = 0
        if state is not None:
            self._check_kind(state)
            self.restore(state)
            step = state.step
        self.network.train()
        with self._guarded():
            self.prepare()
        while step < self.num_steps:
            with self._guarded():
                try:
                    self.take_step(step)
                except NonFiniteError as error:
                    raise self._explained(error) from None
            row = None
            if (step + 1) % self.steps_per_epoch == 0:
                row = self._close_epoch(step)
            yield StepReport(step, row)
            step += 1

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        memory = memory_errors(self.batch_size, self.device)
        with memory, lost_ranks(self.ranks), self.arithmetic.pinned():
            yield

    def check(self) -> None:
        """Raise ``NonFiniteError`` if a step so far was not taken for that reason."""

    def capture(self, step: int) -> TrainState:
        """Return the state with which the run continues at ``step``.

        Raises ``NonFiniteError`` as ``check``, and for any value in it that is not finite.
        """
        self.check()
        tensors = self.trained.copies()
        _require_finite(tensors, step - 1)
        return TrainState(
            step, tensors, list(self.metrics), device=self.device.type, precision=self.precision
        )

    def _check_kind(self, state: TrainState) -> None:
        for was, now, verb in (
            (state.device, self.device.type, "on"),
            (state.precision, self.precision, "in"),
        ):
            if was != now:
                raise ConfigError(
                    f"the checkpoint was trained {verb} {was}, this device would go on {verb} "
                    f"{now}",
                    hint="continue on the same kind of device, or start over with --fresh",
                )

    def _explained(self, error: NonFiniteError) -> NonFiniteError:
        """Return the error with the first weight or logit that is to blame, if one is: those that
        the step would have changed are as they were.
        """
        for owner, module in self.trained.modules.items():
            for name, parameter in module.named_parameters():
                if not torch.isfinite(parameter).all():
                    message = f"{error}: {owner}.{name} is not finite"
                    return NonFiniteError(message, hint=error.hint)
        return error

    def _close_epoch(self, step: int) -> dict[str, Any]:
        self.check()
        _require_finite(self.trained.tensors(), step)
        means = self.trained.sums.means(self.steps_per_epoch)
        self.trained.sums.values.zero_()
        place_in_run = {"epoch": step // self.steps_per_epoch, "step": step + 1}
        self.metrics.append(place_in_run | self.describe_epoch(step, means))
        with self._guarded():
            self.end_epoch(step)
        return self.metrics[-1]


class FiniteCheck:
    """Remembers which losses, gradients and norms were finite, without waiting for the device.

    A step whose update would not be finite is not made (``step_if_finite``); the host may learn of
    it later. On the CPU there is nothing to wait for and it learns at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._free = device.type == "cpu"
        self._pending: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, name: str, value: Tensor) -> Tensor:
        """Note whether ``value``, called ``name``, is finite; returns that as a 0-d tensor."""
        finite = torch.isfinite(value).all()
        self._pending.append((step, name, finite))
        return finite

    def check(self) -> None:
        """Raise ``NonFiniteError`` naming the first value noted that was not finite."""
        pending, self._pending = self._pending, []
        wrong = _first_false([flag for _, _, flag in pending])
        if wrong is not None:
            step, name, _ = pending[wrong]
            raise _not_finite(f"{name} is not finite at step {step}; the step was not taken")

    def check_if_synchronous(self) -> None:
        """Check where that costs no waiting."""
        if self._free:
            self.check()


def _require_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise ``NonFiniteError`` naming the first tensor with a value that is not finite.

    Losses and gradients are looked at in every step; statistics that only an evaluation uses, and
    whatever else could go wrong, before it is kept.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    wrong = _first_false([torch.isfinite(tensors[name]).all() for name in names])
    if wrong is not None:
        raise _not_finite(f"{names[wrong]} is not finite after step {step}; it was not saved")


def _first_false(flags: list[Tensor]) -> int | None:
    """Return which flag (0-d) is the first that is false: one copy to the host per device."""
    for device in dict.fromkeys(flag.device for flag in flags):
        if not torch.stack([flag for flag in flags if flag.device == device]).all():
            return next(index for index, flag in enumerate(flags) if not flag)
    return None


def _not_finite(problem: str) -> NonFiniteError:
    return NonFiniteError(
        problem, hint="a checkpoint made before is intact; try a lower learning rate or a warm-up"
    )


def step_if_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take an optimizer's step if ``finite`` (0-d, on the device) is true.

    Decided on the device, by the switch that fused optimizers (and ``RmsProp``) have for loss
    scaling.
    """
    optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def sgd(
    module: nn.Module, *, lr: float, momentum: float, weight_decay: float, nesterov: bool = False
) -> torch.optim.SGD:
    """Return fused SGD on all parameters of ``module``, which is on its device already.

    Momentum starts at zero, which is the same as starting with the first gradient: the fused step
    takes no mixture of parameters with and without, and a search samples new ones at every step.
    """
    load_compiler()
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        fused=True,
    )
    if momentum:
        for parameter in module.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adam(
    parameters: list[nn.Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Adam:
    """Return Adam with the state that PyTorch makes at the first step, made now."""
    load_compiler()
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0, dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def adamw(module: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return fused AdamW on all parameters of ``module``, with the state that PyTorch makes at the
    first step, made now.
    """
    load_compiler()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    for parameter in module.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


@contextlib.contextmanager
def memory_errors(
    batch_size: int, device: torch.device, *, hint: str | None = None
) -> Iterator[None]:
    """Turn an out-of-memory failure into ``OutOfMemoryError`` with the batch size and the peak.

    Nothing is retried and the batch size is never changed behind the user's back.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _release_frames(error)
        raise OutOfMemoryError(
            f"out of memory on {device} at batch size {batch_size} (peak {_peak_memory(device)})",
            hint=hint
            or "lower batch_size or init_channels; of a search also recompute=op, of a retraining "
            "raise accumulate",
        ) from None


def _release_frames(error: BaseException | None) -> None:
    """Drop what the functions that failed still hold, the step's tensors above all.

    A ``with`` makes the failure the context of what is raised instead, wherever that is raised, and
    the failure's traceback holds those functions' variables.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, or was the cause of an error that says something else."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def _peak_memory(device: torch.device) -> str:
    """Return the most memory used so far: the allocator's on a GPU, else this whole process's."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB"
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux
    return f"{kibibytes / 2**10:.0f} MiB resident"


@torch.no_grad()
def predict(
    network: Callable[[Tensor], Tensor],
    images: Images,
    normalizer: Normalizer,
    batch_size: int = EVALUATION_BATCH,
    *,
    seed: int = 0,
) -> Tensor:
    """Return the logits (N, classes) of all images, in order, on the CPU.

    ``seed`` decides what a ``noise`` operation adds, so that an evaluation can be repeated. On a
    GPU, too, float32 is float32. Raises ``NonFiniteError``.
    """
    if isinstance(network, nn.Module):
        set_noise_generator(noises_in(network), generator(seed, "evaluation-noise"))
    with Arithmetic(float32="ieee", autotune=False).pinned():
        parts = [
            network(channels_last(normalizer(images.pixels(slice(start, start + batch_size)))))
            for start in range(0, len(images), batch_size)
        ]
        return finite_logits(torch.cat(parts), of="the network")


def finite_logits(logits_NC: Tensor, *, of: str) -> Tensor:
    """Return the logits of all images on the CPU; ``of`` says whose they are.

    Raises ``NonFiniteError`` naming the first image whose logits are not finite.
    """
    logits_NC = logits_NC.cpu()
    wrong = (~torch.isfinite(logits_NC).all(dim=1)).nonzero().flatten()
    if len(wrong):
        raise NonFiniteError(
            f"the logits of {of} are not finite for {len(wrong)} of {len(logits_NC)} images, "
            f"the first of which is image {int(wrong[0])}",
            hint="train again with a lower learning rate, or in fp32",
        )
    return logits_NC


def accuracy(logits: Tensor, labels_N: Tensor) -> float:
    """Return the fraction of rows whose largest logit is the label's."""
    return float((logits.argmax(dim=1) == labels_N.to(logits.device)).double().mean())

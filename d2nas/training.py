"""What search and retraining share: devices, finite checks, memory errors, evaluation, progress."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .batches import channels_last
from .data import Images, Normalizer
from .errors import ConfigError, NonFiniteError, OutOfMemoryError
from .ops import noises_in, set_noise_generator
from .parallel import ALONE, Ranks, lost_ranks
from .randomness import generator
from .state import Trainee, TrainState

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step.

    ``step`` counts from 0; ``metrics`` is the row of the epoch this step completed, else None.
    """

    step: int
    metrics: dict[str, Any] | None


def resolve_device(name: str) -> torch.device:
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
            hint="d2nas doctor says what is missing; device=cpu runs without a GPU",
        ) from None
    return device


def stem_for(stem: str, image_size: int) -> str:
    """Resolve ``stem="auto"``: the ImageNet stem from 96 pixels on."""
    if stem != "auto":
        return stem
    return "imagenet" if image_size >= 96 else "cifar"


def place(module: nn.Module, device: torch.device) -> nn.Module:
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
    """What search and retraining are: steps in order, epochs of equal length, resumable anywhere.

    A subclass sets these attributes, and says what a step does and what an epoch's row holds.
    """

    network: nn.Module
    """What is set to training mode."""
    trainee: Trainee
    device: torch.device
    ranks: Ranks = ALONE
    batch_size: int
    num_steps: int
    steps_per_epoch: int
    precision: str | None = None
    """What is computed in, where the device has a say in it."""
    metrics: list[dict[str, Any]]
    """One row per finished epoch."""

    def take_step(self, step: int) -> None:
        """Run one step."""
        raise NotImplementedError

    def describe_epoch(self, step: int, means: list[float]) -> dict[str, Any]:
        """Return the row of the epoch that ``step`` completes; ``means`` are the sums' per step."""
        raise NotImplementedError

    def run(self, state: TrainState | None = None) -> Iterator[StepReport]:
        """Run every step, from ``state`` on if given; yields after each one.

        Raises ``NonFiniteError``, ``OutOfMemoryError``, ``ConfigError`` for a state that another
        precision was computed in, and ``DamagedArtifactError`` for one that does not fit.
        """
        first = 0
        if state is not None:
            if state.precision not in (None, self.precision):
                raise ConfigError(
                    f"the checkpoint was trained in {state.precision}, this device would go on in "
                    f"{self.precision}",
                    hint="continue on the same kind of device, or start over with --fresh",
                )
            self.trainee.restore(state)
            self.metrics = list(state.metrics)
            first = state.step
        self.network.train()
        for step in range(first, self.num_steps):
            with memory_errors(self.batch_size, self.device), lost_ranks(self.ranks):
                self.take_step(step)
            row = None
            if (step + 1) % self.steps_per_epoch == 0:
                row = self._close_epoch(step)
            yield StepReport(step, row)

    def check(self) -> None:
        """Raise ``NonFiniteError`` if a step so far was not taken for that reason."""

    def capture(self, step: int) -> TrainState:
        """Return the state with which the run continues at ``step``. Raises as ``check``."""
        self.check()
        return replace(self.trainee.capture(step, self.metrics), precision=self.precision)

    def _close_epoch(self, step: int) -> dict[str, Any]:
        self.check()
        means: list[float] = (self.trainee.sums / self.steps_per_epoch).tolist()
        self.trainee.sums.zero_()
        place_in_run = {"epoch": step // self.steps_per_epoch, "step": step + 1}
        self.metrics.append(place_in_run | self.describe_epoch(step, means))
        return self.metrics[-1]


class FiniteWatch:
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
        if not pending:
            return
        flags = [flag for _, _, flag in pending]
        devices = {flag.device for flag in flags}
        # One copy to the host for each device, not one for each flag.
        all_fine = {
            device: torch.stack([flag for flag in flags if flag.device == device]).cpu()
            for device in devices
        }
        if all(bool(fine.all()) for fine in all_fine.values()):
            return
        for step, name, flag in pending:
            if not flag:
                raise NonFiniteError(
                    f"{name} is not finite at step {step}; the step was not taken",
                    hint="the last checkpoint is intact; try a lower learning rate or a warm-up",
                )

    def check_if_free(self) -> None:
        """Check where that costs no waiting."""
        if self._free:
            self.check()


def step_if_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take the step of a fused optimizer if ``finite`` (0-d, on the device) is true.

    Decided on the device, by the switch that fused optimizers have for loss scaling.
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


@contextlib.contextmanager
def memory_errors(batch_size: int, device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory failure into ``OutOfMemoryError`` with the batch size and the peak.

    Nothing is retried and the batch size is never changed behind the user's back.
    """
    failed = False
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        failed = True
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        failed = True
    # Outside the except block: there, the traceback would keep the step's tensors alive.
    if failed:
        raise OutOfMemoryError(
            f"out of memory on {device} at batch size {batch_size} (peak {_peak_memory(device)})",
            hint="lower batch_size or init_channels; for a search also recompute=op",
        )


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

    ``seed`` decides what a ``noise`` operation adds, so that an evaluation can be repeated.
    """
    if isinstance(network, nn.Module):
        set_noise_generator(noises_in(network), generator(seed, "evaluation-noise"))
    parts = [
        network(channels_last(normalizer(images.pixels(slice(start, start + batch_size)))))
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts).cpu()


def accuracy(logits: Tensor, labels_N: Tensor) -> float:
    """Return the fraction of rows whose largest logit is the label's."""
    return float((logits.argmax(dim=1) == labels_N.to(logits.device)).double().mean())

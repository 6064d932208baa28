"""The whole of what a resume needs, as flat tensors and flat scalars.

Learning rates, temperature, data order and every random draw are functions of (seed, step), so a
state is the step, the weights and buffers, the optimizers' moments and the running metrics.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DamagedArtifactError

_KINDS: Mapping[str, tuple[type, ...]] = {
    "step": (int,),
    "metrics": (list,),
    "device": (str,),
    "precision": (str, type(None)),
}


@dataclass(frozen=True, slots=True)
class TrainState:
    """``step``: the next step to run. ``tensors`` by dotted name. ``metrics``: rows so far."""

    step: int
    tensors: dict[str, Tensor]
    metrics: list[dict[str, Any]]
    device: str
    """The kind of device that computed: ``cpu`` or ``cuda``."""
    precision: str | None
    """What was computed in, where the device had a say in it."""

    def scalars(self) -> dict[str, Any]:
        """Return everything but the tensors, by name."""
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name != "tensors"
        }

    @classmethod
    def from_parts(
        cls, tensors: dict[str, Tensor], scalars: Mapping[str, Any], *, what: str
    ) -> "TrainState":
        """Return the state of ``tensors`` and ``scalars()``; nothing may be missing or left over.

        Raises ``DamagedArtifactError`` naming ``what`` and the entry.
        """
        for name, kinds in _KINDS.items():
            if name not in scalars:
                raise _unusable(f"{what}: {name} is missing")
            if type(scalars[name]) not in kinds:
                raise _unusable(f"{what}: {name} is a {type(scalars[name]).__name__}")
        if scalars["step"] < 0 or not all(isinstance(row, dict) for row in scalars["metrics"]):
            raise _unusable(f"{what}: step or metrics are none of a training")
        unknown = scalars.keys() - _KINDS.keys()
        if unknown:
            raise _unusable(f"{what}: unexpected entry {min(unknown)}")
        return cls(tensors=tensors, **scalars)


class StepSums:
    """Sums over the steps of an epoch by name, as one float64 tensor on the device.

    Nothing here waits for the device but ``means``.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        self.values = torch.zeros(len(names), dtype=torch.float64, device=device)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[self._rows[name]]

    def __setitem__(self, name: str, value: Tensor | float) -> None:
        self.values[self._rows[name]] = value

    def add(self, **terms: Tensor) -> None:
        """Add a step's values, each to the sum of its name."""
        for name, term in terms.items():
            self.values[self._rows[name]] += term

    def means(self, num_steps: int) -> dict[str, float]:
        """Return the sums divided by the number of steps."""
        return dict(zip(self._rows, (self.values / num_steps).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Trained:
    """Changing part of a training loop: modules and optimizers by name, and the running sums.

    Every optimizer's parameters must belong to one of the modules, and its moments must exist, so
    that what a checkpoint holds is known before the first step.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    sums: StepSums
    memory: nn.Module | None = None
    """A method's own state, ``method`` in names; no roll-back changes it."""
    kept: Sequence[dict[str, Tensor]] = ()
    """Copies of ``learned()``, to go back to."""

    def with_room_for(self, num_kept: int) -> "Trained":
        """Return the same with ``num_kept`` copies, of zeros."""
        kept = [
            {name: torch.zeros_like(value) for name, value in self.learned().items()}
            for _ in range(num_kept)
        ]
        return replace(self, kept=tuple(kept))

    def learned(self) -> dict[str, Tensor]:
        """Return modules and moments, by dotted name; not copies."""
        found = dict[str, Tensor]()
        for name, module in self.modules.items():
            found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, parameter, moments in self._moments():
            found |= {
                f"{name}.{parameter}.{key}": value
                for key, value in moments.items()
                if isinstance(value, Tensor)
            }
        return {name: value.detach() for name, value in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that training changes, by dotted name; not copies."""
        found = {"sums": self.sums.values, **self.learned(), **memory_tensors(self.memory)}
        for slot, kept in enumerate(self.kept):
            found |= {f"kept.{slot}.{name}": value for name, value in kept.items()}
        return found

    def keep(self, slot: int) -> None:
        """Copy what is learned into a slot. Raises ``ValueError`` for a slot that is not there."""
        _copy(self.learned(), self._slot(slot))

    def bring_back(self, slot: int) -> None:
        """Make what is learned what ``keep`` copied. Raises ``ValueError`` as that."""
        _copy(self._slot(slot), self.learned())

    def _slot(self, slot: int) -> dict[str, Tensor]:
        if not 0 <= slot < len(self.kept):
            raise ValueError(f"kept state {slot}: there are {len(self.kept)}, counted from 0")
        return self.kept[slot]

    def copies(self) -> dict[str, Tensor]:
        """Return copies of ``tensors()`` on the CPU."""
        return {name: value.to("cpu", copy=True) for name, value in self.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what ``copies()`` gave. Raises ``DamagedArtifactError`` naming a tensor
        that does not fit; nothing may be missing or left over.
        """
        own = self.tensors()
        for name, target in own.items():
            _check(target, tensors, name)
        left_over = tensors.keys() - own.keys()
        if left_over:
            raise _unusable(f"checkpoint: unexpected tensor {min(left_over)}")
        _copy(tensors, own)

    def _moments(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        names = {
            id(parameter): f"{name}.{key}"
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
        }
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter in optimizer.state:
                        yield name, names[id(parameter)], optimizer.state[parameter]


def memory_tensors(memory: nn.Module | None) -> dict[str, Tensor]:
    """Return a method's own state as a checkpoint holds it; not copies."""
    if memory is None:
        return {}
    return {f"method.{name}": value.detach() for name, value in memory.state_dict().items()}


def fill_in(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's ``tensors`` into ``targets`` of the same names.

    Raises ``DamagedArtifactError`` naming one that is missing or does not fit; nothing is changed.
    """
    for name, target in targets.items():
        _check(target, tensors, name)
    _copy(tensors, targets)


@torch.no_grad()
def _copy(sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])


def _check(target: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    if name not in tensors:
        raise _unusable(f"checkpoint: tensor {name} is missing")
    source = tensors[name]
    if source.shape != target.shape or source.dtype != target.dtype:
        raise _unusable(
            f"checkpoint: tensor {name} is {source.dtype} {tuple(source.shape)}, "
            f"not {target.dtype} {tuple(target.shape)}"
        )


def _unusable(problem: str) -> DamagedArtifactError:
    return DamagedArtifactError(problem, hint="start over with --fresh")

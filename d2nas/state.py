"""The whole of what a resume needs, as flat tensors and flat scalars.

Learning rates, temperature, data order and every random draw are functions of (seed, step), so a
state is the step, the weights and buffers, the optimizers' moments and the running metrics.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DamagedArtifactError


@dataclass(frozen=True, slots=True)
class TrainState:
    """``step``: the next step to run. ``tensors`` by dotted name. ``metrics``: rows so far."""

    step: int
    tensors: dict[str, Tensor]
    metrics: list[dict[str, Any]]
    precision: str | None = None
    """What was computed in, where the device had a say in it."""


@dataclass(frozen=True, slots=True)
class Trainee:
    """What a training loop changes: modules and optimizers by name, and the running sums.

    Every optimizer's parameters must belong to one of the modules.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    sums: Tensor

    def capture(self, step: int, metrics: list[dict[str, Any]]) -> TrainState:
        """Return the state before ``step`` as CPU copies."""
        tensors = {"sums": self.sums}
        for name, module in self.modules.items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, parameter, moments in self._moments():
            tensors |= {
                f"{name}.{parameter}.{key}": value
                for key, value in moments.items()
                if isinstance(value, Tensor)
            }
        copies = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
        return TrainState(step, copies, list(metrics))

    def restore(self, state: TrainState) -> None:
        """Continue from ``state``. Raises ``DamagedArtifactError`` naming a tensor that does not
        fit; nothing may be missing or left over.
        """
        remaining = dict(state.tensors)
        _copy(self.sums, remaining, "sums")
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                _copy(value, remaining, f"{name}.{key}")
        for name, optimizer in self.optimizers.items():
            for parameter_name, parameter in self._parameters(optimizer):
                prefix = f"{name}.{parameter_name}."
                keys = [key for key in remaining if key.startswith(prefix)]
                if keys:
                    optimizer.state[parameter] = {
                        key.removeprefix(prefix): _moment(remaining.pop(key), parameter, key)
                        for key in keys
                    }
        if remaining:
            raise DamagedArtifactError(f"checkpoint: unexpected tensor {min(remaining)}")

    def _moments(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for name, optimizer in self.optimizers.items():
            for parameter_name, parameter in self._parameters(optimizer):
                if parameter in optimizer.state:
                    yield name, parameter_name, optimizer.state[parameter]

    def _parameters(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
        names = {
            id(parameter): f"{name}.{key}"
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
        }
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[id(parameter)], parameter


def _copy(target: Tensor, tensors: dict[str, Tensor], name: str) -> None:
    if name not in tensors:
        raise DamagedArtifactError(f"checkpoint: tensor {name} is missing")
    source = tensors.pop(name)
    if source.shape != target.shape or source.dtype != target.dtype:
        raise DamagedArtifactError(
            f"checkpoint: tensor {name} is {source.dtype} {tuple(source.shape)}, "
            f"not {target.dtype} {tuple(target.shape)}"
        )
    with torch.no_grad():
        target.copy_(source)


def _moment(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    # Adam's step counter is a scalar that stays on the CPU; moments live like their parameter.
    if value.dim() == 0:
        return value.clone()
    if value.shape != parameter.shape:
        raise DamagedArtifactError(
            f"checkpoint: tensor {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}"
        )
    return torch.empty_like(parameter).copy_(value)

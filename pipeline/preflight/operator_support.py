"""Operator support: each operation of a space exported alone, opened strictly, run once.

A search of hours whose best operation has no kernel on the device that serves is caught here in
seconds. Each operation is tried in both forms that a network has: with stride 1 and with stride 2.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2nas.config import Config
from d2nas.errors import ConfigError, OutOfMemoryError, ValidationFailedError
from d2nas.files.text_files import read_space
from d2nas.genotype import read_genotype
from d2nas.nn.operations import build_operation
from d2nas.spaces import CELL_TYPES, SearchSpace

from ..onnx_io.export import export_onnx
from ..onnx_io.providers import cuda_problem, require_device, runtime_device
from ..onnx_io.session import OnnxSession, open_session

COLUMNS = ("operation", "runs", "where", "nodes", "problem")
_CHANNELS, _SIZE, _CLASSES = 4, 8, 3
_NEVER_EXPORTED = ("none", "noise")


@dataclass(frozen=True)
class Placement:
    """One operation: on which device all its nodes ran, or why they did not run on the asked one.

    ``device`` and ``providers`` (nodes on each) are those of the checked session; None if there is
    none.
    """

    operation: str
    opset: int
    lands: bool
    device: str | None = None
    providers: dict[str, int] | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table with ``COLUMNS``."""
        nodes = ", ".join(
            f"{count} {name.removesuffix('ExecutionProvider')}"
            for name, count in (self.providers or {}).items()
        )
        state = "yes" if self.lands else "no"
        return (self.operation, state, self.device or "", nodes, self.problem or "")


class _Alone(nn.Module):
    """An operation between an image and logits: with stride 1, then with stride 2; or none."""

    def __init__(self, operation: str | None) -> None:
        super().__init__()
        self.stride1, self.stride2 = (
            nn.Identity() if operation is None else build_operation(operation, _CHANNELS, stride)
            for stride in (1, 2)
        )
        self.classifier = nn.Linear(_CHANNELS, _CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stride2(self.stride1(x_NCHW)).mean((2, 3)))
        return logits


def operations_of(space: SearchSpace) -> list[str]:
    """Return the operations of ``space`` that an exported network can hold, by name."""
    named = {name for cell in CELL_TYPES for edge in space.candidates(cell) for name in edge}
    return sorted(named.difference(_NEVER_EXPORTED))


def place_operations(operations: Iterable[str], *, device: str, opset: int) -> Iterator[Placement]:
    """Yield where each operation runs when ``device`` is asked for.

    ``device`` is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Raises ``ConfigError`` for a device
    that this installation cannot have at all, and for an unusable opset;
    ``ValidationFailedError`` if the device does not even run a network without operations.
    """
    resolved = runtime_device(device)
    require_device(resolved)
    _run_alone(None, resolved, opset)
    for operation in operations:
        yield _place(operation, resolved, opset)


def _place(operation: str, device: str, opset: int) -> Placement:
    try:
        session = _run_alone(operation, device, opset)
    except (ValidationFailedError, OutOfMemoryError) as error:
        return Placement(operation, opset, lands=False, problem=str(error))
    return Placement(
        operation,
        opset,
        lands=True,
        device=session.device.label,
        providers=session.num_nodes_placed,
    )


def _run_alone(operation: str | None, device: str, opset: int) -> OnnxSession:
    shape = (_CHANNELS, _SIZE, _SIZE)
    with torch.random.fork_rng(devices=[]):
        module = _Alone(operation).eval()
    data = export_onnx(module, input_shape=shape, opset=opset, metadata={})
    session = open_session(data, device=device, what=operation or "an empty network")
    session.run(np.ones((2, *shape), np.float32))
    return session


def require_all_land(found: list[Placement], device: str) -> None:
    """Raise ``ValidationFailedError`` naming the operations that do not run where they should."""
    if not found:
        raise ConfigError("the space has no operation that is ever exported")
    missed = [placement.operation for placement in found if not placement.lands]
    if missed:
        raise ValidationFailedError(
            f"{len(missed)} of {len(found)} operations do not run on {device}: {', '.join(missed)}",
            hint="search another space, or validate and serve on the CPU; "
            "export.opset=20 has the most CUDA kernels",
        )


def check_device(config: Config, say: Callable[[str], None]) -> None:
    """Find before a search what validation would find after it: is there the device, and does it
    run all that the network may consist of?

    Says which device will validate. Raises what ``place_operations`` and ``require_all_land``
    raise.
    """
    device = config.validate_.device
    if device == "auto":
        problem = cuda_problem()
        if problem is not None:
            say(f"validation will run on the CPU, as CUDA does not: {problem}")
            return
        device = "cuda"
    if device == "cpu":
        return
    operations = _operations(config)
    found = list(place_operations(operations, device=device, opset=config.export.opset))
    if found:
        require_all_land(found, device)
    say(f"validation will run on {device}, which has all {len(found)} operations of the space")


def _operations(config: Config) -> list[str]:
    if config.derive.model is not None:
        return []  # of a library's networks no operation is known before they are exported
    if config.derive.genotype is None:
        return operations_of(read_space(config.search.space))
    genotype = read_genotype(config.derive.genotype)
    named = {name for cell in CELL_TYPES for name, _ in genotype.cell(cell)}
    return sorted(named.difference(_NEVER_EXPORTED))

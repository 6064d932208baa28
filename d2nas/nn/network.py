"""The derived network: a genotype stacked into cells, with DARTS's stems, heads and drop-path.

    network = Network(Genotype.published("DARTS_V2"), num_cells=20, init_channels=36)
    logits = network(images)

Numbers match the published code (arXiv 1806.09055): parameters, multiply-adds, logits, gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import send
from ..errors import ConfigError, DamagedArtifactError
from ..files.strict_json import parse_json
from ..files.tensors import decode_tensors
from ..files.verified_folder import read_verified
from ..genotype import Genotype
from ..spaces import EDGES_PER_NODE
from .library_network import LibraryNetwork, build_library_network
from .operations import CellPlan, build_operation, build_stem, plan_cells, preprocess_inputs
from .units import MemorySaving, share_relu

DESCRIPTION_FILE = "network.json"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class DropPath:
    """Drop-path of one training step: the probability, and the generator of its masks."""

    probability: float
    generator: torch.Generator

    def factors(self, num_outputs: int, num_images: int, device: torch.device) -> Tensor:
        """Return what each output of each image is multiplied with, (outputs, N, 1, 1, 1).

        That is 0 with the probability, else what keeps the mean. All of a step at once: one copy to
        the device, which nothing waits for.
        """
        keep = 1.0 - self.probability
        draws = torch.rand(
            (num_outputs, num_images, 1, 1, 1),
            generator=self.generator,
            device=self.generator.device,
        )
        return send((draws < keep) / keep, device)


class State:
    """Output of a node or cell: its value, and its ReLU once somebody asks for it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @cached_property
    def rectified(self) -> Tensor:
        """The value after ReLU."""
        return self.value.relu()


def _sum(
    first: Tensor, first_factor: Tensor | None, second: Tensor, second_factor: Tensor | None
) -> Tensor:
    """Return the sum of both, each times its factor: with one pass over the maps less."""
    if second_factor is None:
        first, first_factor, second, second_factor = second, second_factor, first, first_factor
    if second_factor is None:
        return first + second
    if first_factor is not None:
        first = first * first_factor
    return torch.addcmul(first, second, second_factor)


class Cell(MemorySaving):
    """A derived cell: each node adds its two operations, the output concatenates the nodes.

    Most operations begin with ReLU. In training, those that read the same state share one: it is
    computed, kept for the backward, and passed through backwards once, not once per operation.
    """

    def __init__(self, genotype: Genotype, plan: CellPlan) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = preprocess_inputs(plan, affine=True)
        pairs = genotype.cell(plan.cell_type)
        self.sources = tuple(source for _, source in pairs)
        self.concat = (
            genotype.normal_concat if plan.cell_type == "normal" else genotype.reduce_concat
        )
        self.operations = nn.ModuleList(
            build_operation(operation, plan.channels, plan.stride(source))
            for operation, source in pairs
        )
        operations = (self.preprocess0, self.preprocess1, *self.operations)
        self.sharing = {operation: share_relu(operation) for operation in operations}

    @property
    def num_droppable(self) -> int:
        """Number of outputs that drop-path can zero: all but unchanged inputs."""
        return sum(not isinstance(operation, nn.Identity) for operation in self.operations)

    def forward(self, input0: State, input1: State, factors: Iterator[Tensor] | None) -> Tensor:
        """Return (N, nodes x C, H, W); a reduction cell halves input 1's height and width.

        ``factors`` are drop-path's, in the order of the operations.
        """
        states = [
            State(self._apply_to(state, preprocess))
            for state, preprocess in ((input0, self.preprocess0), (input1, self.preprocess1))
        ]
        for edge in range(0, len(self.operations), EDGES_PER_NODE):
            first, second = (self._edge(each, states, factors) for each in (edge, edge + 1))
            states.append(State(_sum(*first, *second)))
        return torch.cat([states[node].value for node in self.concat], dim=1)

    def _edge(
        self, edge: int, states: list[State], factors: Iterator[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return an operation's output, and drop-path's factor on it, if any."""
        operation = self.operations[edge]
        output = self._apply_to(states[self.sources[edge]], operation)
        if factors is None or isinstance(operation, nn.Identity):
            return output, None
        return output, next(factors).to(output.dtype)

    def _apply_to(self, state: State, operation: nn.Module) -> Tensor:
        unit = self.sharing[operation]
        # As the unit decides: by its batch norm, which may be set apart from the rest.
        shares = unit is not None and self.saves_memory and unit.norm.training
        output: Tensor = operation(state.rectified if shares else state.value)
        return output


class AuxiliaryHead(nn.Module):
    """The training-only classifier on the second reduction cell's output.

    The stride of its pooling, and (a kept slip of the published ImageNet code) a missing batch
    norm, differ by stem. No operation works in place: in very shallow networks the same tensor
    also feeds the main classifier.
    """

    def __init__(self, stem: str, channels: int, num_classes: int) -> None:
        super().__init__()
        cifar = stem == "cifar"
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3 if cifar else 2, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if cifar else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return logits (N, classes); needs a map that shrinks to 1 x 1, see ``auxiliary_fits``."""
        logits: Tensor = self.classifier(self.features(x_NCHW).flatten(1))
        return logits


def auxiliary_fits(image_size: int, stem: str) -> bool:
    """Say whether the auxiliary head's fixed pooling fits square images of this size."""
    size = image_size
    for _ in range(2 if stem == "cifar" else 5):
        size = -(-size // 2)
    pooled = (size - 5) // (3 if stem == "cifar" else 2) + 1
    return size >= 5 and pooled == 2


class Network(nn.Module):
    """The network of a genotype.

    ``stem`` is ``"cifar"`` (full resolution) or ``"imagenet"`` (an eighth). Batch norm: eps 1e-5,
    momentum 0.1. Raises ``ConfigError`` for sizes that cannot be built.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        num_cells: int = 20,
        init_channels: int = 36,
        num_classes: int = 10,
        in_channels: int = 3,
        stem: str = "cifar",
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.genotype = genotype
        width = 3 * init_channels if stem == "cifar" else init_channels
        self.stem = build_stem(stem, in_channels, width)
        outputs = {
            "normal": len(genotype.normal_concat),
            "reduce": len(genotype.reduce_concat),
        }
        plans = plan_cells(num_cells, init_channels, stem=stem, stem_width=width, outputs=outputs)
        cells = [Cell(genotype, plan) for plan in plans]
        self.cells = nn.ModuleList(cells)
        widths = [outputs[plan.cell_type] * plan.channels for plan in plans]
        self.auxiliary_position = 2 * num_cells // 3
        self.auxiliary_head = (
            AuxiliaryHead(stem, widths[self.auxiliary_position], num_classes) if auxiliary else None
        )
        self.classifier = nn.Linear(widths[-1], num_classes)
        self.num_droppable = sum(cell.num_droppable for cell in cells)

    def forward(
        self, x: Tensor, *, drop_path: DropPath | Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits (N, classes); in training with an auxiliary head ``(logits, auxiliary)``.

        ``x`` is (N, in_channels, H, W), normalised. ``drop_path`` acts in training only; a tensor
        holds its factors, drawn already.
        """
        if isinstance(drop_path, DropPath):
            drop_path = self.drop_factors(drop_path, len(x), x.device)
        drops = self.training and drop_path is not None
        factors = iter(drop_path.unbind()) if drops and drop_path is not None else None
        previous, current = (State(output) for output in self.stem(x))
        auxiliary: Tensor | None = None
        for position, cell in enumerate(self.cells):
            output = cell(previous, current, factors)
            previous, current = current, State(output)
            if (
                self.training
                and self.auxiliary_head is not None
                and position == self.auxiliary_position
            ):
                auxiliary = self.auxiliary_head(output)
        # A mean, not AdaptiveAvgPool2d: that one has no deterministic backward on CUDA.
        logits: Tensor = self.classifier(output.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)

    def drop_factors(
        self, drop_path: DropPath, num_images: int, device: torch.device
    ) -> Tensor | None:
        """Return drop-path's factors of one step; None where nothing is dropped."""
        if drop_path.probability == 0.0:
            return None
        return drop_path.factors(self.num_droppable, num_images, device)


def describe_network(
    genotype: Genotype,
    *,
    num_cells: int,
    init_channels: int,
    num_classes: int,
    in_channels: int,
    stem: str,
) -> dict[str, Any]:
    """Return what ``build_described`` needs to build the deployed network (no auxiliary head)."""
    return {
        "genotype": genotype.to_dict(),
        "num_cells": num_cells,
        "init_channels": init_channels,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "stem": stem,
    }


def build_described(description: Any, *, what: str) -> Network | LibraryNetwork:
    """Build the network of ``describe_network``, or of ``describe_library_network``.

    Raises ``DamagedArtifactError``, and ``ConfigError`` where a library has the network no more.
    """
    if isinstance(description, dict) and "model" in description:
        return build_library_network(description, what=what)
    sizes = ("num_cells", "init_channels", "num_classes", "in_channels")
    if not isinstance(description, dict) or set(description) != {"genotype", "stem", *sizes}:
        raise DamagedArtifactError(f"{what}: not a network description")
    for key in sizes:
        if type(description[key]) is not int or not 1 <= description[key] <= 100_000:
            raise DamagedArtifactError(f"{what}: {key}={description[key]!r} is not a size")
    try:
        genotype = Genotype.from_dict(description["genotype"], what=what)
        return Network(
            genotype,
            stem=str(description["stem"]),
            **{key: description[key] for key in sizes},
        )
    except ConfigError as error:
        raise DamagedArtifactError(f"{what}: {error}", hint=error.hint) from None


def load_weights(network: nn.Module, tensors: dict[str, Tensor], *, what: str) -> None:
    """Load ``tensors`` into ``network``; raises as ``check_weights``."""
    check_weights(network, tensors, what=what)
    network.load_state_dict(tensors)


def check_weights(network: nn.Module, tensors: dict[str, Tensor], *, what: str) -> None:
    """Check that names, shapes and types of ``tensors`` are exactly those of ``network``.

    Raises ``DamagedArtifactError`` naming the first tensor that differs.
    """
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise DamagedArtifactError(f"{what}: tensor {name} is missing or unexpected")
        theirs, ours = tensors[name], expected[name]
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise DamagedArtifactError(
                f"{what}: tensor {name} is {theirs.dtype} {tuple(theirs.shape)}, "
                f"not {ours.dtype} {tuple(ours.shape)}"
            )


def load_network(folder: str | Path) -> Network | LibraryNetwork:
    """Return the trained network of a retrain version's folder, verified, in evaluation mode.

    Every file is hashed against the manifest, the manifest against the folder's name.
    Raises ``DamagedArtifactError``.
    """
    version = read_verified(Path(folder))
    description = parse_json(version.read(DESCRIPTION_FILE), what=DESCRIPTION_FILE)
    name, what = f"{folder}: {DESCRIPTION_FILE}", f"{folder}: {WEIGHTS_FILE}"
    tensors = decode_tensors(version.read(WEIGHTS_FILE), what=what)
    # A description may claim any size: only what fits the weights, which are here, takes memory.
    if not isinstance(description, dict) or (
        "model" not in description and description.get("num_cells") not in range(len(tensors))
    ):
        raise DamagedArtifactError(f"{name}: does not fit {WEIGHTS_FILE}")
    with torch.device("meta"):
        check_weights(build_described(description, what=name), tensors, what=what)
    network = build_described(description, what=name)
    network.load_state_dict(tensors)
    return network.eval()

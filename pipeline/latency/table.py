"""A latency table: what the parts of networks take on one device, as a file with its own digest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import canonical_json, digest, parse_json
from d2nas.genotype import Genotype

from ..identity.layout import Claim
from .fitting import Line, Part, total
from .parts import CellShape, OperationShape, Serving, network_cells, operations_in

FORMAT = 1
FEWEST_NETWORKS = 3
"""Of a table: a line through two of them predicts the third."""
_REMEASURE = "measure it anew: d2nas latency measure PRESET"


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole network that was timed: its genotype and size, its latency, and the times' spread."""

    genotype: Genotype
    num_cells: int
    init_channels: int
    milliseconds: float
    spread: float

    def claim(self, serving: Serving) -> Claim:
        """Return the network as it was served."""
        return serving.claim(
            self.genotype, num_cells=self.num_cells, init_channels=self.init_channels
        )


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the parts of networks on a device, and the line to whole networks.

    ``device`` has kind, name and label, of a CPU the threads; ``outside``: stem and classifier by
    ``init_channels``; ``networks``: those that the line was calibrated with.
    """

    device: Mapping[str, Any]
    runtime: str
    serving: Serving
    outside: Mapping[int, float]
    parts: Mapping[Part, float]
    line: Line
    networks: Sequence[Measured]

    def predict(self, genotype: Genotype, *, num_cells: int, init_channels: int) -> float:
        """Return the latency of a network in milliseconds, at the table's batch size.

        Raises ``ConfigError`` for a network of shapes or operations that were not measured.
        """
        return self.line(self.sum_of(genotype, num_cells=num_cells, init_channels=init_channels))

    def sum_of(self, genotype: Genotype, *, num_cells: int, init_channels: int) -> float:
        """Return the sum of a network's parts in milliseconds; raises as ``predict``."""
        outside = self.outside_ms(init_channels)
        parts = self.parts_of(genotype, num_cells=num_cells, init_channels=init_channels)
        for part in parts:
            if part not in self.parts:
                raise ConfigError(
                    f"latency table: {describe_part(part)} is missing", hint=_REMEASURE
                )
        return outside + total(parts, self.parts)

    def outside_ms(self, init_channels: int) -> float:
        """Return the time of stem and classifier at a width; raises ``ConfigError`` for another."""
        if init_channels not in self.outside:
            known = ", ".join(map(str, sorted(self.outside)))
            raise ConfigError(
                f"latency table: no networks of {init_channels} channels, only of {known}",
                hint=f"{_REMEASURE} --set retrain.init_channels={init_channels}",
            )
        return self.outside[init_channels]

    def parts_of(self, genotype: Genotype, *, num_cells: int, init_channels: int) -> list[Part]:
        """Return all cells of a network and all that is computed on their edges."""
        claim = self.serving.claim(genotype, num_cells=num_cells, init_channels=init_channels)
        found: list[Part] = []
        for shape, layout in network_cells(claim, self.serving.image_size):
            found += [shape, *operations_in(shape, layout)]
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the table says."""
        return digest(self._content())

    def require_device(self, kind: str) -> None:
        """Raise ``ConfigError`` where a model will be served by another kind of device."""
        if self.device["kind"] != kind:
            raise ConfigError(
                f"the latency table is of {self.device['label']}, the model is for {kind}",
                hint=f"d2nas latency measure PRESET --device {kind}",
            )

    def to_json(self) -> bytes:
        """Return the file."""
        return canonical_json({**self._content(), "digest": self.digest})

    def _content(self) -> dict[str, Any]:
        cells = [part for part in self.parts if isinstance(part, CellShape)]
        operations = [part for part in self.parts if isinstance(part, OperationShape)]
        return {
            "format": FORMAT,
            "device": dict(self.device),
            "runtime": self.runtime,
            "serving": self.serving.to_dict(),
            "outside": [
                {"init_channels": width, "ms": self.outside[width]}
                for width in sorted(self.outside)
            ],
            "cells": [
                {
                    "cell_type": part.cell_type,
                    "channels": part.channels,
                    "input_channels": list(part.input_channels),
                    "input_sizes": list(part.input_sizes),
                    "ms": self.parts[part],
                }
                for part in sorted(cells)
            ],
            "operations": [
                {
                    "operation": part.operation,
                    "channels": part.channels,
                    "size": part.size,
                    "stride": part.stride,
                    "ms": self.parts[part],
                }
                for part in sorted(operations)
            ],
            "line": {"offset_ms": self.line.offset, "scale": self.line.scale},
            "networks": [
                {
                    "genotype": one.genotype.to_dict(),
                    "num_cells": one.num_cells,
                    "init_channels": one.init_channels,
                    "ms": one.milliseconds,
                    "spread": one.spread,
                }
                for one in self.networks
            ],
        }


def describe_part(part: Part) -> str:
    """Return what a part is, for people."""
    if isinstance(part, OperationShape):
        return (
            f"{part.operation} of {part.channels} channels at {part.size} x {part.size}, stride "
            f"{part.stride},"
        )
    widths = " and ".join(map(str, part.input_channels))
    size = part.input_sizes[1]
    return f"a {part.cell_type} cell of {part.channels} channels on {widths} at {size} x {size}"


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


_Size = Field(ge=1, le=1_000_000)
_Milliseconds = Field(ge=0.0, le=1e7)


class _Device(_Record):
    kind: Literal["cpu", "cuda"]
    name: str
    label: str
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    driver: str | None = None


class _Serving(_Record):
    image_size: int = _Size
    in_channels: int = _Size
    num_classes: int = _Size
    stem: str
    opset: int
    input_type: str
    precision: str
    batch: int = _Size


class _Outside(_Record):
    init_channels: int = _Size
    ms: float = _Milliseconds


class _Cell(_Record):
    cell_type: str
    channels: int = _Size
    input_channels: list[int] = Field(min_length=2, max_length=2)
    input_sizes: list[int] = Field(min_length=2, max_length=2)
    ms: float = _Milliseconds


class _Operation(_Record):
    operation: str
    channels: int = _Size
    size: int = _Size
    stride: int = _Size
    ms: float = _Milliseconds


class _Line(_Record):
    offset_ms: float
    scale: float = Field(gt=0.0)


class _Network(_Record):
    genotype: dict[str, Any]
    num_cells: int = Field(ge=1, le=1_000)
    init_channels: int = _Size
    ms: float = Field(gt=0.0, le=1e7)
    spread: float = Field(ge=0.0)


class _File(_Record):
    format: int
    digest: str
    device: _Device
    runtime: str
    serving: _Serving
    outside: list[_Outside]
    cells: list[_Cell]
    operations: list[_Operation]
    line: _Line
    networks: list[_Network] = Field(min_length=FEWEST_NETWORKS)


def read_table(data: bytes, *, what: str) -> LatencyTable:
    """Read a table from its file; ``what`` names it.

    Raises ``DamagedArtifactError`` for what is no table, and for one whose digest is not its own.
    """
    values = parse_json(data, what=what)
    if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
        raise DamagedArtifactError(
            f"{what}: format {values['format']!r} is not supported", hint=_REMEASURE
        )
    try:
        found = _File.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "file"
        raise DamagedArtifactError(
            f"{what}: no latency table ({where}: {problem['msg']})", hint=_REMEASURE
        ) from None
    try:
        table = _table_of(found)
    except ConfigError as error:
        raise DamagedArtifactError(f"{what}: no latency table ({error})") from None
    for one in table.networks:
        if not _predicted(table, one) > 0.0:
            raise DamagedArtifactError(
                f"{what}: no latency table (a network of no time is predicted)", hint=_REMEASURE
            )
    if table.digest != found.digest:
        raise DamagedArtifactError(
            f"{what}: its content is not that of its digest: it was changed", hint=_REMEASURE
        )
    return table


def _predicted(table: LatencyTable, network: Measured) -> float:
    """Return the shorter of a network's prediction and its parts' sum; 1 where parts are missing,
    which is told where they are asked for.
    """
    sizes = {"num_cells": network.num_cells, "init_channels": network.init_channels}
    try:
        total = table.sum_of(network.genotype, **sizes)
    except ConfigError:
        return 1.0
    return min(total, table.line(total))


def _table_of(found: _File) -> LatencyTable:
    parts: dict[Part, float] = {}
    for cell in found.cells:
        first, second = cell.input_channels
        before, size = cell.input_sizes
        shape = CellShape(cell.cell_type, cell.channels, (first, second), (before, size))
        parts[shape] = cell.ms
    for one in found.operations:
        parts[OperationShape(one.operation, one.channels, one.size, one.stride)] = one.ms
    return LatencyTable(
        device=found.device.model_dump(exclude_none=True),
        runtime=found.runtime,
        serving=Serving(**found.serving.model_dump()),
        outside={one.init_channels: one.ms for one in found.outside},
        parts=parts,
        line=Line(found.line.offset_ms, found.line.scale),
        networks=[
            Measured(
                Genotype.from_dict(one.genotype),
                one.num_cells,
                one.init_channels,
                one.ms,
                one.spread,
            )
            for one in found.networks
        ],
    )

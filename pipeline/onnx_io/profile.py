"""Profile of a model: ONNX Runtime's own times, by cell and edge.

Nodes are found by their names (``node_names``). ONNX Runtime rewrites the graph before it runs it:

- a convolution fused with the ReLU or addition after it bears the latter's name, and is put back
  where the convolution stands
- layouts are changed between nodes (ReorderOutput, ReorderInput), which is counted where the data
  comes from, or what it is changed for; this share is told as ``by_neighbour``
- a kernel without float16 becomes one in float32, whose name says so (InsertedPrecisionFreeCast_),
  with casts around it: these are counted like changed layouts
- whatever remains is ``unattributed``, and never spread over the rest

Kernels are timed one by one, which takes time itself: the sum is above the model's latency where
kernels are small. Only the CPU is profiled: on CUDA, ONNX Runtime times launches, not work.
"""

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from d2nas.devices import CPU_PROVIDER
from d2nas.errors import ConfigError

from . import INPUT_NAME, OUTPUT_NAME
from .devices import Device, check_provider
from .model_file import ModelDescription, check_model
from .runtime import LOG_FATAL, captured_log, load_runtime
from .session import open_session

WARMUP_RUNS = 3
_SUFFIX = re.compile(r"(_nchwc|_token_\d+)$")
_PREFIX = re.compile(r"^(Inserted(PrecisionFree)?Cast_)+")
_KERNEL = "_kernel_time"
_CELL = re.compile(r"cell\d+")
_EDGE = re.compile(r"cell\d+/node\d+/edge\d+_(\w+)")
_MOVES = ("ReorderInput", "ReorderOutput", "Cast")


@dataclass(frozen=True)
class KernelTime:
    """One kernel's median time in a run, and where in the network it belongs."""

    name: str
    operator: str
    microseconds: float
    place: str | None
    """Such as ``stem``, ``cell03/node2/edge1_sep_conv_3x3``, ``cell03/node2``; None: unknown."""
    by_neighbour: bool = False


@dataclass(frozen=True)
class Profile:
    """Kernel times of a model on a device, per run of ``batch`` images."""

    device: Device
    batch: int
    runs: int
    kernels: tuple[KernelTime, ...]

    @property
    def total_ms(self) -> float:
        """Sum of the kernels' median times."""
        return sum(kernel.microseconds for kernel in self.kernels) / 1e3

    def by_cell(self) -> list[dict[str, Any]]:
        """Return rows of stem, cells and classifier, in their order in the network."""
        return self._rows("cell", lambda place: place.split("/")[0], in_order=True)

    def by_edge(self) -> list[dict[str, Any]]:
        """Return rows of every place, the slowest first."""
        return self._rows("place", lambda place: place)

    def by_operation(self) -> list[dict[str, Any]]:
        """Return rows of the genotype's operations and the other parts, the slowest first."""
        return self._rows("operation", operation_of)

    def _rows(
        self, column: str, name: Callable[[str], str], *, in_order: bool = False
    ) -> list[dict[str, Any]]:
        times: dict[str, float] = defaultdict(float)
        for kernel in self.kernels:
            if kernel.place is not None:
                times[name(kernel.place)] += kernel.microseconds / 1e3
        order = sorted(times, key=_network_order if in_order else lambda key: (-times[key], key))
        return [{column: key, "ms": times[key], "share": self._share(times[key])} for key in order]

    def _share(self, milliseconds: float) -> float:
        return milliseconds / self.total_ms if self.total_ms else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        unknown = sum(k.microseconds for k in self.kernels if k.place is None) / 1e3
        moved = sum(k.microseconds for k in self.kernels if k.by_neighbour) / 1e3
        return {
            "device": self.device.label,
            "kind": self.device.kind,
            "provider": CPU_PROVIDER,
            "batch": self.batch,
            "runs": self.runs,
            "total_ms": self.total_ms,
            "unattributed": {"ms": unknown, "share": self._share(unknown)},
            "by_neighbour": {"ms": moved, "share": self._share(moved)},
            "cells": self.by_cell(),
            "places": self.by_edge(),
            "operations": self.by_operation(),
        }


def operation_of(place: str) -> str:
    """Return the operation of an edge, or what else a place is: its last part without numbers."""
    edge = _EDGE.fullmatch(place)
    if edge is not None:
        return edge[1]
    if _CELL.fullmatch(place):
        return "concat"
    last = place.rpartition("/")[2]
    return {"node": "add"}.get(last.rstrip("0123456789"), last.rstrip("0123456789"))


def profile_model(
    model: bytes,
    *,
    batch: int,
    runs: int = 20,
    device: str = "cpu",
    num_threads: int | None = None,
) -> Profile:
    """Run ``model`` on ``batch`` images ``runs`` times and time each kernel.

    Raises ``ConfigError`` for another device than the CPU and senseless numbers, and what
    ``open_session`` raises. No file is left behind.
    """
    if device != "cpu":
        raise ConfigError(
            f"a profile on {device} is not possible: ONNX Runtime times launches there, not work",
            hint="d2nas bench profile profiles the CPU; d2nas validate measures the GPU's latency",
        )
    if batch < 1 or runs < 1:
        raise ConfigError("a profile needs a batch and a number of runs above 0")
    # The device is named by a session that was checked; the same options, and the profile's.
    checked = open_session(model, device=device, num_threads=num_threads)
    images = _images(batch, checked.description)
    with tempfile.TemporaryDirectory(prefix="d2nas-profile-") as folder:
        events = checked.attempt(lambda: _events(model, images, runs, checked.device, Path(folder)))
        optimized = onnx.load(str(Path(folder) / "optimized.onnx"), load_external_data=False)
    graph = check_model(model, what="model").graph
    kernels = attribute(_medians(events, WARMUP_RUNS + runs), graph.node, optimized.graph.node)
    return Profile(checked.device, batch, runs, tuple(kernels))


def _events(
    model: bytes, images: NDArray[Any], runs: int, device: Device, folder: Path
) -> list[dict[str, Any]]:
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.intra_op_num_threads = getattr(device, "num_threads", 1)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    with captured_log():
        session = runtime.InferenceSession(
            model, options, providers=[CPU_PROVIDER], enable_fallback=0
        )
        check_provider(session, CPU_PROVIDER)
        for _ in range(WARMUP_RUNS + runs):
            session.run([OUTPUT_NAME], {INPUT_NAME: images})
        written = Path(session.end_profiling())
    events: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))
    return [
        event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)
    ]


def _images(batch: int, description: ModelDescription) -> NDArray[Any]:
    draw = np.random.default_rng(0)
    shape = (batch, *description.array_shape)
    if description.input_type == "uint8":
        return draw.integers(0, 256, shape, dtype=np.uint8)
    return draw.standard_normal(shape, dtype=np.float32)


def _medians(events: Iterable[Mapping[str, Any]], runs: int) -> list[tuple[str, str, float]]:
    """Return (node, operator, median microseconds of the runs after the warm-up)."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event["name"].removesuffix(_KERNEL)
        times[name, event["args"].get("op_name", "")].append(float(event["dur"]))
    medians = []
    for (name, operator), taken in times.items():
        # Nodes that share a name are one entry: their times of a run are added.
        each = max(1, len(taken) // runs)
        summed = [sum(taken[start : start + each]) for start in range(0, len(taken), each)]
        medians.append((name, operator, statistics.median(summed[WARMUP_RUNS:] or summed)))
    return medians


def attribute(
    times: Sequence[tuple[str, str, float]],
    nodes: Iterable[onnx.NodeProto],
    optimized: Iterable[onnx.NodeProto],
) -> list[KernelTime]:
    """Give each (node, operator, microseconds) of the ``optimized`` graph its place.

    ``nodes`` are those of the model as exported, whose names say the place.
    """
    original = {node.name: node for node in nodes}
    makers = {name: node for node in original.values() for name in node.output}
    rewritten = list(optimized)
    counts: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in rewritten:
        counts[node.name].append(node)

    def place(name: str, operator: str) -> str | None:
        node = original.get(name) or original.get(_PREFIX.sub("", _SUFFIX.sub("", name)))
        if node is None or "/" not in node.name:
            return None
        if operator.endswith("Conv") and node.op_type != "Conv":
            sources = [makers[source] for source in node.input if source in makers]
            fused = [source for source in sources if source.op_type == "Conv"]
            node = fused[0] if fused else node
        return str(node.name.rpartition("/")[0])

    def neighbours(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        before = [other for other in rewritten if set(node.input) & set(other.output)]
        after = [other for other in rewritten if set(node.output) & set(other.input)]
        return [*after, *before] if node.op_type == "ReorderInput" else [*before, *after]

    found = []
    for name, operator, microseconds in times:
        where, moved = place(name, operator), operator == "Cast"
        if where is None and operator in _MOVES and len(counts[name]) == 1:
            near = [place(other.name, other.op_type) for other in neighbours(counts[name][0])]
            where, moved = next((other for other in near if other is not None), None), True
        found.append(KernelTime(name, operator, microseconds, where, moved and where is not None))
    return found


def _network_order(name: str) -> tuple[int, str]:
    return ({"stem": 0, "classifier": 2}.get(name, 1), name)

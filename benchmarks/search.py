"""Times a search step and a sub-network pass, method against method, on made-up images.

A step is both halves with both optimizers. A pass is the forward and backward of one sub-network on
one batch: the unit in which methods that run different numbers of them are compared.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from d2nas.config import Config, DataConfig, SearchConfig
from d2nas.config.registry import search_methods
from d2nas.costs import CellCosts
from d2nas.data.images import ImageData, ImageSet, load_data
from d2nas.files.text_files import read_space
from d2nas.methods.base import Method
from d2nas.methods.single_path import SinglePath
from d2nas.nn.operations import Zero
from d2nas.nn.units import NormalizedUnit, keep_everything
from d2nas.randomness import generator
from d2nas.train.loop import torch_device
from d2nas.train.search import Search, search_step

from .pairs import TimedWork, compare

IMAGE_SIZE, CLASSES = 32, 10
EPOCH_STEPS = 2
GOAL = 0.75
"""D2NAS's time per pass over that of GDAS, at most."""

_GROUPS = {
    "Python functions": ("normalizedsteps", "gatedsum", "evaluate_function", "profiler"),
    "convolution": ("conv", "mkldnn", "aten::mm"),  # 1x1 ones are matrix products on a CPU
    "batch norm": ("batch_norm", "var_mean"),
    "pooling": ("pool",),
    "optimizer": ("_fused", "_foreach", "vector_norm", "optimizer"),
    "layout and copies": ("copy", "clone", "cat", "pad", "fill", "zero", "empty", "contiguous"),
    "element by element": ("add", "mul", "div", "sub", "relu", "threshold", "clamp", "sum", "sqrt"),
}
"""Group to parts of operators' names; the first group that has one counts."""


class StepRunner:
    """A search of one method that takes one step after the other."""

    def __init__(
        self, config: SearchConfig, *, size: int = IMAGE_SIZE, published: bool = False
    ) -> None:
        """Begin a search; ``published``: by PyTorch's own backward, as the published codes run."""
        self.device = torch_device(config.device)
        data = made_images(EPOCH_STEPS * config.batch_size, size)
        self.search = Search(
            config,
            read_space(config.space),
            data,
            seed=0,
            device=self.device,
            augmentation=DataConfig(),
        )
        self.search.supernet.train()
        if published:
            keep_everything(self.search.supernet)
        self.taken = 0

    def run(self, steps: int) -> None:
        """Take ``steps`` steps and wait until they are done."""
        with self.search.arithmetic.pinned():
            for _ in range(steps):
                search_step(self.search, self.taken % self.search.num_steps)
                self.taken += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, name: str, steps: int) -> TimedWork:
        """Return ``steps`` steps as work to be timed."""
        search = self.search
        architecture, weights = search.method.passes
        halves = steps if search.method.architecture_interval == 1 else steps // EPOCH_STEPS
        passes = halves * architecture + steps * weights
        return TimedWork(name, lambda: self.run(steps), {"step": steps, "pass": passes})


def search_of(config: Config, costs: CellCosts | None = None) -> Search:
    """Return the search that a configuration describes, before its first step, on the CPU."""
    return Search(
        config.search,
        read_space(config.search.space),
        load_data(config.data, seed=config.run.seed, default_root=Path.cwd()),
        seed=config.run.seed,
        device=torch.device("cpu"),
        augmentation=config.data,
        costs=costs,
    )


def made_images(half: int, size: int) -> ImageData:
    """Return random images, ``half`` for each of the two halves."""
    numbers = generator(0, "bench-images", 0)
    shape = (2 * half + CLASSES, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=numbers)
    labels = torch.arange(len(images)) % CLASSES

    def part(start: int, stop: int) -> ImageSet:
        return ImageSet(images[start:stop], labels[start:stop])

    return ImageData(
        name="made-up",
        class_names=tuple(str(label) for label in range(CLASSES)),
        train=part(0, 2 * half),
        weight_half=part(0, half),
        arch_half=part(half, 2 * half),
        test=part(2 * half, len(images)),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        digest="0" * 64,
        image_size=size,
        channels=3,
    )


def compare_methods(
    config: SearchConfig, pairs: int, *, full: bool, size: int = IMAGE_SIZE
) -> Iterator[list[dict[str, Any]]]:
    """Compare D2NAS with GDAS, with one draw a half, which shares nothing, and with all of
    ``config.draws``; these with the same draws that share nothing; and other methods with D2NAS.
    ``full``: all methods that train by steps, and each as published with itself. Yields the rows of
    each comparison.
    """

    def runner(method: str, *, published: bool = False, **changes: Any) -> StepRunner:
        update = {"method": method, "warmup_epochs": 0, **changes}
        return StepRunner(config.model_copy(update=update), size=size, published=published)

    gdas, single = runner("gdas"), runner("d2nas", draws=1)
    check_same_code(single.search.method, gdas.search.method)
    one = single.timed("d2nas, 1 draw", 2)
    rival = gdas.timed("gdas", 2)
    yield compare(one, rival, pairs)
    shared = runner("d2nas").timed(f"d2nas, {config.draws} draws", 1)
    yield compare(shared, rival, pairs)
    apart = runner("d2nas")
    assert isinstance(apart.search.method, SinglePath)
    apart.search.method.shares_stem = False
    yield compare(shared, apart.timed("the same, nothing shared", 1), pairs)
    for method in others(full=full):
        of_one = runner(method, draws=1)
        # Where not every step has an architecture half, one in an epoch has.
        steps = 1 if of_one.search.method.architecture_interval == 1 else EPOCH_STEPS
        yield compare(of_one.timed(method, steps), single.timed("d2nas, 1 draw", steps), pairs)
        if full:
            published = runner(method, draws=1, published=True)
            work = published.timed(f"{method}, as published", steps)
            yield compare(work, of_one.timed(method, steps), pairs)


def others(*, full: bool) -> list[str]:
    """Return the methods that are compared with D2NAS, in the order of their names."""
    if not full:
        return ["entangled"]
    return sorted(
        name
        for name in search_methods.names()
        if name != "d2nas" and getattr(search_methods.find(name), "passes", None) != (0, 0)
    )


def check_same_code(first: Method, second: Method) -> None:
    """Assert that two methods' supernets are made of the same operation code.

    Only ``none`` may be missing from one of them: D2NAS does not search it.
    """
    codes = [
        code_of(method.supernet) - {f"{Zero.__module__}.{Zero.__name__}"}
        for method in (first, second)
    ]
    assert codes[0] == codes[1], f"other operation code: {sorted(codes[0] ^ codes[1])}"


def code_of(supernet: nn.Module) -> set[str]:
    """Return the names of all classes that a supernet's modules and their layers are of."""
    kinds = set[type]()
    for module in supernet.modules():
        kinds.add(type(module))
        if isinstance(module, NormalizedUnit):
            kinds |= {type(layer) for layer in module.layers}
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}


def passes_goal(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Return D2NAS's ratio per pass to GDAS, and that of draws that share work to the same draws
    that do not, with their limits.
    """
    per_pass = [row for row in rows if row["unit"] == "pass"]
    alone = next(row for row in per_pass if row["against"] == "gdas")
    shared = next(row for row in per_pass if "nothing shared" in row["against"])
    return [
        (f"{row['case']} / {row['against']}", row["ratio_median"], limit)
        for row, limit in ((alone, GOAL), (shared, 1.0))
    ]


def profile_step(config: SearchConfig, *, size: int = IMAGE_SIZE) -> list[dict[str, Any]]:
    """Return where the time of one step goes: operators by their own time, most first.

    Its own time is an operator's without that of the operators that it calls.
    """
    stepper = StepRunner(config.model_copy(update={"warmup_epochs": 0}), size=size)
    stepper.run(1)
    on_cuda = stepper.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        stepper.run(1)
    found = [
        (
            (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1000,
            event.key,
            event.count,
        )
        for event in profiler.key_averages()
    ]
    total = sum(milliseconds for milliseconds, _, _ in found)
    return [
        {
            "operator": name,
            "group": _group_of(name),
            "calls": calls,
            "self_ms": milliseconds,
            "share": milliseconds / total,
        }
        for milliseconds, name, calls in sorted(found, reverse=True)
    ]


def _group_of(operator: str) -> str:
    name = operator.lower()
    for group, words in _GROUPS.items():
        if any(word in name for word in words):
            return group
    return "other"


def group_shares(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return each group's share of the step's time, largest first."""
    shares: dict[str, float] = {}
    for row in rows:
        shares[row["group"]] = shares.get(row["group"], 0.0) + row["share"]
    return dict(sorted(shares.items(), key=lambda item: -item[1]))

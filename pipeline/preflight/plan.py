"""Plan of a run: stages, steps, and estimates of time, memory and disk.

Time: a few real steps of each loop on a few made-up images of the real shape, scaled up, with the
range to expect. Memory: the live bytes of one step that allocates and computes nothing. Both are
estimates and shown as such.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from d2nas.config import Config, DataConfig, SearchConfig, fewest_draws
from d2nas.config.effects import without_effect
from d2nas.config.registry import data_sets
from d2nas.data.sizes import ImageSize, folder_image_size, image_size
from d2nas.data.sources import data_folder, list_config, list_usable_images
from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES, SearchSpace, node_edges

from ..latency.limits import search_costs
from ..running.file_hashes import FileHashes
from ..running.runner import Runner
from ..stages import BY_NAME, KEPT_CHECKPOINTS, stages_of_run
from ..stages.stage import bytes_to_write
from .plan_times import DAY, Seconds, duration, range_in_words, shorter_settings, time_steps

COLUMNS = ("stage", "state", "steps", "time", "peak memory", "disk", "note")
TYPICAL = "DARTS_V2"
"""The cell of a network that is timed before a search has found one."""
MEASURED_PIXELS = 2**13
"""Pixels of a measured batch; a larger configured batch is scaled from it and a quarter of it."""


@dataclass(frozen=True)
class DataShape:
    """Sizes of a data set that an estimate needs."""

    num_train: int
    channels: int
    image_size: int
    num_classes: int


def data_shape(config: DataConfig) -> DataShape:
    """Return the shape of the configured data set, reading no more of images than headers.

    Raises ``ConfigError`` for a folder that cannot be used.
    """
    data_set = data_sets.find(config.name)
    if not data_set.is_folder:
        num_train = data_set.num_train or 0
        num_train -= 0 if data_set.num_test else round(num_train * config.test_fraction)
        channels, num_classes = data_set.channels or 0, data_set.num_classes or 0
    else:
        listing = list_config(config, data_folder())
        num_train = len(listing.train)
        if listing.validation and listing.test:
            num_train += len(listing.validation)
        elif not listing.validation and not listing.test:
            num_train -= round(num_train * config.test_fraction)
        num_classes = len(listing.class_names)
        pictures = folder_image_size(config, listing).pictures
        channels = 1 if pictures is not None and pictures.grey == len(pictures.headers) else 3
    size = config.image_size or image_size(config, data_folder()).size
    return DataShape(num_train, config.channels or channels, size, num_classes)


def make_plan(
    runner: Runner, run: str, config: Config, estimate: "Estimates | None" = None
) -> dict[str, Any]:
    """Return the plan as JSON values; a stage after one that must run must run too.

    ``estimate``: of this configuration, where it has been timed already.
    """
    sizes = image_size(config.data, data_folder())
    config = runner.settled(config, sizes)
    digest = runner.data_digest(config)
    parents: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    estimate = estimate or Estimates(config)
    for stage in stages_of_run(config):
        roles = BY_NAME[stage].parents_of(config)
        known = all(role in parents for role in roles)
        inputs = {role: parents[role] for role in roles} if known else {}
        version = runner.current(run, stage, config, inputs, digest) if known else None
        if version is not None:
            parents[stage] = version
            rows.append({"stage": stage, "state": "up to date", "ref": version.reference})
            continue
        done = runner.resumable_step(run, stage, config, inputs, digest) if known else 0
        state = f"continues at step {done}" if done else "runs"
        rows.append({"stage": stage, "state": state, **estimate.of(stage, done)})
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    return {
        "run": run,
        "data": _data(runner, config.data, sizes),
        "stages": rows,
        "executes": [row["stage"] for row in rows if row["state"] != "up to date"],
        "seconds": seconds,
        "estimated": True,
        "shorter": estimate.shorter() if seconds > DAY else [],
    }


def _data(runner: Runner, config: DataConfig, sizes: ImageSize) -> dict[str, Any]:
    """Return what is told of the pictures, the damaged ones left out among it."""
    told = sizes.to_dict()
    if data_sets.find(config.name).is_folder and config.on_error == "skip":
        # Which they are is known since the digest: nothing is decoded again.
        listing = list_usable_images(config, data_folder(), cache=FileHashes(runner.store))
        told["notes"] += [line for line in (listing.damaged_line(),) if line is not None]
    return told


def plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the plan's stages as cells for ``COLUMNS``, and a line of totals."""
    rows = [
        (
            row["stage"],
            row["state"],
            str(row.get("steps", "")),
            duration(row["seconds"]) if "seconds" in row else "",
            _mebibytes(row.get("peak_bytes")),
            _mebibytes(row.get("disk_bytes")),
            str(row.get("ref", _note(row))),
        )
        for row in plan["stages"]
    ]
    disk = sum(row.get("disk_bytes", 0) for row in plan["stages"])
    total = duration(plan["seconds"]) if plan["executes"] else "nothing to do"
    whole = sum((_range_of(row) for row in plan["stages"]), start=Seconds(0.0, 0.0, 0.0))
    note = range_in_words(whole) if plan["executes"] else ""
    return [*rows, ("total", "estimate", "", total, "", _mebibytes(disk), note)]


def _note(row: Mapping[str, Any]) -> str:
    note = str(row.get("note", ""))
    return f"{range_in_words(_range_of(row))}, {note}" if "seconds_range" in row else note


class Estimates:
    """Measures what it is asked for, once per stage; a retraining with the cell that is given, or
    the library's network that the configuration names.
    """

    def __init__(self, config: Config, genotype: Genotype | None = None) -> None:
        self._config = config
        library = config.derive.model
        self._architecture = library or genotype or Genotype.published(TYPICAL)
        self._timed = library or (TYPICAL if genotype is None else "the derived cell")
        self._shape = data_shape(config.data)
        self._pass: Seconds | None = None
        self._step: Seconds | None = None
        self._searched: dict[str, Any] | None = None
        self._trained: dict[str, Any] | None = None
        self._pass_unit = (1, 1)
        self._closing: Callable[[int, int, int], int] = lambda epoch, epochs, steps: 0
        self._halves: Callable[[int], int] = lambda steps: steps
        self._schedule: Callable[[int, int], tuple[int, int]] = lambda epoch, epochs: (
            epoch,
            epochs,
        )

    def of(self, stage: str, done: int) -> dict[str, Any]:
        """Return steps, seconds, bytes and a note for a stage that has ``done`` steps behind."""
        measures = {"search": self._search, "retrain": self._retrain}
        if self._short_trainings(self._config):
            measures["derive"] = self._derive
        measure = measures.get(stage)
        if measure is None:
            seconds = BY_NAME[stage].rough_seconds(self._config)
            return {"steps": 1, "seconds": seconds, "note": "time by rule of thumb"}
        estimate = measure()
        steps = estimate["steps"]
        part = max(0, steps - done) / steps
        estimate["seconds"] *= part
        if "seconds_range" in estimate:
            estimate["seconds_range"] = [part * end for end in estimate["seconds_range"]]
        return estimate

    def seconds(self) -> float:
        """Return the time of a whole run of which nothing is done yet."""
        return sum(float(self.of(one, 0)["seconds"]) for one in stages_of_run(self._config))

    def of_epochs(self, config: Config) -> "Estimates":
        """Return the estimates of a configuration of other epochs, from what was timed so far."""
        other = copy.copy(self)
        other._config = config
        return other

    def _search(self) -> dict[str, Any]:
        if without_effect(self._config, ["search.epochs"]):
            return {"steps": 1, "seconds": 1.0, "note": "a random cell: nothing is trained"}
        if self._searched is None:
            self._searched = self._time_search()
        assert self._pass is not None  # it has just been timed
        steps, passes = self._search_work(self._config)
        return {"steps": steps, "passes": passes, **_times(self._pass * passes), **self._searched}

    def _time_search(self) -> dict[str, Any]:
        from d2nas.train.search import Search, search_step

        config = self._config.search
        made: list[Search] = []
        # The fewest draws and no warm-up: a pass of the measured step costs what any other does
        # (the mean of both halves where one has forward passes alone).
        is_read = not without_effect(self._config, ["search.estimator"])
        draws = fewest_draws(config.estimator) if is_read else 1
        shape = self._shape
        costs = search_costs(
            self._config,
            channels=shape.channels,
            image_size=shape.image_size,
            num_classes=shape.num_classes,
        )

        def stepper(batch: int) -> Callable[[int], None]:
            one = config.model_copy(
                update={"draws": draws, "batch_size": batch, "warmup_epochs": 0, "epochs": 1}
            )
            search = Search(
                one, *self._search_arguments(), costs=costs, **self._options(config.device)
            )
            search.supernet.train()
            made.append(search)

            def step(_number: int) -> None:
                with search.arithmetic.pinned():
                    search_step(search, 0)  # which has both halves

            return step

        timing = time_steps(self._batches(config.batch_size), stepper)
        search = made[-1]
        architecture, weights = search.method.passes
        self._pass_unit = architecture // draws, weights // draws
        self._pass = timing.of(config.batch_size) * (1 / (architecture + weights))
        self._closing, self._schedule = search.method.closing_passes, search.method.schedule
        self._halves = search.method.architecture_halves
        num_weights = sum(parameter.numel() for parameter in search.supernet.parameters())
        count = "one pass" if draws == 1 else f"{draws} passes"
        return {
            "peak_bytes": self._peak_of_supernet(config.batch_size) + 12 * num_weights,
            "disk_bytes": bytes_to_write(search),
            "note": f"timed with {count} of {timing.words}",
        }

    def _search_work(self, config: Config) -> tuple[int, int]:
        """Return the steps of a search, and its sub-network passes."""
        search = config.search
        half = self._num_train(config) * (1 - config.data.validation_fraction)
        epoch = max(1, int(half * search.image_fraction) // search.batch_size)
        draws = 1 if without_effect(config, ["search.draws"]) else search.draws
        architecture, weights = (passes * draws for passes in self._pass_unit)
        moving = sum(self._moves(one, search) for one in range(search.epochs))
        passes = epoch * weights * search.epochs + self._halves(epoch) * architecture * moving
        passes += sum(self._closing(one, search.epochs, epoch) for one in range(search.epochs))
        return epoch * search.epochs, passes

    def _moves(self, epoch: int, search: SearchConfig) -> bool:
        """Return whether the architecture learns in an epoch."""
        return self._schedule(epoch, search.epochs)[0] >= search.warmup_epochs

    def _num_train(self, config: Config) -> int:
        """Return how many training images the configuration leaves."""
        data = config.data
        if data.train_images is not None:
            return data.train_images
        held_out = data.held_out_images if data.evaluation == "held-out" else 0
        return max(1, self._shape.num_train - held_out)

    def _derive(self) -> dict[str, Any]:
        trained = self._retrain()
        assert self._step is not None  # it has just been timed
        trainings = self._short_trainings(self._config)
        steps = self._derive_steps(self._config)
        # Each is judged on the other half of the images: forward passes, about a third of a step.
        half = self._num_train(self._config) * self._config.data.validation_fraction
        judged = trainings * half / self._config.retrain.batch_size / 3
        if self._config.derive.budget is None:
            del trained["disk_bytes"]  # no checkpoints
        return trained | {
            "steps": steps,
            **_times(self._step * (steps + judged)),
            "note": f"{trainings} short trainings, {trained['note']}",
        }

    def _short_trainings(self, config: Config) -> int:
        """Return how many short trainings compare cells."""
        derive = config.derive
        if derive.budget is not None:
            return derive.budget
        return derive.candidates if derive.compares and derive.rank_by == "training" else 0

    def _derive_steps(self, config: Config) -> int:
        half = self._num_train(config) * (1 - config.data.validation_fraction)
        epoch = max(1, int(half) // config.retrain.batch_size)
        return epoch * config.derive.rank_epochs * self._short_trainings(config)

    def _retrain(self) -> dict[str, Any]:
        if self._trained is None:
            self._trained = self._time_retraining()
        assert self._step is not None  # it has just been timed
        config, steps = self._config.retrain, self._retrain_steps(self._config)
        # The images held out are predicted after every epoch: a third of a step, about.
        judged = config.epochs * self._num_held_out(self._config) / config.batch_size / 3
        return {"steps": steps, **_times(self._step * (steps + judged)), **self._trained}

    def _time_retraining(self) -> dict[str, Any]:
        from d2nas.data.sizes import stem_for
        from d2nas.train.retrain import Retraining, train_step

        config = self._config.retrain
        made: list[Retraining] = []

        def stepper(batch: int) -> Callable[[int], None]:
            alone = {"batch_size": batch, "accumulate": 1, "patience": None, "teacher": None}
            # Published weights take as long as others, and would be downloaded.
            small = config.model_copy(update={**alone, "pretrained": False})
            retraining = Retraining(
                small, self._architecture, self._data(), **self._options(config.device)
            )
            retraining.network.train()
            made.append(retraining)

            def step(number: int) -> None:
                with retraining.arithmetic.pinned():
                    train_step(retraining, number)

            return step

        stem = stem_for(config.stem, self._shape.image_size)
        timing = time_steps(self._batches(config.micro_batch), stepper)
        retraining = made[-1]
        self._step = timing.of(config.micro_batch) * (config.batch_size / config.micro_batch)
        weights = sum(parameter.numel() for parameter in retraining.network.parameters())
        teacher = "" if config.teacher is None else ", without the teacher's answers"
        largest = -(-config.batch_size // config.accumulate)
        others = (config.batch_size - largest) * self._shape.channels * self._shape.image_size**2
        may_stop = "" if config.patience is None else ", at most"
        best = 0 if config.patience is None else 4 * weights  # kept beside the newest
        peak = self._peak_of_network(largest, stem)
        known = {} if peak is None else {"peak_bytes": peak + 4 * others + 12 * weights + best}
        unknown = ", peak memory not estimated" if peak is None else ""
        return {
            **known,
            "disk_bytes": bytes_to_write(retraining) + (KEPT_CHECKPOINTS + 1) * best,
            "note": f"timed with {self._timed} and {timing.words}{teacher}{may_stop}{unknown}",
        }

    def _retrain_steps(self, config: Config) -> int:
        num_images = self._num_train(config) - self._num_held_out(config)
        return max(1, num_images // config.retrain.batch_size) * config.retrain.epochs

    def _num_held_out(self, config: Config) -> int:
        """Return how many training images decide which epoch of the retraining is the best."""
        if config.retrain.patience is None:
            return 0
        return round(self._num_train(config) * config.retrain.validation_fraction)

    def shorter(self) -> list[dict[str, Any]]:
        """Return settings that shorten the stages that were timed; see ``shorter_settings``."""

        def seconds_of(config: Config, search: float, retrain: float) -> float:
            found = 0.0
            if self._pass is not None:
                found += self._pass.expected * search * self._search_work(config)[1]
            if self._step is not None:
                steps = self._derive_steps(config) + self._retrain_steps(config)
                found += self._step.expected * retrain * steps
            return found

        return shorter_settings(self._config, self._num_train(self._config), seconds_of)

    def _batches(self, configured: int) -> list[int]:
        """Return the batch sizes to time: the configured one where it is small, else two."""
        most = self._measured_batch()
        if configured <= most:
            return [configured]
        return sorted({max(2, most // 4), most})

    def _measured_batch(self) -> int:
        return max(2, MEASURED_PIXELS // self._shape.image_size**2)

    def _options(self, device: str) -> dict[str, Any]:
        from d2nas.train.loop import torch_device

        return {
            "seed": 0,
            "device": torch_device(device),
            "augmentation": self._config.data,
        }

    def _search_arguments(self) -> tuple[Any, Any]:
        from d2nas.files.text_files import read_space

        return read_space(self._config.search.space), self._data()

    def _data(self) -> Any:
        """Return made-up images of the real shape: two measured batches of them."""
        import torch

        from d2nas.data.images import ImageData, ImageSet

        shape = self._shape
        num_images = 2 * self._measured_batch()
        size = (num_images, shape.channels, shape.image_size, shape.image_size)
        pixels = torch.arange(size[0] * size[1] * size[2] * size[3]) % 251
        labels = torch.arange(num_images) % shape.num_classes
        images = ImageSet(pixels.reshape(size).to(torch.uint8), labels)
        return ImageData(
            name="estimate",
            class_names=tuple(str(index) for index in range(shape.num_classes)),
            train=images,
            weight_half=images,
            arch_half=images,
            test=images,
            mean=(0.5,) * shape.channels,
            std=(0.25,) * shape.channels,
            digest="0" * 64,
            image_size=shape.image_size,
            channels=shape.channels,
        )

    def _peak_of_supernet(self, batch: int) -> int:
        """Return the activations' peak of one pass: where cells are sampled, one of separable
        convolutions.
        """
        from d2nas.files.text_files import read_space
        from d2nas.methods.darts import Darts
        from d2nas.methods.single_path import SinglePath
        from d2nas.train.search import build_method

        config, data = self._config.search, self._data()

        def build() -> tuple[Any, Callable[[Any], Any]]:
            method = build_method(config, data, read_space(config.space), seed=0)
            if not isinstance(method, SinglePath):
                weights = method.mixture() if isinstance(method, Darts) else method.logits
                return method.supernet, lambda images: (method.supernet(images, weights),)
            draw = _heavy_draw(method.logits.space, all_edges=method.all_edges)
            return method.supernet, lambda images: (
                branch.logits for branch in method.supernet.branches(images, draw)
            )

        return self._peak_of(build, batch)

    def _peak_of_network(self, batch: int, stem: str) -> int | None:
        """Return the activations' peak of one pass; None as for a library's network."""
        from d2nas.nn.network import Network

        config, architecture = self._config.retrain, self._architecture
        if isinstance(architecture, str):
            return self._peak_of_library_network(architecture, batch)

        def build() -> tuple[Any, Callable[[Any], Any]]:
            network = Network(
                architecture,
                num_cells=config.num_cells,
                init_channels=config.init_channels,
                num_classes=self._shape.num_classes,
                in_channels=self._shape.channels,
                stem=stem,
            )
            return network, lambda images: (network(images),)

        return self._peak_of(build, batch)

    def _peak_of_library_network(self, name: str, batch: int) -> int | None:
        """Return the activations' peak of one pass; None where it depends on what is computed."""
        import torch
        from torch._subclasses.fake_tensor import (
            DataDependentOutputException,
            DynamicOutputShapeException,
        )

        from d2nas.nn.library_network import LibraryNetwork

        # Built beforehand, since libraries look at the numbers that they draw.
        with torch.random.fork_rng(devices=[]):
            network = LibraryNetwork(
                name, num_classes=self._shape.num_classes, in_channels=self._shape.channels
            )
        try:
            return self._peak_of(lambda: (network, lambda images: (network(images),)), batch)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None

    def _peak_of(self, build: Callable[[], tuple[Any, Callable[[Any], Any]]], batch: int) -> int:
        import torch

        from d2nas.data.batches import channels_last
        from d2nas.measure.allocation import AllocateOnly
        from d2nas.measure.cost import peak_memory
        from d2nas.train.loop import to_device

        shape = self._shape
        with torch.random.fork_rng(devices=[]), AllocateOnly():
            module, outputs_of = build()
            to_device(module, torch.device("cpu"))
            size = shape.image_size
            images = channels_last(torch.empty(batch, shape.channels, size, size))
            labels = torch.zeros(batch, dtype=torch.int64)

            def step() -> None:
                for logits in outputs_of(images):
                    loss = torch.nn.functional.cross_entropy(logits, labels)
                    torch.autograd.backward(loss)

            return peak_memory(step, alive=[images])


def _heavy_draw(space: SearchSpace, *, all_edges: bool) -> Any:
    """Return a sub-network with a separable convolution on each edge that offers one."""
    from d2nas.nn.sampling import CellDraw, Draw

    by_node = node_edges(len(space.edges))
    edges = tuple(edge for rows in by_node for edge in (rows if all_edges else rows[:2]))
    cells = []
    for cell_type in CELL_TYPES:
        candidates = space.candidates(cell_type)
        columns = (
            next((c for c, name in enumerate(candidates[edge]) if "sep" in name), 0)
            for edge in edges
        )
        cells.append(CellDraw(edges, tuple(columns), None))
    return Draw(*cells)


def _times(seconds: Seconds) -> dict[str, Any]:
    return {"seconds": seconds.expected, "seconds_range": [seconds.low, seconds.high]}


def _range_of(row: Mapping[str, Any]) -> Seconds:
    seconds = row.get("seconds", 0.0)
    return Seconds(seconds, *row.get("seconds_range", (seconds, seconds)))


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f} MiB"

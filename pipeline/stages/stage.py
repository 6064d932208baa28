"""Stage of a run: the record of its facts, what it is given, and how it drives a training loop.

A stage reads opened versions, writes only into its staging area, reports through hooks, and neither
commits nor prints: the runner commits, the console draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from d2nas.config import CELL_FIELDS, TEACHER_FIELDS, Config, RetrainConfig
from d2nas.config.section import NonNegative
from d2nas.files.strict_json import canonical_json, digest

from ..store import Kind
from ..store.forms import Form

if TYPE_CHECKING:
    from torch import Tensor

    from d2nas.data.images import ImageData
    from d2nas.parallel import Ranks
    from d2nas.train.loop import Loop
    from d2nas.train.state import TrainState

    from ..store import Staging, Version

METRICS_FILE = "metrics.jsonl"
"""In a version: a row for each epoch of its training."""

KEPT_CHECKPOINTS = 2
"""Of a training that runs; of one given up unfinished, for other settings, the last."""

_NOT_IN_RESULTS = ("root", "on_error", "stream", "workers")
"""Keys of ``data`` that change no batch: of the images, the digest says which are used."""

Facts = dict[str, Any]


class Hooks(Protocol):
    """Hooks through which a stage speaks; silent where a subclass leaves them out."""

    def say(self, line: str) -> None:
        """Tell the user something worth a line."""
        return

    def warn(self, line: str) -> None:
        """Tell the user something to act on."""
        return

    def reserve(self, num_bytes: int) -> None:
        """Announce what the stage will write; raises ``StorageError`` where there is no room."""
        return

    def begin(self, total: int, done: int, unit: str, images: int = 0, epochs: int = 0) -> None:
        """Announce the stage's number of steps, how many a resume skips, the images of one, and
        how many epochs they make.
        """
        return

    def change(self, total: int, epochs: int) -> None:
        """Announce that the stage has now so many steps in all, in so many epochs."""
        return

    def advance(self, done: int, row: Mapping[str, Any] | None) -> None:
        """Report finished steps and, at an epoch's end, its row of metrics."""
        return

    def pause(self) -> None:
        """Let a signal through where nothing can be saved; raises ``StoppedError`` after one."""
        return

    def stalled(self, seconds: float) -> None:
        """Let a signal through in a step that waits for images, and has for so long; raises
        ``StoppedError`` after one.
        """
        return

    def resume(self) -> "TrainState | None":
        """Return the last checkpoint of this very stage, or None."""

    def checkpoint(self, step: int, capture: "Callable[[int], TrainState]") -> None:
        """Offer a checkpoint at a step boundary; raises ``StoppedError`` after a signal."""


@dataclass(frozen=True)
class Context:
    """Everything one execution of a stage gets."""

    config: Config
    inputs: "Mapping[str, Version]"
    work: "Staging"
    hooks: Hooks
    data: "Callable[[], ImageData]"
    ranks: "Ranks | None" = None
    """None: this process trains alone."""


def section(name: str) -> Callable[[Config], dict[str, Any]]:
    """Return what picks one section of a configuration."""
    return lambda config: {name: config.to_dict()[name]}


LATER_SETTINGS = (
    "pretrained",
    "class_weights",
    "optimizer",
    "ema",
    "augment",
    "erasing",
    "mixup",
    "cutmix",
    "accumulate",
    "patience",
    "validation_fraction",
)
"""Settings of a training that came after versions of it were kept."""


def training_settings(config: Config) -> dict[str, Any]:
    """Return the settings of a training alone; as before there were ``LATER_SETTINGS``, where they
    change nothing, so that what was trained before is found. Of a library's network what is of
    cells alone is left out, without patience the part of the images that it would hold out; so is
    the teacher, which only the final training has.
    """
    settings: dict[str, Any] = config.to_dict()["retrain"]
    if config.derive.model is not None:
        for key in CELL_FIELDS:
            del settings[key]
    for key in ("teacher", *TEACHER_FIELDS):
        del settings[key]
    for key in LATER_SETTINGS:
        if getattr(config.retrain, key) == RetrainConfig.model_fields[key].default:
            del settings[key]
    if config.retrain.patience is None:
        settings.pop("validation_fraction", None)
    return settings


def always(config: Config) -> bool:
    """Return True, whatever the configuration."""
    return True


def never(config: Config) -> bool:
    """Return False, whatever the configuration."""
    return False


@dataclass(frozen=True, kw_only=True)
class Stage(Kind):
    """Facts of a stage; each stands in the stage's module, ready without torch."""

    parents: tuple[str, ...]
    """Stages whose versions it reads; the last one is the version it continues from."""
    code_schema: int
    """Grows when the code changes what it writes, so that its old versions are not reused."""
    run: Callable[[Context], Facts]
    """Execution; returns the facts for the manifest."""
    own_config: Callable[[Config], dict[str, Any]] = lambda config: {}
    """Part of the configuration that decides its result, besides that of the images."""
    reads_data: Callable[[Config], bool] = never
    """Whether it looks at the images."""
    needs_parents: Callable[[Config], bool] = always
    rows: str = "epoch"
    """What a row of its metrics is of, where it has some."""
    parallel: bool = False
    """Whether several processes share its work."""
    rough_seconds: Callable[[Config], float] = lambda config: 1.0
    """Rule of thumb for its time, where a plan does not measure it."""
    facts: type[Form] = Form
    """Form of its versions' facts, as far as later stages rely on them."""
    recorded_config: type[Form] = Form
    """Form of its versions' configuration, as far as later stages rely on it."""

    def parents_of(self, config: Config) -> tuple[str, ...]:
        """Return what it reads under this configuration: a given genotype needs no search."""
        return self.parents if self.needs_parents(config) else ()

    def config(self, config: Config) -> dict[str, Any]:
        """Return the part of the configuration that the stage depends on.

        Where the images lie is not part of it (their content's digest is), nor who reads them: a
        batch is the same function of seed and step either way. A latency table is part of what has
        a limit on latency, by its digest.
        """
        part = self.own_config(config)
        if self.reads_data(config):
            values = config.to_dict()
            data = values["data"].items()
            part["data"] = {key: value for key, value in data if key not in _NOT_IN_RESULTS}
            part["run"] = {"seed": values["run"]["seed"]}
        return part

    def key(self, config: Config, parents: Mapping[str, str], data_digest: str | None) -> str:
        """Return the digest of all that decides the result: same key, nothing to run."""
        return digest(
            {
                "stage": self.name,
                "code_schema": self.code_schema,
                "config": self.config(config),
                "parents": dict(parents),
                "data": data_digest if self.reads_data(config) else None,
            }
        )


class StateFacts(Form):
    """Facts of a checkpoint."""

    step: NonNegative


def run_loop(loop: "Loop", hooks: Hooks) -> None:
    """Run every step of a training that is left: progress, checkpoints, resume.

    Raises ``StoppedError`` after a signal, with a checkpoint, and ``StorageError`` where the disk
    has no room for what is going to be written.
    """
    state = hooks.resume()
    hooks.reserve(bytes_to_write(loop, continued=state is not None))
    epochs = loop.num_steps // loop.steps_per_epoch
    for batches in loop.streams():
        batches.stalled = hooks.stalled
    hooks.begin(loop.num_steps, state.step if state else 0, "step", loop.batch_size, epochs)
    total = loop.num_steps
    for report in loop.run(state):
        if loop.num_steps != total:  # a training was stopped, or a search rolled back
            total = loop.num_steps
            hooks.change(total, total // loop.steps_per_epoch)
        hooks.advance(report.step + 1, report.metrics)
        for line in loop.cautions(report.metrics) if report.metrics else ():
            hooks.warn(line)
        if report.step + 1 < loop.num_steps:
            hooks.checkpoint(report.step + 1, loop.capture)


def bytes_to_write(loop: "Loop", *, continued: bool = False) -> int:
    """Return about how much a loop adds to the store at most: its checkpoints, of which one is
    written before the oldest goes, and its network. One that continues has its checkpoints.
    """
    checkpoint = _num_bytes(loop.trained.tensors().values())
    network = _num_bytes(loop.network.state_dict().values())
    return checkpoint * (1 if continued else KEPT_CHECKPOINTS + 1) + network


def _num_bytes(tensors: "Iterable[Tensor]") -> int:
    return sum(tensor.nbytes for tensor in tensors)


def encode_rows(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return JSON lines."""
    return b"".join(canonical_json(row) for row in rows)

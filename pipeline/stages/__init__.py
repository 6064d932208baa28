"""The contract of a stage, and what decides whether it must run again.

A stage is a function ``run(context) -> facts``. It reads opened versions, writes only into its
staging area, reports through hooks, and neither commits nor prints: the runner commits, the
console draws. ``pipeline.stages.search`` and its siblings are imported when they run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from d2nas.config import Config
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.files.strict_json import digest
from d2nas.files.text_files import read_space, read_text
from d2nas.genotype import Genotype

if TYPE_CHECKING:
    from d2nas.data.images import ImageData
    from d2nas.parallel import Ranks
    from d2nas.train.state import TrainState

    from ..store import Staging, Version

STAGES = ("search", "derive", "retrain", "export", "validate")
"""What a run consists of."""

STUDY_STAGES = ("search", "derive", "retrain", "evaluate")
"""What a cell of a study consists of."""

PARENTS: Mapping[str, tuple[str, ...]] = {
    "search": (),
    "derive": ("search",),
    "retrain": ("derive",),
    "evaluate": ("retrain",),
    "export": ("derive", "retrain"),
    "validate": ("derive", "retrain", "export"),
}
"""What each stage reads; the last one is the version it continues from."""


def parents_of(stage: str, config: Config) -> tuple[str, ...]:
    """Return what a stage reads under this configuration: a given genotype needs no search."""
    return () if stage == "derive" and config.derive.genotype is not None else PARENTS[stage]


def run_stages(config: Config) -> tuple[str, ...]:
    """Return the stages of a whole run; with a given genotype there is no search."""
    return STAGES if config.derive.genotype is None else STAGES[1:]


def study_stages(config: Config) -> tuple[str, ...]:
    """Return the stages of a study's cell; with a given genotype there is no search."""
    return STUDY_STAGES if config.derive.genotype is None else STUDY_STAGES[1:]


def reads_data(stage: str, config: Config) -> bool:
    """Whether a stage looks at the images; derive does where it compares candidates."""
    if stage == "derive":
        return config.derive.candidates > 1
    return stage in ("search", "retrain", "evaluate", "validate")


CODE_SCHEMA: Mapping[str, int] = {
    "search": 6,
    "derive": 5,
    "retrain": 6,
    "evaluate": 3,
    "export": 5,
    "validate": 10,
}
"""Grows when a stage's code changes what it writes, so that its old versions are not reused."""

REPORT_SCHEMA = 1
"""Of ``report.json``, which a bundle's reader must know."""

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


def run_stage(stage: str, context: Context) -> Facts:
    """Run one stage; returns the facts for its manifest."""
    module = import_module(f".{stage}", __name__)
    facts: Facts = module.run(context)
    return facts


def read_genotype(name: str) -> Genotype:
    """Return a published genotype, or that of a JSON file. Raises ``ConfigError``."""
    form = f"one is written {Genotype.published('DARTS_V2').to_json().strip()}"
    if not name.endswith(".json"):
        if Path(name).is_file():
            raise ConfigError(f"{name}: a genotype's file is JSON and named .json", hint=form)
        return Genotype.published(name)
    try:
        return Genotype.from_json(read_text(Path(name)), what=name)
    except DamagedArtifactError as error:
        # A file that the user wrote, not an artifact.
        raise ConfigError(str(error), hint=form) from None
    except ConfigError as error:
        raise ConfigError(str(error), hint=error.hint or form) from None


def stage_config(stage: str, config: Config) -> dict[str, Any]:
    """Return the part of the configuration that a stage depends on.

    Where the images lie is not part of it (their content's digest is), nor who reads them: a batch
    is the same function of seed and step either way.
    """
    values = config.to_dict()
    part: dict[str, Any] = {stage: values[stage]} if stage in values else {}
    if stage == "derive" and config.derive.candidates > 1 and config.derive.rank_by == "training":
        part["retrain"] = values["retrain"]
    if stage == "search":
        space = read_space(config.search.space)
        # The space itself decides, not the path of the file that it was read from.
        part["search"] = {**part["search"], "space": space.name}
        part["space"] = space.to_dict()
    if stage == "derive" and config.derive.genotype is not None:
        # As with a space: the cells decide, not the path of their file.
        part["derive"] = {"genotype": read_genotype(config.derive.genotype).to_dict()}
    if reads_data(stage, config):
        data = values["data"].items()
        part["data"] = {key: value for key, value in data if key not in _NOT_IN_RESULTS}
        part["run"] = values["run"]
    return part


def stage_key(
    stage: str, config: Config, parents: Mapping[str, str], data_digest: str | None
) -> str:
    """Return the digest of all that decides a stage's result: same key, nothing to run."""
    return digest(
        {
            "stage": stage,
            "code_schema": CODE_SCHEMA[stage],
            "config": stage_config(stage, config),
            "parents": dict(parents),
            "data": data_digest if reads_data(stage, config) else None,
        }
    )


METRICS_FILE = "metrics.jsonl"
"""In a version: a row for each epoch of its training."""

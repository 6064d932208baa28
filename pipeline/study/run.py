"""Run a study cell by cell: what is finished is kept, what fails is reported, the rest goes on.

Several processes may work on one study: each takes the cells that no other one holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d2nas.errors import BusyError, D2NasError, StoppedError

from ..running.runner import Reuse, Runner
from ..stages import STUDY_STAGES, parents_of, study_stages
from ..store import Version
from .grid import Cell, Study

_SEARCH_STAGES, _TRAIN_STAGES = STUDY_STAGES[:2], STUDY_STAGES[2:]

_SIZES = ("num_cells", "init_channels", "epochs", "warmup_epochs", "batch_size")
SHOWN_SETTINGS = {"search": (*_SIZES, "weight_lr", "arch_lr"), "retrain": (*_SIZES, "lr")}
"""What a row says of how its network was searched and trained."""


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result. Not the error itself: its traceback would hold the tensors."""

    message: str
    hint: str | None
    exit_code: int


class StudyRun:
    """A study on its way; ``failures`` holds those of ``run``."""

    def __init__(self, runner: Runner, study: Study) -> None:
        self.runner, self.study = runner, study
        self.failures: dict[Cell, Failure] = {}
        self._searched: set[str] = set()
        self._digests: dict[tuple[str, str | None], str] = {}

    def run(self, reuse: Reuse) -> None:
        """Run every cell that is not finished; those that another process holds at the end again.

        Raises ``StoppedError`` after a signal. Other errors of ours are kept in ``failures``.
        """
        waiting = list(self.study.cells)
        while waiting:
            busy = [cell for cell in waiting if not self._attempt(cell, reuse)]
            if len(busy) == len(waiting):
                return
            waiting = busy

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per cell, read from the store, so that other processes' cells count too."""
        return [self._row(cell) for cell in self.study.cells]

    def first_failure(self) -> Failure | None:
        """Return the failure of the first cell that has one, once ``rows`` has looked."""
        return next(
            (self.failures[cell] for cell in self.study.cells if cell in self.failures), None
        )

    def plan(self) -> list[dict[str, Any]]:
        """Return a row per cell with its ``state``: finished, or which stage is next."""
        return [
            {
                **_names(cell),
                "finished": state == "finished",
                "state": state,
            }
            for cell, state in ((cell, self._state(cell)) for cell in self.study.cells)
        ]

    def _attempt(self, cell: Cell, reuse: Reuse) -> bool:
        """Run one cell; false if it is in use elsewhere."""
        self.runner.check_stop(f"before the cell {cell.title}")
        display, failure = self.runner.display, None
        try:
            if reuse is Reuse.EVERYTHING and self._is_finished(cell, self._finished(cell)):
                self.failures.pop(cell, None)
                return True
            number = self.study.cells.index(cell) + 1
            display.say(f"cell {number} of {len(self.study.cells)}: {cell.title}")
            self._run_stages(cell, reuse)
        except StoppedError:
            raise
        except D2NasError as error:
            failure = _failure_of(error)
        except Exception as error:  # noqa: BLE001 - one cell's bug must not cost the others
            message = f"this is a bug in d2nas: {type(error).__name__}: {error}"
            failure = Failure(" ".join(message.split())[:300], None, 1)
        if failure is None:
            self.failures.pop(cell, None)
            return True
        self.failures[cell] = failure
        if failure.exit_code == BusyError.exit_code:
            display.say(f"{cell.title}: {failure.message}")
            return False
        display.warn(f"{cell.title}: {failure.message}")
        return True

    def _run_stages(self, cell: Cell, reuse: Reuse) -> None:
        # A search that another variant shares is started over once, not once per variant.
        again = Reuse.EVERYTHING if cell.search_run in self._searched else reuse
        searched = [stage for stage in study_stages(cell.config) if stage in _SEARCH_STAGES]
        derived = self.runner.run(cell.search_run, cell.config, searched, again, then=_TRAIN_STAGES)
        self._searched.add(cell.search_run)
        self.runner.run(cell.run, cell.config, _TRAIN_STAGES, reuse, given=derived.versions)

    def _is_finished(self, cell: Cell, found: Mapping[str, Version]) -> bool:
        return len(found) == len(study_stages(cell.config))

    def _finished(self, cell: Cell) -> dict[str, Version]:
        """Return the versions of the stages that need not run."""
        digest, found = self._digest(cell), dict[str, Version]()
        for stage in study_stages(cell.config):
            parents = {role: found[role] for role in parents_of(stage, cell.config)}
            version = self.runner.current(_run_of(cell, stage), stage, cell.config, parents, digest)
            if version is None:
                break
            found[stage] = version
        return found

    def _digest(self, cell: Cell) -> str:
        key = cell.config.data.name, cell.config.data.root
        if key not in self._digests:
            self._digests[key] = self.runner.data_digest(cell.config)
        return self._digests[key]

    def _state(self, cell: Cell) -> str:
        found = self._finished(cell)
        if self._is_finished(cell, found):
            return "finished"
        stage = study_stages(cell.config)[len(found)]
        parents = {role: found[role] for role in parents_of(stage, cell.config)}
        step = self.runner.resumable_step(
            _run_of(cell, stage), stage, cell.config, parents, self._digest(cell)
        )
        return f"{stage} continues at step {step}" if step else f"{stage} is next"

    def _row(self, cell: Cell) -> dict[str, Any]:
        try:
            versions = self._finished(cell)
        except D2NasError as error:
            self.failures.setdefault(cell, _failure_of(error))
            versions = {}
        if self._is_finished(cell, versions):
            self.failures.pop(cell, None)
            return _describe(cell, versions, None)
        # No result and no failure on record is a bug, and never success.
        failure = self.failures.setdefault(
            cell, Failure("not finished, yet no stage failed", None, 1)
        )
        return _describe(cell, versions, failure.message)


def _failure_of(error: D2NasError) -> Failure:
    return Failure(" ".join(str(error).split()), error.hint, error.exit_code)


def _run_of(cell: Cell, stage: str) -> str:
    return cell.search_run if stage in _SEARCH_STAGES else cell.run


def _seconds(version: Version) -> float | None:
    """Return how long a version took; it stands in its note, which may hold anything."""
    value = (version.note or {}).get("seconds")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _names(cell: Cell) -> dict[str, Any]:
    names = ("variant", "method", "space", "data", "seed", "training", "run")
    return {name: getattr(cell, name) for name in names}


def _describe(cell: Cell, versions: Mapping[str, Version], error: str | None) -> dict[str, Any]:
    facts = {
        stage: versions[stage].manifest.facts if stage in versions else {} for stage in STUDY_STAGES
    }
    seconds = {stage: _seconds(version) for stage, version in versions.items()}
    config = cell.config.to_dict()
    settings = {
        section: {name: config[section][name] for name in names}
        for section, names in SHOWN_SETTINGS.items()
    }
    return {
        **_names(cell),
        "genotype": facts["derive"].get("genotype"),
        "genotype_digest": facts["derive"].get("genotype_digest"),
        "accuracy": facts["evaluate"].get("accuracy"),
        "calibrated_loss": facts["evaluate"].get("calibrated_loss"),
        "evaluation": cell.config.data.evaluation,
        "images": facts["evaluate"].get("images"),
        "params": facts["retrain"].get("params"),
        "macs": facts["retrain"].get("macs"),
        "parameterless_normal": facts["derive"].get("parameterless_normal"),
        "passes": facts["search"].get("passes"),
        "search_seconds": seconds.get("search"),
        "retrain_seconds": seconds.get("retrain"),
        "device": facts["search"].get("device"),
        "retrain_device": facts["retrain"].get("device"),
        "settings": {
            **settings,
            "train_images": cell.config.data.train_images,
            "trainings": cell.trainings,
        },
        "setting": cell.setting,
        "error": error,
    }

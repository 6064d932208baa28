"""Run a study trial by trial: what is finished is kept, what fails is reported, the rest goes on.

Several processes may work on one study: each takes the trials that no other one holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d2nas.errors import BusyError, D2NasError, StoppedError, one_line

from ..running.runner import Reuse, Runner
from ..stages import BY_NAME, STUDY_STAGES, stages_of_study
from ..store import Version
from .grid import Study, Trial

_SEARCH_STAGES, _TRAIN_STAGES = STUDY_STAGES[:2], STUDY_STAGES[2:]

_SIZES = ("num_cells", "init_channels", "epochs", "warmup_epochs", "batch_size")
_LEARNED_BY = ("estimator", "draws", "weight_optimizer", "weight_lr", "arch_lr")
_NAMES = (
    *("variant", "method", "genotype_name", "recipe", "space", "data", "stands_for"),
    *("seed", "training", "run"),
)
SHOWN_SETTINGS = {"search": (*_SIZES, *_LEARNED_BY), "retrain": (*_SIZES, "lr")}
"""What a row says of how its network was searched and trained."""


@dataclass(frozen=True)
class Failure:
    """Why a trial has no result. Not the error itself: its traceback would hold the tensors."""

    message: str
    hint: str | None
    exit_code: int


class StudyRun:
    """A study on its way; ``failures`` holds those of ``run``."""

    def __init__(self, runner: Runner, study: Study) -> None:
        self.runner, self.study = runner, study
        self.failures: dict[Trial, Failure] = {}
        self._searched: set[str] = set()
        self._digests: dict[tuple[str, str | None], str] = {}

    def run(self, reuse: Reuse) -> None:
        """Run every trial that is not finished; those that another process holds at the end again.

        Raises ``StoppedError`` after a signal. Other errors of ours are kept in ``failures``.
        """
        waiting = list(self.study.trials)
        while waiting:
            busy = [trial for trial in waiting if not self._attempt(trial, reuse)]
            if len(busy) == len(waiting):
                return
            waiting = busy

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per trial, read from the store: other processes' trials count, too."""
        scale = {"scale": self.study.scale, "reduced": self.study.is_reduced}
        return [{**self._row(trial), **scale} for trial in self.study.trials]

    def first_failure(self) -> Failure | None:
        """Return the failure of the first trial that has one, once ``rows`` has looked."""
        return next(
            (self.failures[trial] for trial in self.study.trials if trial in self.failures), None
        )

    def plan(self) -> list[dict[str, Any]]:
        """Return a row per trial with its ``state``: finished, or which stage is next."""
        return [
            {
                **_names(trial),
                "scale": self.study.scale,
                "reduced": self.study.is_reduced,
                "finished": state == "finished",
                "state": state,
            }
            for trial, state in ((trial, self._state(trial)) for trial in self.study.trials)
        ]

    def _attempt(self, trial: Trial, reuse: Reuse) -> bool:
        """Run one trial; false if it is in use elsewhere."""
        self.runner.check_stop(f"before the trial {trial.title}")
        display, failure = self.runner.display, None
        try:
            if reuse is Reuse.EVERYTHING and self._is_finished(trial, self._finished(trial)):
                self.failures.pop(trial, None)
                return True
            number = self.study.trials.index(trial) + 1
            display.say(f"trial {number} of {len(self.study.trials)}: {trial.title}")
            self._run_stages(trial, reuse)
        except StoppedError:
            raise
        except D2NasError as error:
            failure = _failure_of(error)
        except Exception as error:  # noqa: BLE001 - one trial's bug must not cost the others
            message = f"this is a bug in d2nas: {type(error).__name__}: {error}"
            failure = Failure(one_line(message, 300), None, 1)
        if failure is None:
            self.failures.pop(trial, None)
            return True
        self.failures[trial] = failure
        if failure.exit_code == BusyError.exit_code:
            display.say(f"{trial.title}: {failure.message}")
            return False
        display.warn(f"{trial.title}: {failure.message}")
        return True

    def _run_stages(self, trial: Trial, reuse: Reuse) -> None:
        # A search that another variant shares is started over once, not once per variant.
        again = Reuse.EVERYTHING if trial.search_run in self._searched else reuse
        searched = [stage for stage in stages_of_study(trial.config) if stage in _SEARCH_STAGES]
        derived = self.runner.run(
            trial.search_run, trial.config, searched, again, then=_TRAIN_STAGES
        )
        self._searched.add(trial.search_run)
        self.runner.run(trial.run, trial.config, _TRAIN_STAGES, reuse, given=derived.versions)

    def _is_finished(self, trial: Trial, found: Mapping[str, Version]) -> bool:
        return len(found) == len(stages_of_study(trial.config))

    def _finished(self, trial: Trial) -> dict[str, Version]:
        """Return the versions of the stages that need not run."""
        digest, found = self._digest(trial), dict[str, Version]()
        for stage in stages_of_study(trial.config):
            parents = {role: found[role] for role in BY_NAME[stage].parents_of(trial.config)}
            version = self.runner.current(
                _run_of(trial, stage), stage, trial.config, parents, digest
            )
            if version is None:
                break
            found[stage] = version
        return found

    def _digest(self, trial: Trial) -> str:
        key = trial.config.data.name, trial.config.data.root
        if key not in self._digests:
            self._digests[key] = self.runner.data_digest(trial.config)
        return self._digests[key]

    def _state(self, trial: Trial) -> str:
        found = self._finished(trial)
        if self._is_finished(trial, found):
            return "finished"
        stage = stages_of_study(trial.config)[len(found)]
        parents = {role: found[role] for role in BY_NAME[stage].parents_of(trial.config)}
        step = self.runner.resumable_step(
            _run_of(trial, stage), stage, trial.config, parents, self._digest(trial)
        )
        return f"{stage} continues at step {step}" if step else f"{stage} is next"

    def _row(self, trial: Trial) -> dict[str, Any]:
        try:
            versions = self._finished(trial)
        except D2NasError as error:
            self.failures.setdefault(trial, _failure_of(error))
            versions = {}
        if self._is_finished(trial, versions):
            self.failures.pop(trial, None)
            return _describe(trial, versions, None)
        # No result and no failure on record is a bug, and never success.
        failure = self.failures.setdefault(
            trial, Failure("not finished, yet no stage failed", None, 1)
        )
        return _describe(trial, versions, failure.message)


def _failure_of(error: D2NasError) -> Failure:
    return Failure(one_line(str(error)), error.hint, error.exit_code)


def _run_of(trial: Trial, stage: str) -> str:
    return trial.search_run if stage in _SEARCH_STAGES else trial.run


def _seconds(version: Version) -> float | None:
    """Return how long a version took; it stands in its note, which may hold anything."""
    value = (version.note or {}).get("seconds")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _names(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in _NAMES}


def _describe(trial: Trial, versions: Mapping[str, Version], error: str | None) -> dict[str, Any]:
    facts = {
        stage: versions[stage].manifest.facts if stage in versions else {} for stage in STUDY_STAGES
    }
    seconds = {stage: _seconds(version) for stage, version in versions.items()}
    config = trial.config.to_dict()
    settings = {
        section: {name: config[section][name] for name in names}
        for section, names in SHOWN_SETTINGS.items()
    }
    return {
        **_names(trial),
        "genotype": facts["derive"].get("genotype"),
        "genotype_digest": facts["derive"].get("genotype_digest"),
        "accuracy": facts["evaluate"].get("accuracy"),
        "calibrated_loss": facts["evaluate"].get("calibrated_loss"),
        "evaluation": trial.config.data.evaluation,
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
            "train_images": trial.config.data.train_images,
            "trainings": trial.trainings,
        },
        "setting": trial.setting,
        "error": error,
    }

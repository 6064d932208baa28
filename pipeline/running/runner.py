"""Runs stages: which are current, which must run; locks, checkpoints, signals, commits.

The only place that commits. A stage whose key (its config, its parents' ids, the data's digest,
its code schema) is in the store is not run again.

In a parallel training every rank executes this module line for line. The contract:

- Rank 0 decides, in ``Runner.decide``, alone: it holds the run's lock; sets the images' size and
  digest, and reads them first (it may download them); finds what is up to date and where to
  continue; refuses for want of room, or after a signal; commits versions and checkpoints.
- All do, with what was decided: open the versions, read the images, run the stage, take its steps.
- All agree, in ``agree``, after every step: a signal, or a checkpoint that is due, on any rank is
  one on all.
- A rank other than 0 has other objects, no other program (``other_ranks``): a display that is
  silent, a store that only reads. Rank 0 tells what there is to tell, errors of its own decisions
  too; the others then end silently with the same exit code. An error that is a rank's own ends
  that rank, and so all: they have lost it.

What stands in a function given to ``decide`` runs on rank 0 alone and must not decide itself; what
stands outside runs everywhere and must not write to the store.
"""

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from d2nas._version import __version__
from d2nas.config import Config, DataConfig
from d2nas.config.registry import data_sets
from d2nas.cpus import allowed_cpus, cpu_limit
from d2nas.data.sources import content_digest, data_folder
from d2nas.errors import ConfigError, StoppedError

from ..foreign_errors import exit_code_of
from ..stages import (
    BY_NAME,
    KEPT_CHECKPOINTS,
    Context,
    checked,
    run_stage,
)
from ..store import Store, Version, state_of
from ..tracking.sink import Sink
from .checkpoints import arithmetic_warnings, given_up, library_warnings, read_state, write_state
from .display import Display
from .events import Events, sinks_of
from .file_hashes import FileHashes, HashingProgress
from .outcomes import flat_params, outcome_of, outcome_of_error, status_of
from .signals import STALL_SECONDS, StopFlag

if TYPE_CHECKING:
    from d2nas.data.images import ImageData
    from d2nas.data.sizes import ImageSize
    from d2nas.parallel import Ranks
    from d2nas.train.state import TrainState

CHECKPOINT_SECONDS = 20.0
"""Time between checkpoints of a training loop; what a kill can cost."""

_RECORDED_LIBRARIES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
)


Value = TypeVar("Value")


class Reuse(Enum):
    """Versions that a run may take from the store."""

    EVERYTHING = "everything"
    """Finished versions, and checkpoints of unfinished ones."""
    NOTHING = "nothing"
    """Start over."""


@dataclass(frozen=True)
class RunResult:
    """The versions a run stands on, by stage, and which stages ran this time."""

    run: str
    versions: dict[str, Version]
    executed: list[str]


class Runner:
    """Executes stages of one run against a store."""

    def __init__(
        self,
        store: Store,
        display: Display,
        stop: StopFlag,
        clock: Callable[[], float] = time.monotonic,
        ranks: "Ranks | None" = None,
        events: type[Events] = Events,
    ) -> None:
        self.store, self.display, self.stop, self.clock = store, display, stop, clock
        self.ranks, self.events = ranks, events
        self._data: tuple[tuple[DataConfig, int], ImageData] | None = None
        self._sizes: dict[tuple[str | None, str, float], int] = {}
        self._will_retrain = False
        self._sinks: list[Sink] = []
        self.before_first: Callable[[str], None] | None = None
        """Called once, with the stage's name, before the first stage that must run; may raise."""

    def run(
        self,
        run: str,
        config: Config,
        stages: Sequence[str],
        reuse: Reuse,
        *,
        given: Mapping[str, Version] | None = None,
        then: Sequence[str] = (),
    ) -> RunResult:
        """Bring ``stages`` up to date, in order, each on the one before it.

        ``given`` holds versions of earlier stages, of any run; ``then`` names stages that will
        follow in another call, so that what is wrong for them is found before time is spent.
        Raises ``BusyError`` if the run is in use, ``StoppedError`` after a signal, and whatever a
        stage raises; finished stages stay committed.
        """
        self._will_retrain = "retrain" in (*stages, *then)
        with ExitStack() as held:
            self.decide("the run's lock", lambda: held.enter_context(self.store.lock_run(run)))
            self.decide("who is told", lambda: self._open_sinks(run, config, held))
            digest = None
            if any(BY_NAME[stage].reads_data(config) for stage in stages):
                config, digest = self._images_decided(config)
            versions = {stage: checked(version) for stage, version in (given or {}).items()}
            executed: list[str] = []
            for stage in stages:
                parents = {role: versions[role] for role in BY_NAME[stage].parents_of(config)}
                found = self._finished(run, stage, config, parents, digest, reuse)
                if found is None:
                    found = self._execute(run, stage, config, parents, digest, reuse)
                    executed.append(stage)
                else:
                    self.display.stage_current(stage, str(found.reference))
                versions[stage] = found
            return RunResult(run, versions, executed)

    def _open_sinks(self, run: str, config: Config, held: ExitStack) -> None:
        """Have the stages' numbers told to ``run.log`` until ``held`` ends."""
        display, folder = self.display, self.store.root / "events" / run
        self._sinks = sinks_of(config.run.log, folder, display.say, display.warn)
        for sink in self._sinks:
            held.push(lambda _, error, __, sink=sink: sink.close(status_of(error)))

    def decide(self, what: str, make: Callable[[], Value]) -> Value:
        """Return on every rank what ``make`` returns on rank 0, where alone it is called (JSON)."""
        if self.ranks is None:
            return make()
        decided: Value = self.ranks.decide(what, make, self._exit_code)
        return decided

    def _exit_code(self, error: Exception) -> int:
        return exit_code_of(self.stop.stop_for(error, wait=True) or error)

    def version_for_all(self, what: str, make: Callable[[], Version | None]) -> Version | None:
        """Return the version that ``make`` finds or makes on rank 0, opened on every rank."""
        own: list[Version | None] = []

        def reference() -> str | None:
            own.append(make())
            return None if own[0] is None else own[0].reference

        decided = self.decide(what, reference)
        if own:
            return own[0]
        return None if decided is None else self.store.open(decided)

    def _images_decided(self, config: Config) -> tuple[Config, str]:
        """Return the configuration with the images' size, and their digest."""

        def size_and_digest() -> tuple[int | None, str]:
            settled = self.settled(config)
            return settled.data.image_size, self.data_digest(settled)

        size, digest = self.decide("the images' size and digest", size_and_digest)
        return _with_image_size(config, size), digest

    def _finished(
        self,
        run: str,
        stage: str,
        config: Config,
        parents: Mapping[str, Version],
        digest: str | None,
        reuse: Reuse,
    ) -> Version | None:
        if reuse is not Reuse.EVERYTHING:
            return None
        return self.version_for_all(
            f"whether {stage} is up to date",
            lambda: self.current(run, stage, config, parents, digest),
        )

    def current(
        self,
        run: str,
        stage: str,
        config: Config,
        parents: Mapping[str, Version],
        data_digest: str | None,
    ) -> Version | None:
        """Return the version that makes running ``stage`` unnecessary, or None."""
        config = self.settled(config) if BY_NAME[stage].reads_data(config) else config
        ids = {role: version.id for role, version in parents.items()}
        found = self.store.find(run, stage, BY_NAME[stage].key(config, ids, data_digest))
        return None if found is None else checked(found)

    def is_current(
        self, run: str, stage: str, config: Config, versions: Mapping[str, Version]
    ) -> bool:
        """Whether ``stage`` need not run on these versions of the stages before it."""
        parents = {role: versions[role] for role in BY_NAME[stage].parents_of(config)}
        digest = self.data_digest(config) if BY_NAME[stage].reads_data(config) else None
        return self.current(run, stage, config, parents, digest) is not None

    def images(self, config: Config, *, will_retrain: bool = False) -> "ImageData":
        """Return the images that stages with this configuration see; where a retraining will follow
        and they are read now, warnings are told for that, too.
        """
        self._will_retrain = self._will_retrain or will_retrain
        return self._own_data(self.settled(config), None)

    def settled(self, config: Config, sizes: "ImageSize | None" = None) -> Config:
        """Return ``config`` with the image size that a folder's pictures decide.

        It is so part of the stages' keys, and stays the run's where its later stages are run alone.
        It is decided, and told, once: what changes during a command changes no size. ``sizes``: as
        ``image_size`` found them, where they are known.
        """
        data = config.data
        if data_sets.find(data.name).size is not None or data.image_size is not None:
            return config
        place = data.root, data.fit, data.crop_fraction
        if place not in self._sizes:
            from d2nas.data.sizes import image_size

            try:
                found = sizes or image_size(data, data_folder())
            except ConfigError:
                return config  # whoever reads the images names all that is wrong with them
            self.display.say(f"image size {found.size}: {found.why} (data.image_size sets another)")
            self._sizes[place] = found.size
        return _with_image_size(config, self._sizes[place])

    def resumable_step(
        self,
        run: str,
        stage: str,
        config: Config,
        parents: Mapping[str, Version],
        data_digest: str | None,
    ) -> int:
        """Return the step at which a stage's last checkpoint continues; 0 without one."""
        if not BY_NAME[stage].checkpoints:
            return 0
        config = self.settled(config) if BY_NAME[stage].reads_data(config) else config
        ids = {role: version.id for role, version in parents.items()}
        key = BY_NAME[stage].key(config, ids, data_digest)
        state = self.store.find(run, state_of(stage), key)
        return 0 if state is None else int(checked(state).manifest.facts["step"])

    def data_digest(self, config: Config) -> str:
        """Return the digest of the images' content; hashes of unchanged files are remembered."""
        progress = HashingProgress(self.display.say, self.check_stop, self.clock)
        root = data_folder()
        with FileHashes(self.store) as cache:
            return content_digest(config.data, default_root=root, cache=cache, progress=progress)

    def _load_data(self, config: Config, digest: str | None) -> "ImageData":
        def read() -> None:
            self._own_data(config, digest)

        self.decide("the images of rank 0", read)  # from here on nothing needs to be downloaded
        data = self._own_data(config, digest)
        self.decide("the images of every rank", lambda: None)
        return data

    def _own_data(self, config: Config, digest: str | None) -> "ImageData":
        seed = config.run.seed if config.data.split_seed is None else config.data.split_seed
        if self._data is None or self._data[0] != (config.data, seed):
            self._data = None  # two data sets at once could be too much
            data = self._read_data(config)
            self._data = (config.data, seed), data
        data = self._data[1]
        if self._will_retrain and config.derive.model is None:
            from d2nas.train.retrain import check_auxiliary

            check_auxiliary(config.retrain, data.image_size)
        if digest is not None and data.digest != digest:
            if self.ranks is not None and self.ranks.rank > 0:
                what = f"rank {self.ranks.rank} reads other images than rank 0"
                raise ConfigError(what, hint="give every machine the same data set")
            raise ConfigError("the images changed while they were read", hint="run again")
        return data

    def _read_data(self, config: Config) -> "ImageData":
        from d2nas.data.augmentation import strong_augmentation
        from d2nas.data.images import load_data

        hashes = FileHashes(self.store)  # known since ``data_digest``, and not written again
        root, seed = data_folder(), config.run.seed
        data = load_data(config.data, seed=seed, default_root=root, cache=hashes)
        for line in data.summary_lines():
            self.display.say(line)
        for line in data.warnings:
            self.display.warn(line)
        cutout = config.retrain.cutout if self._will_retrain else 0
        for line in strong_augmentation(data.image_size, config.data.crop_padding, cutout):
            self.display.warn(line)
        return data

    def _execute(
        self,
        run: str,
        stage: str,
        config: Config,
        parents: Mapping[str, Version],
        digest: str | None,
        reuse: Reuse,
    ) -> Version:
        ids = {role: version.id for role, version in parents.items()}
        commit = _Commit(run, stage, config, ids, BY_NAME[stage].key(config, ids, digest))
        hooks = _StageHooks(self, commit, self.clock, is_fresh=reuse is Reuse.NOTHING)
        self.decide(f"the start of {stage}", lambda: self._begin(run, stage, reuse))
        started = self.clock()
        with self.store.stage() as work, hooks.events, hooks.threads:
            context = Context(
                config, parents, work, hooks, lambda: self._load_data(config, digest), self.ranks
            )
            try:
                facts = run_stage(stage, context)
            except Exception as error:
                stopped = hooks.stop_for(error)
                hooks.events.outcome = outcome_of_error(stopped or error)
                if stopped is None:
                    raise
                raise stopped from error
            version = self.version_for_all(
                f"the version of {stage}",
                lambda: commit.make(self.store, work, stage, stage, facts, hooks.seconds()),
            )
            assert version is not None
            if hooks.events.tells_outcomes:
                hooks.events.outcome = outcome_of(version)
        self.display.stage_ends(stage, str(version.reference), self.clock() - started)
        self.decide(f"the end of {stage}", lambda: self.check_stop(f"after {stage}, which is done"))
        return version

    def _begin(self, run: str, stage: str, reuse: Reuse) -> None:
        """Clear the way for a stage, or refuse it."""
        if self.before_first is not None:
            check, self.before_first = self.before_first, None
            check(stage)
        if reuse is Reuse.NOTHING and BY_NAME[stage].checkpoints:
            self.store.drop_states(run, state_of(stage))
        self.check_stop(f"before {stage}")
        self.store.try_writing(run, stage)

    def check_stop(self, when: str) -> None:
        """Raise ``StoppedError`` if a signal asked this process for a stop."""
        if self.stop.signal_number is not None:
            raise StoppedError(
                self.stop.signal_number,
                f"stopped {when}",
                hint="the same command continues from there",
            )


@dataclass(frozen=True)
class _Commit:
    """Facts that all versions of one execution share: the stage's own and its checkpoints."""

    run: str
    stage: str
    config: Config
    parents: Mapping[str, str]
    key: str

    def make(
        self,
        store: Store,
        work: Any,
        stage: str,
        kind: str,
        facts: Mapping[str, Any],
        seconds: float | None,
    ) -> Version:
        return store.commit(
            work,
            run=self.run,
            stage=stage,
            kind=kind,
            key=self.key,
            parents=self.parents,
            config=BY_NAME[self.stage].config(self.config),
            seed=self.config.run.seed,
            code_schema=BY_NAME[self.stage].code_schema,
            versions=library_versions(),
            facts=facts,
            note={
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": platform.node(),
                "cpus": {"allowed": allowed_cpus(), "limit": cpu_limit()},
                "command": sys.argv[1:],
                "seconds": seconds,
                "facts": dict(facts),
                "config": self.config.to_dict(),
            },
        )


class _StageHooks:
    """The hooks of one stage execution."""

    def __init__(
        self, runner: Runner, commit: _Commit, clock: Callable[[], float], *, is_fresh: bool
    ) -> None:
        self._runner, self._commit, self._clock = runner, commit, clock
        self._started = self._last_checkpoint = clock()
        self._earlier: float | None = 0.0
        self._saved: str | None = None
        folder = runner.store.root / "events" / commit.run / commit.stage
        stage = BY_NAME[commit.stage]
        facts = {
            "key": commit.key,
            "fresh": is_fresh,
            "params": flat_params(stage.config(commit.config)),
        }
        self.events = runner.events(folder, runner.display.warn, runner._sinks, facts)
        self.threads = ExitStack()
        """Gives PyTorch back the number of threads that it had before the stage."""

    def seconds(self) -> float | None:
        """Return the time since the first step, with the executions continued: None if one of them
        did not record its time. What was lost after a last checkpoint counts once.
        """
        return None if self._earlier is None else self._earlier + self._clock() - self._started

    def stop_for(self, error: Exception) -> StoppedError | None:
        """Return what to tell where a stop made the stage fail before it could save."""
        kept = f"{self._saved} is the last checkpoint" if self._saved else "no checkpoint was made"
        return self._runner.stop.stop_for(
            error,
            wait=True,
            where=f" in {self._commit.stage}, {kept}",
            hint=f"the same command {'continues from there' if self._saved else 'starts it again'}",
        )

    def say(self, line: str) -> None:
        self._runner.display.say(line)

    def warn(self, line: str) -> None:
        self._runner.display.warn(line)

    def reserve(self, num_bytes: int) -> None:
        stage, store = self._commit.stage, self._runner.store
        self._runner.decide(f"room for {stage}", lambda: store.require_space(num_bytes, what=stage))

    def begin(self, total: int, done: int, unit: str, images: int = 0, epochs: int = 0) -> None:
        self._runner.display.stage_begins(self._commit.stage, total, done, unit, images, epochs)
        # What a process does once, imports and reading data, is no part of its first stage.
        self._started = self._last_checkpoint = self._clock()

    def change(self, total: int, epochs: int) -> None:
        self._runner.display.stage_changes(self._commit.stage, total, epochs)

    def advance(self, done: int, row: Mapping[str, Any] | None) -> None:
        self._runner.display.stage_advances(self._commit.stage, done, row)
        self.events.add(done, row)

    def pause(self) -> None:
        when = f"in {self._commit.stage}, which starts over"
        self._runner.decide(f"a stop {when}", lambda: self._runner.check_stop(when))

    def stalled(self, seconds: float) -> None:
        if self._runner.stop.signal_number is not None and seconds >= STALL_SECONDS:
            error = TimeoutError(f"{seconds:.0f} s without a batch of images")
            raise self.stop_for(error) or error

    def resume(self) -> "TrainState | None":
        version = self._runner.version_for_all("the checkpoint to continue from", self._last_state)
        state = None if version is None else read_state(version)
        rows = self.events.begin([] if state is None else state.metrics)
        if rows is not None:
            self.say(f"a row per {BY_NAME[self._commit.stage].rows}: tail -f {rows}")
        if version is None or state is None:
            commit = self._commit
            lost = given_up(
                self._runner.store, commit.run, commit.stage, commit.config, commit.parents
            )
            if lost is not None:
                self.warn(lost)
            return None
        self._as_at_the_checkpoint(version, state)
        self._earlier = (version.note or {}).get("seconds")
        self._saved = f"{version.reference}, step {state.step},"
        self.say(f"continues at step {state.step} ({version.reference})")
        return state

    def _last_state(self) -> Version | None:
        """Return the checkpoint to continue from. Raises ``ConfigError`` for one that is not to."""
        version = self._runner.store.find(
            self._commit.run, state_of(self._commit.stage), self._commit.key
        )
        if version is not None:
            for line in library_warnings(version, library_versions()):
                self.warn(line)
        return version

    def _as_at_the_checkpoint(self, version: Version, state: "TrainState") -> None:
        """Add floats in the same order, as far as this machine can, and tell what is different."""
        import torch

        from d2nas.train.machine import machine_facts, take_threads

        before = take_threads(version.manifest.facts)
        if before is not None:
            self.threads.callback(torch.set_num_threads, before)
            self.say(
                f"threads: {torch.get_num_threads()}, as at the checkpoint, so that the result is "
                f"the same to the last bit (here {before}; OMP_NUM_THREADS decides)"
            )
        for line in arithmetic_warnings(version, machine_facts(state.device, self._runner.ranks)):
            self.warn(line)

    def checkpoint(self, step: int, capture: "Callable[[int], TrainState]") -> None:
        runner, stage = self._runner, state_of(self._commit.stage)
        due = self._clock() - self._last_checkpoint >= CHECKPOINT_SECONDS
        what = f"whether to stop or save at step {step}"
        stopping, due = agree(runner.ranks, runner.stop, what, due=due)
        if not stopping and not due:
            return
        saved = runner.decide(f"the checkpoint at step {step}", lambda: self._save(step, capture))
        self._saved = f"{saved}, step {step},"
        runner.decide(
            "the older checkpoints",
            lambda: runner.store.retain_states(self._commit.run, stage, KEPT_CHECKPOINTS),
        )
        self._last_checkpoint = self._clock()
        if stopping or runner.ranks is None:
            # A signal that came while this was saved: other ranks are told at the next step.
            when = f"at step {step}, saved as {saved}"
            runner.decide(f"the stop at step {step}", lambda: runner.check_stop(when))

    def _save(self, step: int, capture: "Callable[[int], TrainState]") -> str | None:
        """Commit a checkpoint and return its name."""
        from d2nas.train.machine import machine_facts

        state = capture(step)
        facts = {"step": step, **machine_facts(state.device, self._runner.ranks)}
        store, stage = self._runner.store, state_of(self._commit.stage)
        with store.stage() as work:
            write_state(work, state)
            return self._commit.make(store, work, stage, "state", facts, self.seconds()).reference


def agree(ranks: "Ranks | None", stop: StopFlag, what: str, *, due: bool) -> tuple[bool, bool]:
    """Return whether to stop, and whether a checkpoint is due: on any rank is on all.

    A signal that comes while the ranks agree is kept, and counts the next time: what the others
    have not heard of yet is nothing to act on.
    """
    if ranks is None:
        return stop.signal_number is not None, due
    number, is_due = ranks.largest(what, stop.signal_number or 0, int(due))
    if number:
        stop.signal_number = number
    return bool(number), bool(is_due)


def _with_image_size(config: Config, size: int | None) -> Config:
    data = config.data.model_copy(update={"image_size": size})
    return config.model_copy(update={"data": data})


def library_versions() -> dict[str, str]:
    """Return the versions that a manifest records, without importing the libraries."""
    versions = {"d2nas": __version__, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in _RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions

"""A budget of wall time for a whole run: as many epochs of search and retraining as fit into it.

Both are chosen before the search; those of the retraining once more when its cell is known, by what
is left. They are ordinary keys: the run is exactly the one with these epochs, and nothing stops a
training in the middle. A choice is kept, so that an interrupted run continues with it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from d2nas.config import Config, RetrainConfig, SearchConfig, override_key
from d2nas.config.effects import without_effect
from d2nas.errors import ConfigError
from d2nas.genotype import Genotype

from ..running.runner import Reuse, Runner, RunResult
from ..stages import BY_NAME, stages_of_run
from .plan import Estimates, data_shape
from .plan_times import as_time, read_duration

FEWEST_EPOCHS = 4
"""Fewest epochs of a search or a retraining, or the preset's own where these are fewer: the
shortest search of which three tenths, rounded down, are a warm-up (a choice).
"""
MOST_EPOCHS = {"search": SearchConfig().epochs, "retrain": RetrainConfig().epochs}
"""Most epochs, or the preset's own where these are more: the published lengths."""
SPARE = 0.15
"""Part of a budget that is not planned: steps are timed for seconds, not for hours (a choice)."""
CACHE = "time-budget"
_CHOSEN = ("search.epochs", "retrain.epochs")
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs that a run has, and what it was estimated to take in all, in seconds."""

    search: int
    retrain: int
    seconds: float = 0.0

    def applied(self, config: Config) -> Config:
        """Return the configuration with these epochs, and warm-ups in proportion."""
        search = config.search
        warmup = search.warmup_epochs * self.search // search.epochs  # as the default is rounded
        shorter = {"epochs": self.search, "warmup_epochs": warmup}
        update = {
            "search": search.model_copy(update=shorter),
            "retrain": _of_length(config.retrain, self.retrain, like=config.retrain),
        }
        return config.model_copy(update=update)


class TimeBudget:
    """A budget that began when it was made; raises ``ConfigError`` for a text that is no time."""

    def __init__(self, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.text, self.seconds = text.strip(), read_duration(text)
        self._clock, self._began = clock, clock()
        self._own = RetrainConfig()
        self._chosen: Epochs | None = None
        self._key: dict[str, Any] = {}
        self._predicted: list[float] = []
        self._continues = False

    @property
    def spent(self) -> float:
        """Seconds since the budget was made."""
        return self._clock() - self._began

    def known(self, runner: Runner, run: str, config: Config, reuse: Reuse) -> Epochs | None:
        """Return what was chosen for this run before, if anything was and it may be used.

        Raises ``ConfigError`` for a library's network or a teacher, which are not timed.
        """
        for key, value in (
            ("derive.model", config.derive.model),
            ("retrain.teacher", config.retrain.teacher),
        ):
            if value is not None:
                raise ConfigError(
                    f"--time is not supported with {key}", hint="set retrain.epochs instead"
                )
        self._key, self._own = self._key_of(run, config), config.retrain
        found = runner.store.cached(CACHE, self._key) if reuse is Reuse.EVERYTHING else None
        if found is None:
            return None
        self._chosen, self._continues = Epochs(**found), True
        runner.display.say(f"time: {_told(self._chosen)}, as chosen before; --fresh chooses anew")
        return self._chosen

    def choose(self, runner: Runner, run: str, config: Config, sized: Config) -> Epochs:
        """Choose the epochs of a run, of which none were known, by timing a few steps; keep them.

        ``sized``: the configuration with the size that will be trained. Raises ``ConfigError``
        where the fewest epochs take longer, with the shortest budget that would do.
        """
        with runner.store.lock_run(run):
            sized = runner.settled(sized)
            runner.data_digest(sized)
            runner.images(sized, will_retrain=True)
            runner.display.say(f"time: timing a few steps, for {self.text} in all ...")
            chosen = self.fitting(sized, Estimates(sized))
            runner.check_stop("before the search")
            runner.store.store_cache(CACHE, self._key, asdict(chosen))
        self._chosen = chosen
        self._predicted.append(chosen.seconds)
        runner.display.say(_chosen_line(chosen, config))
        return chosen

    def choose_again(self, runner: Runner, config: Config, derived: RunResult) -> Config:
        """Return the configuration with the epochs of retraining that fit into what is left, now
        that its cell is known, and keep the choice.

        What was interrupted, in a command whose time is not known, keeps what was chosen before,
        and so does a derivation whose key the epochs are part of.
        """
        first = self._chosen
        ranks = config.derive.rank_by == "training" and (
            config.derive.compares or config.derive.pareto is not None
        )
        if first is None or self._continues or ranks:
            return config
        genotype = Genotype.from_json(derived.versions["derive"].read("genotype.json"))
        settled = runner.settled(config)
        estimates = Estimates(settled, genotype)
        seconds = {
            stage: float(estimates.of(stage, 0)["seconds"])
            for stage in stages_of_run(settled)
            if stage not in ("search", "derive")
        }
        runner.check_stop("before the retraining")
        each, spent = seconds.pop("retrain") / settled.retrain.epochs, self.spent
        rest = sum(seconds.values())
        left = (1 - SPARE) * self.seconds - spent - rest
        epochs = _clamped("retrain", self._own.epochs, int(left / each))
        chosen = Epochs(first.search, epochs, spent + rest + each * epochs)
        runner.store.store_cache(CACHE, self._key, asdict(chosen))
        self._chosen = chosen
        self._predicted.append(chosen.seconds)
        if epochs != first.retrain:
            runner.display.say(
                f"time: retrain.epochs={epochs} in place of {first.retrain}, by the derived cell: "
                f"about {as_time(chosen.seconds)} in all"
            )
        retrain = _of_length(config.retrain, epochs, like=self._own)
        return config.model_copy(update={"retrain": retrain})

    def planned(self, runner: Runner, run: str, config: Config) -> tuple[Config, Estimates | None]:
        """Return the configuration that a run would have, and estimates of it; keeps no choice."""
        known = self.known(runner, run, config, Reuse.EVERYTHING)
        if known is not None:
            return known.applied(config), None
        settled = runner.settled(config)
        estimates = Estimates(settled)
        chosen = self.fitting(settled, estimates)
        runner.display.say(_chosen_line(chosen, config))
        config = chosen.applied(config)
        return config, estimates.of_epochs(runner.settled(config))

    def fitting(self, config: Config, estimates: Estimates) -> Epochs:
        """Return the most epochs that fit, in the configuration's own proportion of search and
        retraining, as far as fewest and most allow. Raises ``ConfigError`` as ``choose``.
        """
        estimates.seconds()  # times all that has to be
        spent = self.spent

        def taking(epochs: Epochs) -> Epochs:
            seconds = spent + estimates.of_epochs(epochs.applied(config)).seconds()
            return Epochs(epochs.search, epochs.retrain, seconds)

        planned = (1 - SPARE) * self.seconds
        few, many = 0.0, max(MOST_EPOCHS.values()) * 1.0
        shortest = taking(_scaled(config, few))
        if shortest.seconds > planned:
            enough = as_time(math.ceil(shortest.seconds / (1 - SPARE)))
            raise ConfigError(
                f"--time {self.text} is too short: {_told(shortest)} take about "
                f"{as_time(shortest.seconds)} here",
                hint=f"--time {enough} would do; or a smaller network, fewer images",
            )
        if taking(_scaled(config, many)).seconds <= planned:
            few = many
        for _ in range(_HALVINGS):
            middle = (few + many) / 2
            if taking(_scaled(config, middle)).seconds <= planned:
                few = middle
            else:
                many = middle
        return taking(_scaled(config, few))

    def closing_line(self) -> str:
        """Return what a finished run took, beside what was predicted."""
        taken = as_time(self.spent)
        if self._continues and self._chosen is not None:
            whole = as_time(self._chosen.seconds)
            return f"time: {taken} in this command; {whole} predicted for all, of {self.text}"
        told = " and ".join(map(as_time, self._predicted))
        return f"time: {taken}; {told} predicted before search and retraining, of {self.text}"

    def _key_of(self, run: str, config: Config) -> dict[str, Any]:
        """Return what a choice depends on: the run as it would be without a budget."""
        gate = config.validate_
        stages = [one for one in stages_of_run(config) if one in ("search", "derive", "retrain")]
        return {
            "run": run,
            "seconds": self.seconds,
            "stages": {stage: BY_NAME[stage].config(config) for stage in stages},
            "data": asdict(data_shape(config.data)),
            "gate": [gate.max_p99_ms, gate.gated_batch, gate.device],
        }


def check_options(settings: Sequence[str], baselines: Sequence[str]) -> None:
    """Raise ``ConfigError`` where settings give epochs, which a budget chooses, or where more than
    one network would be trained.
    """
    if baselines:
        raise ConfigError(
            "--time is not supported with --baseline: it is for the run alone",
            hint="d2nas baseline afterwards, with the epochs that were chosen",
        )
    given = [key for key in map(override_key, settings) if key in _CHOSEN]
    if given:
        raise ConfigError(
            f"--time chooses {' and '.join(_CHOSEN)}: it is not supported with --set {given[0]}",
            hint="leave out one of them",
        )


def _of_length(retrain: RetrainConfig, epochs: int, *, like: RetrainConfig) -> RetrainConfig:
    """Return settings with so many epochs, and a warm-up of the same share as in ``like``, rounded
    up: a training that warms up still does.
    """
    warmup = min(-(-like.warmup_epochs * epochs // like.epochs), epochs - 1)
    return retrain.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})


def _scaled(config: Config, factor: float) -> Epochs:
    """Return a multiple of the configuration's epochs, from the fewest to the most."""
    search = config.search.epochs
    if "search" in stages_of_run(config) and not without_effect(config, ["search.epochs"]):
        search = _within("search", search, factor)
    return Epochs(search, _within("retrain", config.retrain.epochs, factor))


def _within(section: str, own: int, factor: float) -> int:
    return _clamped(section, own, int(own * factor))


def _clamped(section: str, own: int, epochs: int) -> int:
    """Return so many epochs, but no fewer or more than there may be."""
    return min(max(epochs, min(own, FEWEST_EPOCHS)), max(own, MOST_EPOCHS[section]))


def _told(epochs: Epochs) -> str:
    return f"search.epochs={epochs.search} and retrain.epochs={epochs.retrain}"


def _chosen_line(chosen: Epochs, config: Config) -> str:
    return (
        f"time: {_told(chosen)} in place of {config.search.epochs} and {config.retrain.epochs}: "
        f"about {as_time(chosen.seconds)} in all"
    )

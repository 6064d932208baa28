"""Runner of ranks above 0: the same stages, without writing to the store.

Rank 0 looks into the store, commits, shows and decides; the others are told.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from d2nas.config import Config
from d2nas.errors import LostRankError, StoppedError

from ..stages import Context, Hooks, parents_of, reads_data, run_stage
from ..store import Store, Version
from .checkpoints import read_state
from .display import Display
from .runner import Reuse, Runner, RunResult, agree
from .signals import STALL_SECONDS, StopFlag

if TYPE_CHECKING:
    from d2nas.data.images import ImageData
    from d2nas.parallel import Ranks
    from d2nas.train.state import TrainState


LAST_WORDS = "D2NAS_LAST_WORDS"
"""Variable with the number of the open file that a rank's launcher reads."""


def leave_to_the_launcher(error: LostRankError) -> None:
    """End this process with the error's code, where a launcher tells it: the launcher knows better
    which rank ended and why. Returns where there is none.
    """
    number = os.environ.get(LAST_WORDS, "")
    if number.isdecimal():
        os.write(int(number), f"{error}\n{error.hint or ''}\n".encode())
        raise SystemExit(error.exit_code)


class Silence(Display):
    """Shows nothing: rank 0 does."""


class Follower(Runner):
    """The runner of a rank above 0."""

    def __init__(self, store: Store, stop: StopFlag, ranks: "Ranks") -> None:
        super().__init__(store, Silence(), stop, ranks=ranks)
        self._first = ranks

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
        """Take part in the stages that rank 0 executes; the versions are those that it has."""
        if any(reads_data(stage, config) for stage in stages):
            config = self.settled(config)
        versions = dict(given or {})
        for stage in stages:
            reference = self._first.from_first(None)
            if reference is None:
                parents = {role: versions[role] for role in parents_of(stage, config)}
                self._take_part(stage, config, parents)
                reference = self._first.from_first(None)
            versions[stage] = self.store.open(reference)
        return RunResult(run, versions, [])

    def _take_part(self, stage: str, config: Config, parents: Mapping[str, Version]) -> None:
        hooks = _FollowerHooks(self.store, self.stop, self._first)

        def data() -> "ImageData":
            self._first.from_first(None)
            return self._own_data(config, None)

        with self.store.stage() as work:  # never committed, so removed
            run_stage(stage, Context(config, parents, work, hooks, data, self._first))


class _FollowerHooks(Hooks):
    """The hooks of a stage whose checkpoints rank 0 writes; the rest is not told."""

    def __init__(self, store: Store, stop: StopFlag, ranks: "Ranks") -> None:
        self._store, self._stop, self._ranks = store, stop, ranks

    def resume(self) -> "TrainState | None":
        """Return the checkpoint that rank 0 continues from."""
        from d2nas.train.machine import take_threads

        reference = self._ranks.from_first(None)
        if reference is None:
            return None
        version = self._store.open(reference)
        take_threads(version.manifest.facts)  # for good: this process ends with its stages
        return read_state(version)

    def stalled(self, seconds: float) -> None:
        """Stop while images do not come, as rank 0 does."""
        if self._stop.signal_number is not None and seconds >= STALL_SECONDS:
            raise StoppedError(self._stop.signal_number, "stopped while it waited for images")

    def checkpoint(self, step: int, capture: "Callable[[int], TrainState]") -> None:
        """Stop where rank 0 does; it saves."""
        stopping, _ = agree(self._ranks, self._stop, due=False)
        if stopping:
            assert self._stop.signal_number is not None
            raise StoppedError(self._stop.signal_number, f"stopped at step {step}")

"""Times of many models on one device, in turns.

A machine's speed changes from second to second, by more than what is to be told apart. So all
models are timed again and again for a few milliseconds, in another order in each round, and of a
model's medians the lowest counts: what it takes where nothing else is in the way.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..onnx_io.latency import timing_images
from ..onnx_io.session import OnnxSession
from . import ROUNDS

TURN_MILLISECONDS = 6.0
MIN_RUNS = 3
"""Of a model in its turn, after one that does not count."""

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class InTurns:
    """Medians of a model in each round, in milliseconds."""

    medians_ms: tuple[float, ...]

    @property
    def quietest_ms(self) -> float:
        """The lowest median."""
        return min(self.medians_ms)

    @property
    def spread(self) -> float:
        """How far the middle round is above the quietest, as a fraction of it."""
        return statistics.median(self.medians_ms) / self.quietest_ms - 1.0


def time_in_turns(
    sessions: Sequence[OnnxSession],
    batch: int,
    *,
    rounds: int = ROUNDS,
    done: Callable[[int], object] = lambda _round: None,
    clock: Clock = time.perf_counter_ns,
) -> list[InTurns]:
    """Time every model on a batch of so many images, which lies on its device, in every round.

    ``done`` is called after each round with its number, from 1 on. Raises what the sessions raise;
    each one's provider is checked after the last round.
    """
    runs = [session.bind(timing_images(batch, session.description)) for session in sessions]
    medians: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        order = random.Random(number).sample(range(len(runs)), len(runs))
        for index in order:
            medians[index].append(_median_ms(runs[index], clock))
        done(number + 1)
    for session in sessions:
        session.check_provider()
    return [InTurns(tuple(of_one)) for of_one in medians]


def _median_ms(run: Callable[[], object], clock: Clock) -> float:
    run()
    taken: list[int] = []
    until = clock() + int(TURN_MILLISECONDS * 1e6)
    while len(taken) < MIN_RUNS or clock() < until:
        began = clock()
        run()
        taken.append(clock() - began)
    return statistics.median(taken) / 1e6

"""A target latency before the search: a size of the network at which there are cells to choose
from, a table of its parts on this machine, and the limit that search or derivation keep.

The target is a p99 from host to host; a table predicts medians of quiet moments. What lies between
them is measured on random networks of the size, once, and so is how many of those keep the target.
"""

import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from d2nas.config import Config, RetrainConfig
from d2nas.config.deployment import MIN_SAMPLES
from d2nas.config.registry import search_methods
from d2nas.errors import ConfigError
from d2nas.files.text_files import read_space
from d2nas.genotype import uniform

from ..latency.graphs import network_graph
from ..latency.limits import serving_of
from ..latency.measuring import Wanted, measure_table, require_deployed
from ..latency.timing import time_in_turns
from ..onnx_io.latency import measure_latency
from ..onnx_io.providers import runtime_device
from ..onnx_io.session import OnnxSession, open_session
from ..running.runner import Reuse, Runner
from ..store import FileSystem
from .latency_budget import CHANNEL_STEP, depths_below
from .latency_limit import check_limit
from .plan import data_shape

NUM_RANDOM = 8
"""Random networks that are timed at each size."""
ROUNDS = 6
TAILS = 3
"""Measurements of a p99, whose middle counts: one disturbance is no tail."""
QUANTILE = 0.1
"""Share of random cells that has to keep the target at the size that is searched for (a choice)."""
MARGIN = 0.95
"""Limit as a part of what the target allows: prediction and tail may be wrong (a choice)."""
AMPLE = 0.8
"""Where the slowest random network takes less than this part of the target, nothing is limited."""
FRONT_POINTS = 8
"""Cells of the front in the report."""
CACHE = "latency-target"


@dataclass(frozen=True, slots=True)
class RandomNetworks:
    """Random networks of a size: what they take in quiet moments, in milliseconds, and the p99 of
    the middle one as a multiple of that; None where too few are fast enough to be asked.
    """

    num_cells: int
    init_channels: int
    milliseconds: tuple[float, ...]
    tail: float | None = None

    def __str__(self) -> str:
        fastest, slowest = min(self.milliseconds), max(self.milliseconds)
        return (
            f"{self.num_cells} cells x {self.init_channels} channels: {fastest:.3g} to "
            f"{slowest:.3g} ms"
        )

    @property
    def low(self) -> float:
        """What a share ``QUANTILE`` of random cells takes less than, by mean and deviation."""
        mean, deviation = statistics.fmean(self.milliseconds), statistics.stdev(self.milliseconds)
        return mean + statistics.NormalDist().inv_cdf(QUANTILE) * deviation


@dataclass(frozen=True, slots=True)
class LatencyTarget:
    """What a run keeps a target by: a size, the latency table of its parts, and limits on what that
    predicts, in milliseconds.
    """

    num_cells: int
    init_channels: int
    search_ms: float | None
    """None where the search was made before, without a limit."""
    derive_ms: float | None
    """None: the search's."""
    table: str
    """Path of the table."""
    was_lowered: bool = False
    """Whether ``derive_ms`` is less than it was, as what was derived took too long."""

    @property
    def limit_ms(self) -> float:
        """The limit of the derivation."""
        limit = self.search_ms if self.derive_ms is None else self.derive_ms
        assert limit is not None
        return limit

    def applied(self, config: Config) -> Config:
        """Return the configuration with size, table and limits, and with a front to be drawn."""
        method, derive = search_methods.find(config.search.method), config.derive
        can_rank = method.learns_distribution or derive.rank_by == "training"
        front = {} if derive.pareto or not can_rank else {"pareto": FRONT_POINTS}
        changes: dict[str, dict[str, Any]] = {
            "run": {"latency_table": self.table},
            "search": {"max_latency_ms": self.search_ms},
            "derive": {"max_latency_ms": self.derive_ms, **front},
            "retrain": {"num_cells": self.num_cells, "init_channels": self.init_channels},
        }
        return config.model_copy(
            update={
                section: getattr(config, section).model_copy(update=update)
                for section, update in changes.items()
            }
        )


def no_limit_because(config: Config) -> str | None:
    """Return why a run cannot set a limit on latency for its search and derivation; None where it
    can.
    """
    search, derive = config.search, config.derive
    if config.run.latency_table is not None or config.derive_limit is not None:
        return "the configuration has a limit or a latency table of its own"
    if search.latency_weight is not None:
        return "the configuration has search.latency_weight"
    if derive.given is not None:
        return f"{derive.given} is given"
    if derive.compares:
        return "derive.candidates and derive.budget choose without a limit"
    if not search_methods.find(search.method).keeps_limits:
        return f"a limit is not supported for {search.method}"
    try:
        require_deployed(read_space(search.space))
    except ConfigError as error:
        return str(error)
    return None


def latency_target(runner: Runner, run: str, config: Config, reuse: Reuse) -> LatencyTarget | None:
    """Return what a run keeps ``validate.max_p99_ms`` by, as it was measured before for this run,
    else as measured now; None where random networks of the configured size keep it anyway.

    Raises ``ConfigError`` where no cell of the smallest size keeps it, with the fastest.
    """
    wanted = _wanted(config)
    known = (
        None if reuse is Reuse.NOTHING else runner.store.cached(CACHE, _key(run, config, wanted))
    )
    if known is None:
        with runner.store.lock_run(run):
            return _measured(runner, run, config, wanted, reuse)
    if known["target"] is None:
        return None
    target = LatencyTarget(**known["target"])
    if not Path(target.table).is_file():
        _write(Path(target.table), known["table"].encode())
    runner.display.say(
        f"latency: {target.num_cells} cells x {target.init_channels} channels, at most "
        f"{target.limit_ms:.3g} ms by the table, as chosen before; --fresh measures anew"
    )
    if target.search_ms is None and not _is_searched(runner, run, config, reuse):
        # The search without a limit, of which the target was, is not this configuration's.
        target = replace(target, search_ms=target.derive_ms, derive_ms=None, was_lowered=False)
        _remember(runner, _key(run, config, wanted), target)
    return target


def lowered(
    runner: Runner, run: str, config: Config, target: LatencyTarget, taken_ms: float
) -> LatencyTarget | None:
    """Return the target with a lower limit for the derivation, where what was derived takes
    ``taken_ms``, which is too long; None where no cell of the size keeps such a limit.
    """
    allowed = config.validate_.max_p99_ms
    assert allowed is not None
    derive_ms = MARGIN * target.limit_ms * allowed / taken_ms
    lower = replace(target, derive_ms=derive_ms, was_lowered=True)
    limited = lower.applied(config)
    assert limited.derive_limit is not None
    try:
        check_limit(limited, limited.derive_limit)
    except ConfigError:
        return None
    _remember(runner, _key(run, config, _wanted(config)), lower)
    return lower


def sizes(retrain: RetrainConfig) -> Iterator[tuple[int, int]]:
    """Yield cells and channels in the order in which they are tried: at least half of the channels
    at full depth, at two thirds and a third of it, then a quarter of them.
    """
    full = retrain.init_channels
    half = -(-full // (2 * CHANNEL_STEP)) * CHANNEL_STEP  # rounded up, to be one
    parts = (full * 3 // 4 // CHANNEL_STEP * CHANNEL_STEP, half, full // 4)
    rounded = (width // CHANNEL_STEP * CHANNEL_STEP for width in parts)
    widths = [*dict.fromkeys((full, *(width for width in rounded if 0 < width < full)))]
    depths = depths_below(retrain.num_cells)
    for is_wide in (True, False):
        for depth in depths:
            yield from ((depth, width) for width in widths if (2 * width >= full) is is_wide)


def _is_searched(runner: Runner, run: str, config: Config, reuse: Reuse) -> bool:
    """Whether a search without a limit was made before, and will be used."""
    return reuse is Reuse.EVERYTHING and runner.is_current(run, "search", config, {})


def _measured(
    runner: Runner, run: str, config: Config, wanted: Wanted, reuse: Reuse
) -> LatencyTarget | None:
    key = _key(run, config, wanted)
    allowed, say = config.validate_.max_p99_ms, runner.display.say
    assert allowed is not None
    say(f"latency: timing random networks for a p99 of {allowed:g} ms ...")
    tried: list[RandomNetworks] = []
    for num_cells, init_channels in sizes(config.retrain):
        runner.check_stop("before the search")
        wanted = replace(wanted, num_cells=num_cells, init_channels=init_channels)
        tried.append(_time_random(wanted, config))
        if tried[-1].low * (tried[-1].tail or math.inf) <= allowed:
            break
    else:
        tried.sort(key=lambda one: -one.low)  # and the fastest is told where it is too slow
    found = tried[-1]
    tail = found.tail or 1.0
    if len(tried) == 1 and max(found.milliseconds) * tail < AMPLE * allowed:
        say(f"latency: random networks of {found}, p99 {tail:.2f} x as much: nothing is limited")
        _remember(runner, key, None)
        return None
    if len(tried) > 1:
        say(f"latency: too slow are random networks of {'; '.join(map(str, tried[:-1]))}")
    limit = MARGIN * allowed / tail
    say(
        f"latency: random networks of {found}, p99 {tail:.2f} x as much: at most {limit:.3g} ms by "
        "a table, which is measured now ..."
    )
    wanted = replace(wanted, num_cells=found.num_cells, init_channels=found.init_channels)
    table = measure_table(
        wanted,
        device=runtime_device(config.validate_.device),
        num_threads=None,
        done=lambda _: runner.check_stop("while the table was measured"),
    )
    path = runner.store.root / "latency" / f"{run}-{table.digest[:12]}.json"
    _write(path, table.to_json())
    made = _is_searched(runner, run, config, reuse)
    if made:
        say("latency: the search made before, without a limit, is kept: the derivation keeps it")
    target = LatencyTarget(
        found.num_cells,
        found.init_channels,
        search_ms=None if made else limit,
        derive_ms=limit if made else None,
        table=str(path),
    )
    limited = target.applied(config)
    assert limited.derive_limit is not None
    check_limit(limited, limited.derive_limit)
    _remember(runner, key, target)
    return target


def _time_random(wanted: Wanted, config: Config) -> RandomNetworks:
    """Time random networks in turns, and where enough keep the target the middle one's p99."""
    device, numbers = runtime_device(config.validate_.device), random.Random(0)
    sessions = [
        open_session(
            network_graph(wanted.claim(uniform(wanted.space, numbers)), wanted.serving),
            device=device,
        )
        for _ in range(NUM_RANDOM)
    ]
    batch, allowed = wanted.serving.batch, config.validate_.max_p99_ms
    assert allowed is not None
    taken = [one.quietest_ms for one in time_in_turns(sessions, batch, rounds=ROUNDS)]
    found = RandomNetworks(wanted.num_cells, wanted.init_channels, tuple(taken))
    if found.low > allowed:
        return found
    middle = sorted(range(NUM_RANDOM), key=taken.__getitem__)[NUM_RANDOM // 2]
    p99s = [_p99_ms(sessions[middle], config) for _ in range(TAILS)]
    return replace(found, tail=max(1.0, statistics.median(p99s) / taken[middle]))


def _p99_ms(session: OnnxSession, config: Config) -> float:
    """Return a p99 from host to host in milliseconds."""
    batch, samples = config.validate_.gated_batch, MIN_SAMPLES[99]
    assert batch is not None
    record = measure_latency(
        session,
        batch,
        samples=samples,
        at_least=samples,
        seconds=config.validate_.latency_seconds,
        transfers="host",
    )
    p99 = record.percentile_ms(99)
    assert p99 is not None  # as there are enough samples
    return p99


def _wanted(config: Config) -> Wanted:
    """Return the network of the configured size as it will be served."""
    shape, batch, retrain = data_shape(config.data), config.validate_.gated_batch, config.retrain
    assert batch is not None
    serving = serving_of(
        config,
        channels=shape.channels,
        image_size=shape.image_size,
        num_classes=shape.num_classes,
        batch=batch,
    )
    space = read_space(config.search.space)
    return Wanted(space, retrain.num_cells, retrain.init_channels, serving)


def _key(run: str, config: Config, wanted: Wanted) -> dict[str, Any]:
    """Return what a target depends on."""
    return {
        "run": run,
        "max_p99_ms": config.validate_.max_p99_ms,
        "device": config.validate_.device,
        "space": wanted.space.to_dict(),
        "serving": asdict(wanted.serving),
        "num_cells": wanted.num_cells,
        "init_channels": wanted.init_channels,
    }


def _remember(runner: Runner, key: dict[str, Any], target: LatencyTarget | None) -> None:
    """Keep a target, with its table, whose file may be lost."""
    value = {
        "target": None if target is None else asdict(target),
        "table": None if target is None else Path(target.table).read_text(),
    }
    runner.store.store_cache(CACHE, key, value)


def _write(path: Path, data: bytes) -> None:
    files = FileSystem()
    files.make_folder(path.parent)
    files.replace_file(path, data)

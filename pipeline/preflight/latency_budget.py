"""A latency budget before the days of training: is the derived network fast enough?

Its weights do not matter for that, so the graph of the untrained network is timed on the runtime
that will serve, in every mode that may. One that is too slow is not trained: a smaller one that
fits is proposed, or taken in its place.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2nas.config import Config, RetrainConfig
from d2nas.config.deployment import MIN_SAMPLES
from d2nas.errors import OutOfMemoryError, ValidationFailedError
from d2nas.genotype import Genotype

from ..identity.layout import Claim
from ..latency.graphs import is_known, network_graph
from ..latency.limits import serving_of
from ..latency.parts import Serving

if TYPE_CHECKING:
    from ..onnx_io.latency import LatencyRecord
    from ..onnx_io.session import OnnxSession

MAX_TRIALS = 4
"""Networks that are timed in search of one that fits."""
CHANNEL_STEP = 4
"""Widths that are proposed are multiples of this, as a vectorised kernel likes them."""
FEWEST_CELLS = 5
"""Of a network that is made shallower: three normal cells, two reductions."""
TRIES = 3
"""Measurements of a p99 that is too long."""
QUICK_RUNS = 64
"""Timed first: where none of them keeps the limit, no p99 does."""


@dataclass(frozen=True)
class UntrainedLatency:
    """Latency of a batch from host to host in the best mode, in milliseconds."""

    milliseconds: float
    fastest_of: int | None
    """None: a p99. Else the fastest of so many runs, which was too slow already."""
    device: str

    def __str__(self) -> str:
        if self.fastest_of is None:
            return f"p99 {self.milliseconds:.3g} ms"
        return f"{self.milliseconds:.3g} ms at best (of {self.fastest_of} runs)"


Measure = Callable[[int], UntrainedLatency]


@dataclass(frozen=True)
class FittingSize:
    """Size of a network, and what it takes."""

    num_cells: int
    init_channels: int
    latency: UntrainedLatency

    def __str__(self) -> str:
        return f"{self.num_cells} cells x {self.init_channels} channels: {self.latency}"


@dataclass(frozen=True)
class Untrained:
    """A derived network that can be timed at any size, on images of these sizes."""

    config: Config
    genotype: Genotype
    channels: int
    image_size: int
    num_classes: int

    def measure(self, num_cells: int, init_channels: int) -> UntrainedLatency:
        """Return what it takes on the device that ``validate`` names: where that is too long, the
        least of a few measurements, as a p99 may be a disturbance's.
        """
        retrain = self.config.retrain.model_copy(update={"num_cells": num_cells})
        config = self.config.model_copy(update={"retrain": retrain})
        sizes = (self.channels, self.image_size, self.num_classes)
        model = _untrained(config, self.genotype, init_channels, *sizes)
        found = _measure(config, model)
        for _ in range(TRIES - 1):
            if found.milliseconds <= self.limit or found.fastest_of is not None:
                break
            found = min(found, _measure(config, model), key=lambda one: one.milliseconds)
        return found

    @property
    def limit(self) -> float:
        """``validate.max_p99_ms``, which must be given."""
        limit = self.config.validate_.max_p99_ms
        assert limit is not None
        return limit

    def widest(
        self, num_cells: int, too_slow: UntrainedLatency | None = None
    ) -> FittingSize | None:
        """Return the widest network found of so many cells that fits; None for none.

        ``too_slow``: what it takes at ``retrain.init_channels``, where that is known.
        """
        width = self.config.retrain.init_channels
        found = too_slow or self.measure(num_cells, width)
        if found.milliseconds <= self.limit:
            return FittingSize(num_cells, width, found)
        fitting = widest_that_fits(
            lambda channels: self.measure(num_cells, channels), self.limit, width, found
        )
        return None if fitting is None else FittingSize(num_cells, *fitting)


def check_budget(network: Untrained) -> UntrainedLatency:
    """Return what the derived network takes at the size that ``retrain`` has.

    Raises ``ValidationFailedError`` if that is longer than ``validate.max_p99_ms``, with the widest
    ``retrain.init_channels`` found that fits.
    """
    retrain = network.config.retrain
    found = network.measure(retrain.num_cells, retrain.init_channels)
    if found.milliseconds <= network.limit:
        return found
    fitting = network.widest(retrain.num_cells, found)
    raise _too_slow(
        network,
        found,
        "no narrower network was found that fits; fewer cells (retrain.num_cells) are faster"
        if fitting is None
        else f"retrain.init_channels={fitting.init_channels} fits: {fitting.latency}",
    )


def fit_size(network: Untrained) -> list[FittingSize]:
    """Return the size at which the derived network keeps ``validate.max_p99_ms``, and then others
    that do: that of ``retrain`` if it does; else the deepest of at least half of its width, at its
    depth, at two thirds or at a third of it; else the widest (our order).

    Raises ``ValidationFailedError`` where none does.
    """
    cells, width = network.config.retrain.num_cells, network.config.retrain.init_channels
    found = network.measure(cells, width)
    if found.milliseconds <= network.limit:
        return [FittingSize(cells, width, found)]
    fitting = []
    for depth in depths_below(cells):
        one = network.widest(depth, found if depth == cells else None)
        if one is not None:
            fitting.append(one)
    if not fitting:
        raise _too_slow(network, found, "no smaller network was found that fits")
    # Of those that are narrower than half the widest, of others the deepest.
    return sorted(fitting, key=lambda one: max(0, width - 2 * one.init_channels))


def depths_below(num_cells: int) -> list[int]:
    """Return the depths that are tried: so many cells, two thirds and a third of them."""
    depths = (num_cells, *(max(FEWEST_CELLS, num_cells * part // 3) for part in (2, 1)))
    return [depth for depth in dict.fromkeys(depths) if depth <= num_cells]


def size_line(retrain: RetrainConfig, fitting: Sequence[FittingSize]) -> str | None:
    """Return what is said of ``fit_size``'s choice; None where it is the size of ``retrain``."""
    chosen, *others = fitting
    if (chosen.num_cells, chosen.init_channels) == (retrain.num_cells, retrain.init_channels):
        return None
    also = f"; also fits: {'; '.join(map(str, others))}" if others else ""
    given = f"{retrain.num_cells} cells x {retrain.init_channels} channels"
    return f"size: {given} are too slow; {chosen} is trained{also}"


def _too_slow(network: Untrained, found: UntrainedLatency, hint: str) -> ValidationFailedError:
    return ValidationFailedError(
        f"the derived network takes {found} > {network.limit:g} ms for batch "
        f"{network.config.validate_.gated_batch} on {found.device}: it was not trained",
        hint=hint,
    )


def widest_that_fits(
    measure: Measure, limit: float, too_wide: int, found: UntrainedLatency, trials: int = MAX_TRIALS
) -> tuple[int, UntrainedLatency] | None:
    """Return a width below ``too_wide`` with its time of at most ``limit``, the widest found.

    The next width to try is where the line between the last two would meet the limit; at first,
    as if time grew with width.
    """
    fits: tuple[int, UntrainedLatency] | None = None
    above, above_ms = too_wide, found.milliseconds
    guess = too_wide * limit / above_ms
    for _ in range(trials):
        lowest = CHANNEL_STEP if fits is None else fits[0] + CHANNEL_STEP
        width = int(guess) // CHANNEL_STEP * CHANNEL_STEP
        width = min(max(width, lowest), (above - 1) // CHANNEL_STEP * CHANNEL_STEP)
        if width < lowest:
            break
        found = measure(width)
        if found.milliseconds <= limit:
            fits = width, found
        else:
            above, above_ms = width, found.milliseconds
        low, low_ms = (0, 0.0) if fits is None else (fits[0], fits[1].milliseconds)
        share = (limit - low_ms) / (above_ms - low_ms) if above_ms > low_ms else 0.5
        guess = low + share * (above - low)
    return fits


def _untrained(
    config: Config,
    genotype: Genotype,
    init_channels: int,
    channels: int,
    image_size: int,
    num_classes: int,
) -> bytes:
    """Return the model of the network as an export of it would be, with other weights."""
    serving = serving_of(
        config,
        channels=channels,
        image_size=image_size,
        num_classes=num_classes,
        batch=config.validate_.gated_batch or 1,
    )
    cells = config.retrain.num_cells
    claim = Claim(genotype, cells, init_channels, num_classes, channels, serving.stem)
    return network_graph(claim, serving) if is_known(genotype) else _exported(claim, serving)


def _exported(claim: Claim, serving: Serving) -> bytes:
    """Return the export of a network with registered operations, whose graphs nobody knows."""
    import torch

    from d2nas.data.images import Normalizer
    from d2nas.nn.network import Network

    from ..onnx_io.export import export_onnx

    with torch.random.fork_rng(devices=[]):
        network = Network(
            claim.genotype,
            num_cells=claim.num_cells,
            init_channels=claim.init_channels,
            num_classes=claim.num_classes,
            in_channels=claim.in_channels,
            stem=claim.stem,
        ).eval()
    channels = claim.in_channels
    pixels = Normalizer((0.5,) * channels, (0.25,) * channels)
    return export_onnx(
        network,
        input_shape=(channels, serving.image_size, serving.image_size),
        opset=serving.opset,
        metadata={},
        pixels=pixels if serving.input_type == "uint8" else None,
        precision="fp16" if serving.precision == "fp16" else "fp32",
    )


def _measure(config: Config, model: bytes) -> UntrainedLatency:
    from ..gate.timing import quickest
    from ..onnx_io.providers import runtime_device
    from ..onnx_io.session import PLAIN, may_serve, modes_of, open_session

    device = runtime_device(config.validate_.device)
    session = open_session(model, device=device)
    found = [_time(session, config)]
    limit = config.validate_.max_p99_ms
    assert limit is not None
    for mode in filter(may_serve, modes_of(session.device, config.validate_.modes)):
        if mode != PLAIN:
            # A mode that does not come about here is refused by validation too.
            with contextlib.suppress(OutOfMemoryError, ValidationFailedError):
                found.append(_time(open_session(model, device=device, mode=mode), config))
    # By the median and not by the p99, as validation chooses the mode that serves.
    return _untrained_latency(quickest(found), limit)


def _time(session: "OnnxSession", config: Config) -> "LatencyRecord":
    """Time enough runs for a p99, or fewer where the fastest of those is too slow already."""
    from ..onnx_io.latency import measure_latency

    limit, batch = config.validate_.max_p99_ms, config.validate_.gated_batch
    assert limit is not None
    assert batch is not None
    seconds = config.validate_.latency_seconds
    quick = measure_latency(session, batch, samples=QUICK_RUNS, seconds=seconds, transfers="host")
    if min(quick.samples_ns) / 1e6 > limit:
        return quick
    needed = MIN_SAMPLES[99]
    return measure_latency(
        session, batch, samples=needed, at_least=needed, seconds=seconds, transfers="host"
    )


def _untrained_latency(record: "LatencyRecord", limit: float) -> UntrainedLatency:
    fastest, label = min(record.samples_ns) / 1e6, record.device.label
    p99 = record.percentile_ms(99)
    if p99 is None or fastest > limit:
        return UntrainedLatency(fastest, len(record.samples_ns), label)
    return UntrainedLatency(p99, None, label)

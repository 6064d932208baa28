"""A latency budget before the days of training: is the derived network fast enough?

Its weights do not matter for that, so the untrained network is exported and timed on the runtime
that will serve. One that is too slow is not trained; a narrower one that fits is proposed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from d2nas.config import Config
from d2nas.errors import ValidationFailedError
from d2nas.genotype import Genotype

MAX_TRIALS = 4
"""Networks that are exported and timed in search of one that fits."""
CHANNEL_STEP = 4
"""Widths that are proposed are multiples of this, as a vectorised kernel likes them."""
TIMED_RUNS = 662

Measure = Callable[[int], float]


@dataclass(frozen=True)
class Budget:
    """What the untrained network takes: p99 in milliseconds from host to host."""

    init_channels: int
    p99_ms: float
    device: str


def check_budget(
    config: Config, genotype: Genotype, *, channels: int, image_size: int, num_classes: int
) -> Budget:
    """Return what the derived network takes on the device that ``validate`` names.

    Raises ``ValidationFailedError`` if that is longer than ``validate.max_p99_ms``, with the widest
    ``retrain.init_channels`` found that fits.
    """
    limit, batch = config.validate_.max_p99_ms, config.validate_.gate_batch
    assert limit is not None
    device = ""

    def measure(init_channels: int) -> float:
        nonlocal device
        p99, device = _measure(config, genotype, init_channels, channels, image_size, num_classes)
        return p99

    width = config.retrain.init_channels
    p99 = measure(width)
    if p99 <= limit:
        return Budget(width, p99, device)
    fitting = widest_that_fits(measure, limit, width, p99)
    raise ValidationFailedError(
        f"the derived network takes p99 {p99:.3g} ms > {limit:g} ms for batch {batch} on {device}: "
        "it was not trained",
        hint="no narrower network was found that fits; fewer cells (retrain.num_cells) are faster"
        if fitting is None
        else f"retrain.init_channels={fitting[0]} fits: p99 {fitting[1]:.3g} ms",
    )


def widest_that_fits(
    measure: Measure, limit: float, too_wide: int, p99: float, trials: int = MAX_TRIALS
) -> tuple[int, float] | None:
    """Return a width below ``too_wide`` with its p99 of at most ``limit``, the widest found.

    The next width to try is where the line between the last two would meet the limit; at first,
    as if time grew with width.
    """
    fits: tuple[int, float] | None = None
    above, above_p99 = too_wide, p99
    guess = too_wide * limit / p99
    for _ in range(trials):
        lowest = CHANNEL_STEP if fits is None else fits[0] + CHANNEL_STEP
        width = int(guess) // CHANNEL_STEP * CHANNEL_STEP
        width = min(max(width, lowest), (above - 1) // CHANNEL_STEP * CHANNEL_STEP)
        if width < lowest:
            break
        taken = measure(width)
        if taken <= limit:
            fits = width, taken
        else:
            above, above_p99 = width, taken
        low, low_p99 = fits or (0, 0.0)
        share = (limit - low_p99) / (above_p99 - low_p99) if above_p99 > low_p99 else 0.5
        guess = low + share * (above - low)
    return fits


def _measure(
    config: Config,
    genotype: Genotype,
    init_channels: int,
    channels: int,
    image_size: int,
    num_classes: int,
) -> tuple[float, str]:
    import torch

    from d2nas.data import Normalizer
    from d2nas.network import Network
    from d2nas.ops import initialize
    from d2nas.randomness import generator
    from d2nas.training import stem_for

    from .onnx_io.export import export_onnx
    from .onnx_io.latency import measure_latency
    from .onnx_io.providers import resolve_device
    from .onnx_io.session import open_session

    with torch.random.fork_rng(devices=[]):
        network = Network(
            genotype,
            num_cells=config.retrain.num_cells,
            init_channels=init_channels,
            num_classes=num_classes,
            in_channels=channels,
            stem=stem_for(config.retrain.stem, image_size),
            auxiliary=False,
        ).eval()
    initialize(network, generator(config.run.seed, "network-weights"))
    pixels = Normalizer((0.5,) * channels, (0.25,) * channels)
    model = export_onnx(
        network,
        input_shape=(channels, image_size, image_size),
        opset=config.export.opset,
        metadata={},
        pixels=pixels if config.export.input == "uint8" else None,
        precision=config.export.precision,
    )
    session = open_session(model, device=resolve_device(config.validate_.device))
    record = measure_latency(
        session,
        config.validate_.gate_batch,
        samples=TIMED_RUNS,
        seconds=config.validate_.latency_seconds,
        transfers="host",
    )
    # Where time allows fewer runs than a p99 needs, their slowest stands for it: nothing is claimed
    # here, and the gate measures the trained model again.
    p99 = record.percentile_ms(99)
    return (max(record.samples_ns) / 1e6 if p99 is None else p99), record.device.label

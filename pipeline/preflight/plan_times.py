"""Times of a plan: a step's time from two small batches, durations in words, keys that save."""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2nas.config import Config
from d2nas.config.effects import without_effect
from d2nas.config.registry import data_sets
from d2nas.errors import ConfigError, shown_value

from ..presets import read_preset

DAY = 86_400.0
"""Seconds; a longer plan names the keys that bring it down."""

_UNITS = (86_400, 3_600, 60, 1)
_DURATION = re.compile("".join(f"(?:([0-9]{{1,6}}){unit})?" for unit in "dhms"))

_TIMED_SECONDS = 4.0
"""After that long no further step is timed."""

_SMALL_KEYS = {
    "search": ("epochs", "draws", "num_cells", "init_channels"),
    "retrain": ("epochs", "num_cells", "init_channels"),
}
"""Keys whose value in the preset ``small`` is offered; a step's time grows with the last two."""

_WIDTH = ("num_cells", "init_channels")
_PART_OF_IMAGES = 10
_FEWEST_IMAGES = 1_000


@dataclass(frozen=True)
class Seconds:
    """An estimated time, and the range that it is expected in."""

    expected: float
    low: float
    high: float

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(self.expected * factor, self.low * factor, self.high * factor)

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.expected + other.expected, self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Timing:
    """A step's times by batch size; the smallest batch first."""

    samples: Mapping[int, Sequence[float]]

    def of(self, batch: int) -> Seconds:
        """Return the time of a step of ``batch`` images.

        The fastest samples of two batch sizes give a line. A step costs no less than its images
        (the line without its start) and no more than the larger batch repeated, at its slowest.
        """
        small, large = min(self.samples), max(self.samples)
        fastest, slowest = min(self.samples[large]), max(self.samples[large])
        most = slowest * batch / large
        if batch == large:
            return Seconds(fastest, fastest, most)
        each = fastest / large
        if small == large:
            return Seconds(each * batch, each * batch / 2, most)
        slope = (fastest - min(self.samples[small])) / (large - small)
        slope = min(max(slope, each / 4), each)  # beyond that it is noise
        start = fastest - slope * large
        return Seconds(start + slope * batch, slope * batch, most)

    @property
    def words(self) -> str:
        """Batches that were timed, in words."""
        return f"{' and '.join(str(size) for size in self.samples)} images"


def time_steps(
    sizes: Sequence[int],
    stepper: Callable[[int], Callable[[int], None]],
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time steps of each batch size, ascending; ``stepper(size)`` makes a step of that many images.

    The very first step pays for memory and the choice of kernels and is not counted. Where the
    machine is slow, larger batches are left out.
    """
    samples: dict[int, list[float]] = {}
    began = clock()
    for size in sizes:
        if samples and clock() - began > _TIMED_SECONDS:
            break
        step = stepper(size)
        if not samples:
            step(0)
        samples[size] = []
        while len(samples[size]) < 2 and not (samples[size] and clock() - began > _TIMED_SECONDS):
            started = clock()
            step(len(samples[size]) % 2)
            samples[size].append(clock() - started)
    return Timing(samples)


def busy_line() -> str | None:
    """Return a line that says so where other work runs on this machine, which slows the timing."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return None
    return (
        f"other work runs on this machine (load {load:.0f} on {cores} cores): times of an idle one "
        "are several times shorter"
    )


def duration(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 12 min, 5.5 h, 23 h, 3.4 days, 780 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (2 * DAY, 3600, "h")):
        if seconds < limit:
            return f"{_digits(seconds / unit, name)} {name}"
    return f"{_digits(seconds / DAY, 'days')} days"


def read_duration(text: str) -> float:
    """Return the seconds of a time such as 90s, 30m, 2h, 1h30m or 1d.

    Raises ``ConfigError`` for any other text.
    """
    found = _DURATION.fullmatch(text.strip())
    parts = [int(part or 0) for part in found.groups()] if found is not None else []
    seconds = sum(part * unit for part, unit in zip(parts, _UNITS, strict=False))
    if not seconds:
        raise ConfigError(
            f"invalid time {shown_value(text)}", hint="for example 90s, 30m, 2h, 1h30m or 1d"
        )
    return float(seconds)


def as_time(seconds: float) -> str:
    """Return whole seconds as ``read_duration`` reads them: 7m17s."""
    left, words = round(seconds), ""
    for unit, name in zip(_UNITS, "dhms", strict=True):
        count, left = divmod(left, unit)
        words += f"{count}{name}" if count else ""
    return words or "0s"


def range_in_words(seconds: Seconds) -> str:
    """Return from where to where a time is expected; one time where both ends are told alike."""
    low, high = duration(seconds.low), duration(seconds.high)
    return low if low == high else f"{low} to {high}"


def _digits(value: float, unit: str) -> str:
    return f"{value:.1f}" if unit in ("h", "days") and value < 9.95 else f"{value:,.0f}"


def shorter_settings(
    config: Config, num_train: int, seconds_of: Callable[[Config, float, float], float]
) -> list[dict[str, Any]]:
    """Return settings that shorten a run, each alone, with the seconds saved, the largest first.

    ``seconds_of(config, search, retrain)`` estimates a run whose steps take these factors of what
    they take now. Values are those of the preset ``small``, which is the last row with all of them;
    width and depth are taken to cost in proportion.
    """
    now = seconds_of(config, 1.0, 1.0)
    small = read_preset("small")
    found, everything, all_factors = [], config, {"search": 1.0, "retrain": 1.0}
    for section, fields in _SMALL_KEYS.items():
        for field in fields:
            key, old, new = (
                f"{section}.{field}",
                getattr(getattr(config, section), field),
                small[section][field],
            )
            if old <= new or without_effect(config, [key]):
                continue
            factors = {"search": 1.0, "retrain": 1.0}
            factors[section] = new / old if field in _WIDTH else 1.0
            all_factors[section] *= factors[section]
            saved = now - seconds_of(_with(config, section, field, new), *factors.values())
            everything = _with(everything, section, field, new)
            found.append({"setting": f"{key}={new}", "instead_of": old, "saves_seconds": saved})
    if num_train >= _PART_OF_IMAGES * _FEWEST_IMAGES:
        part = num_train // _PART_OF_IMAGES
        saved = now - seconds_of(_with(config, "data", "train_images", part), 1.0, 1.0)
        found.append(
            {
                "setting": f"data.train_images={part}",
                "instead_of": num_train,
                "saves_seconds": saved,
            }
        )
    found = [row for row in found if row["saves_seconds"] > now / 100]
    found.sort(key=lambda row: -row["saves_seconds"])
    total = seconds_of(everything, *all_factors.values())
    return [*found, {"preset": "small", "seconds": total}] if total < 0.9 * now else found


def shorter_lines(plan: Mapping[str, Any], name: str) -> list[str]:
    """Return what ``shorter_settings`` found, in words; ``name``: the data set's."""
    rows = plan.get("shorter", [])
    if not rows:
        return []
    lines = ["more than a day; each of these alone takes off about"]
    for row in rows:
        if "setting" in row:
            lines.append(
                f"  {duration(row['saves_seconds'])}: --set {row['setting']} "
                f"(now {row['instead_of']:,})"
            )
        else:
            where = (
                "--data-root DIR"
                if data_sets.find(name).is_any_folder
                else f"--set data.name={name}"
            )
            lines.append(f"d2nas run small {where} takes about {duration(row['seconds'])}")
    return lines


def _with(config: Config, section: str, field: str, value: int) -> Config:
    part = getattr(config, section)
    update: dict[str, Any] = {field: value}
    if (section, field) == ("search", "epochs"):
        update["warmup_epochs"] = part.warmup_epochs * value // part.epochs
    return config.model_copy(update={section: part.model_copy(update=update)})

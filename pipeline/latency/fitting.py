"""Least squares fit of the time of each part, from those of cells and of a few whole networks.

A cell's time is that of its shape (the layers before its edges, the sums, the concatenation) and
that of the operations on its edges. Each is known only inside of a cell, where ONNX Runtime fuses
it with its neighbours; so random cells of every shape are timed, and non-negative least squares
says what is whose. What cells alone miss (caches that others fill, what the runtime
does once) is a line from the sum of the parts to the time of whole random networks.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .parts import CellShape, OperationShape

Part = CellShape | OperationShape

ALIKE = 0.05
"""Part of their mean by which sums of parts differ at least where they say how steep a line is."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Parts that were timed together, one several times perhaps: their time in a model that took
    ``model_ms`` in all, to which its noise is in proportion.
    """

    parts: Sequence[Part]
    milliseconds: float
    model_ms: float


def part_times(rows: Sequence[Timed]) -> dict[Part, float]:
    """Return the milliseconds of each part: non-negative least squares of errors by their noise."""
    from scipy.optimize import nnls  # not needed where tables are only read

    known = dict.fromkeys(itertools.chain.from_iterable(row.parts for row in rows))
    columns = {part: index for index, part in enumerate(known)}
    counts = np.zeros((len(rows), len(columns)))
    for index, row in enumerate(rows):
        for part in row.parts:
            counts[index, columns[part]] += 1
    noise = np.array([row.model_ms for row in rows])
    taken = np.array([row.milliseconds for row in rows])
    found, _ = nnls(counts / noise[:, None], taken / noise)
    return {part: float(found[index]) for part, index in columns.items()}


@dataclass(frozen=True, slots=True)
class Line:
    """From the sum of a network's parts to its latency, both in milliseconds."""

    offset: float
    scale: float

    def __call__(self, sum_ms: float) -> float:
        """Return the latency."""
        return self.offset + self.scale * sum_ms


def calibrate(sums: Sequence[float], measured: Sequence[float]) -> Line:
    """Return the line of the least squared relative errors; where the sums are nearly alike, or
    noise makes it fall, the one through 0.
    """
    x, y = np.array(sums), np.array(measured)
    design: NDArray[np.float64] = np.stack([np.ones_like(x), x], axis=1)
    if np.ptp(x) >= ALIKE * x.mean():
        (offset, scale), *_ = np.linalg.lstsq(design / y[:, None], np.ones_like(y), rcond=None)
        if scale > 0.0:
            return Line(float(offset), float(scale))
    return Line(0.0, float(np.mean(y / x)))


def left_out_errors(sums: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Return the relative error of each network's prediction by a line of the others."""
    errors = []
    for index, (own, taken) in enumerate(zip(sums, measured, strict=True)):
        others = [other for other in range(len(sums)) if other != index]
        line = calibrate([sums[one] for one in others], [measured[one] for one in others])
        errors.append(line(own) / taken - 1.0)
    return errors


def total(parts: Sequence[Part], times: Mapping[Part, float]) -> float:
    """Return the sum of the parts' times. Raises ``KeyError`` for a part that is not known."""
    return sum(times[part] for part in parts)

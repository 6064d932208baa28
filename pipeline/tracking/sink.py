"""The interface that TensorBoard, MLflow and Weights & Biases implement."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

Row = Mapping[str, Any]
"""An epoch's metrics, JSON data; ``step`` is the step that they are of."""


class Sink(Protocol):
    """A destination of the numbers of one run, stage by stage; silent where a subclass leaves
    something out. Whatever it raises ends the sink alone, never the stage.
    """

    failure: str = "a sink is not written"
    """What to say of one that has failed."""
    is_local: bool = False
    """Whether it writes below the store's own events, on the same disk."""

    def begin(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Announce a stage: its ``key``, whether it starts over (``fresh``), and its part of the
        configuration (``params``), flat.
        """
        return

    def resume(self, stage: str, rows: Sequence[Row]) -> None:
        """Tell the rows after which a training continues: what is missing of them may be added."""
        return

    def add(self, stage: str, step: int, row: Row) -> None:
        """Add an epoch's row."""
        return

    def end(self, stage: str, outcome: Mapping[str, Any]) -> None:
        """Tell a stage's ``tags`` (text) and final ``metrics`` (numbers), both flat."""
        return

    def close(self, status: str) -> None:
        """End the run's recording for now, as ``finished``, ``failed`` or ``stopped``."""
        return


def numbers(row: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a row by name, inside a section as SECTION/NAME."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{section}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{section}{name}", float(value)

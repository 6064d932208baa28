"""A tracker that other people's code keeps: what MLflow and Weights & Biases have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .memory import Memory
from .sink import Row, Sink, numbers


class Tracker(Sink):
    """One run of a tracker for a run of ours, with all stages in it: a metric is STAGE/NAME, its
    step the stage's own.

    It is continued as long as ``Memory.fits``; a row that it has is not told again.
    """

    title: ClassVar[str]
    """Name for messages."""

    def __init__(self, run: str, folder: Path, memory: Memory, say: Callable[[str], None]) -> None:
        self.run, self.folder, self._memory, self._say = run, folder, memory, say
        self._is_open = False

    def begin(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Open the tracker's run, the one before where it fits; add what is new of ``params``."""
        memory, params = self._memory, facts["params"]
        if not memory.fits(stage, facts["key"], params, fresh=facts["fresh"]):
            self.close("finished")
            memory.forget()
        if not self._is_open:
            found = self.open(memory.id)
            if found != memory.id:  # a new one, or another server
                memory.forget()
            memory.id, self._is_open = found, True
            self._say(f"{self.title}: {self.where()}")
        new = {name: value for name, value in params.items() if name not in memory.params}
        self.log_params(new)
        memory.params |= new
        memory.begin(stage, facts["key"])

    def resume(self, stage: str, rows: Sequence[Row]) -> None:
        """Add those of the rows that were never told."""
        for row in rows:
            self.add(stage, int(row.get("step", 0)), row)

    def add(self, stage: str, step: int, row: Row) -> None:
        """Add a row that is not there yet."""
        if step > self._memory.last_step(stage):
            self.log_metrics(stage, dict(numbers(row, f"{stage}/")), step)
            self._memory.told(stage, step)

    def end(self, stage: str, outcome: Mapping[str, Any]) -> None:
        """Add tags and final metrics."""
        self.log_outcome(
            {f"{stage}.{name}": value for name, value in outcome["tags"].items()},
            {f"{stage}/{name}": value for name, value in outcome["metrics"].items()},
        )

    def close(self, status: str) -> None:
        """End the tracker's run for now."""
        if self._is_open:
            self._is_open = False
            self.finish(status)

    # What a tracker implements

    def open(self, known: str | None) -> str:
        """Open the run of this id, or a new one where it is gone or none; return the id."""
        raise NotImplementedError

    def where(self) -> str:
        """Return where the open run can be seen."""
        raise NotImplementedError

    def log_params(self, params: Mapping[str, str]) -> None:
        """Add parameters."""
        raise NotImplementedError

    def log_metrics(self, stage: str, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics of a stage's step."""
        raise NotImplementedError

    def log_outcome(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Add tags, and metrics that belong to no step."""
        raise NotImplementedError

    def finish(self, status: str) -> None:
        """Close the open run as ``finished``, ``failed`` or ``stopped``."""
        raise NotImplementedError

"""Objects of a rank other than 0: the runner's program is the same on all, rank 0 alone shows and
writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..stages import ALL, open_store
from ..store import Staging, Store
from .display import Display
from .events import Events
from .runner import Runner
from .signals import StopFlag

if TYPE_CHECKING:
    from d2nas.parallel import Ranks


class Silence(Display):
    """A display that shows nothing."""


class NoEvents(Events):
    """Events that are written nowhere."""

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make no file."""

    def add(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Drop a row."""


class _NoStaging(Staging):
    """Staging that keeps nothing of what a stage writes."""

    def write(self, name: str, data: bytes) -> None:
        return

    def __enter__(self) -> Self:
        return self


class ReadingStore(Store):
    """A store that is read, and not written to."""

    def stage(self) -> Staging:
        """Return what drops all that is written."""
        return _NoStaging(self._layout, self._file_system)


def runner_of(ranks: "Ranks", store: Path, display: Display, stop: StopFlag) -> Runner:
    """Return the runner of this process in a parallel training."""
    if ranks.rank == 0:
        return Runner(open_store(store), display, stop, ranks=ranks)
    return Runner(ReadingStore(store, kinds=ALL), Silence(), stop, ranks=ranks, events=NoEvents)

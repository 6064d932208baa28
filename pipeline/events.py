"""TensorBoard's event files: an epoch's numbers, for whoever watches a run. No part of any version.

Written where ``tensorboard`` is installed (the extra of this name), else not at all:
``tensorboard --logdir STORE/events`` then shows every run and stage as a curve.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Events:
    """The event files of one execution of a stage; closed at the end of its ``with``.

    Nothing is imported or made before the first row. A disk that refuses them is a warning: what
    a person watches is no reason to lose what is computed.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._writer: SummaryWriter | None = None
        self._wanted = True

    def add(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Write an epoch's row at ``step``: its numbers, inside a section as SECTION/NAME, and
        the genotype as text.

        A repeated or continued execution replaces what an earlier one wrote at this step or later.
        """
        if row is None or not self._wanted:
            return
        try:
            writer = self._writer = self._writer or _open(self._folder, step)
            self._wanted = writer is not None
            if writer is not None:
                for name, value in _numbers(row):
                    writer.add_scalar(name, value, step)
                if "genotype" in row:
                    genotype = Genotype.from_dict(row["genotype"])
                    for cell in CELL_TYPES:
                        writer.add_text(f"genotype/{cell}", genotype.describe(cell), step)
                writer.flush()
        except OSError as error:
            self._wanted = False
            self._warn(f"{self._folder}: no more events are written: {error.strerror or error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        if self._writer is not None and self._wanted:
            with suppress(OSError):  # every row was flushed
                self._writer.close()


def _open(folder: Path, step: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)


def _numbers(row: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{section}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{section}{name}", float(value)

"""TensorBoard's event files, a folder for each stage; none where the package is not installed."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES

from .sink import Row, Sink, numbers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Sink):
    """Event files in ``folder/STAGE``: every number of a row, and the genotype as text.

    A repeated or continued execution replaces what an earlier one wrote at its steps or later.
    Nothing is imported before the first row.
    """

    failure = "TensorBoard's files are not written"
    is_local = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._is_installed = True
        self._print_failed_thread = threading.excepthook

    def begin(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Keep the writer's own thread from printing its end: that is raised at the next row."""
        self._print_failed_thread = threading.excepthook
        threading.excepthook = self._leave_out_the_writer

    def add(self, stage: str, step: int, row: Row) -> None:
        """Write the row. Raises what the writer raises."""
        if not self._is_installed:
            return
        writer = self._writer = self._writer or _open(self._folder / stage, step)
        self._is_installed = writer is not None
        if writer is None:
            return
        for name, value in numbers(row):
            writer.add_scalar(name, value, step)
        if "genotype" in row:
            genotype = Genotype.from_dict(row["genotype"])
            for cell in CELL_TYPES:
                writer.add_text(f"genotype/{cell}", genotype.describe(cell), step)
        writer.flush()

    def end(self, stage: str, outcome: Mapping[str, Any]) -> None:
        """Close the stage's files."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):  # every row was flushed, or its failure is told
                writer.close()
        threading.excepthook = self._print_failed_thread

    def _leave_out_the_writer(self, failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._print_failed_thread(failed)


def _open(folder: Path, step: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)

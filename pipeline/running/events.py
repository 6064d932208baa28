"""An epoch's numbers, for whoever watches a run while it trains. No part of any version.

As lines of JSON in a plain file, and where ``tensorboard`` is installed (the extra of this name) as
its event files: ``tensorboard --logdir STORE/events`` shows every run and stage as a curve.
"""

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from d2nas.errors import DamagedArtifactError, StoppedError, StorageError, brief_reason
from d2nas.files.strict_json import MAX_BYTES, canonical_json, parse_json
from d2nas.files.verified_folder import read_plain_file
from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


ROWS_FILE = "rows.jsonl"
"""What a version's ``METRICS_FILE`` will be, as far as the training has come."""


def read_last_row(store: Path, run: str, stage: str) -> dict[str, Any] | None:
    """Return the newest whole row that a training has written for others to watch; None without.

    The last line may be half written at this moment.
    """
    path = store / "events" / run / stage / ROWS_FILE
    try:
        lines = read_plain_file(path, max_bytes=MAX_BYTES, max_links=1).splitlines(keepends=True)
        whole = [line for line in lines[-2:] if line.endswith(b"\n")]
        row = parse_json(whole[-1], what=str(path)) if whole else None
        canonical_json(row)
    except (DamagedArtifactError, StorageError, ValueError):  # nothing depends on it
        return None
    return row if isinstance(row, dict) else None


class Events:
    """Events of one execution of a stage, to be watched; closed at the end of its ``with``.

    Nothing is imported before the first row. A disk that refuses them is a warning: what a person
    watches is no reason to lose what is computed.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._rows: Path | None = None
        self._writer: SummaryWriter | None = None
        self._with_tensorboard = self._wanted = True
        self._print_failed_thread = threading.excepthook

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Make the plain file hold the ``rows`` that a training continues from, and return its
        path; None where the disk refuses it.

        What an earlier execution wrote beyond these goes, in the same file, so that ``tail -f``
        stays with it.
        """
        known = b"".join(canonical_json(row) for row in rows)
        path = self._folder / ROWS_FILE
        try:
            self._refuse_links(path)
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                if file.read(len(known)) != known:
                    file.truncate(0)
                    file.write(known)  # at the end, which is the beginning now
                file.truncate(len(known))
        except OSError as error:
            self._give_up(error)
            return None
        self._rows = path
        return path

    def _refuse_links(self, path: Path) -> None:
        """Raise ``OSError`` for a link on the way below the store: what it leads to is not ours."""
        for part in (path, *path.parents[:3]):  # events/RUN/STAGE/rows.jsonl
            if part.is_symlink():
                raise OSError(errno.ELOOP, f"{part} is a symbolic link")

    def add(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Write an epoch's row at ``step``: its numbers, inside a section as SECTION/NAME, and
        the genotype as text.

        A repeated or continued execution replaces what an earlier one wrote at this step or later.
        """
        if row is None or not self._wanted:
            return
        try:
            if self._rows is not None:
                with self._rows.open("ab") as file:
                    file.write(canonical_json(row))
            if self._with_tensorboard:
                self._add_to_tensorboard(step, row)
        except OSError as error:
            self._give_up(error)

    def _add_to_tensorboard(self, step: int, row: Mapping[str, Any]) -> None:
        try:
            self._write_to_tensorboard(step, row)
        except (OSError, StoppedError):
            raise
        except Exception as error:  # noqa: BLE001 - another library's, of which nothing is needed
            self._with_tensorboard = False
            self._close()
            self._warn(f"{self._folder}: TensorBoard's files are not written: {_reason(error)}")

    def _write_to_tensorboard(self, step: int, row: Mapping[str, Any]) -> None:
        writer = self._writer = self._writer or _open(self._folder, step)
        self._with_tensorboard = writer is not None
        if writer is None:
            return
        for name, value in _numbers(row):
            writer.add_scalar(name, value, step)
        if "genotype" in row:
            genotype = Genotype.from_dict(row["genotype"])
            for cell in CELL_TYPES:
                writer.add_text(f"genotype/{cell}", genotype.describe(cell), step)
        writer.flush()

    def _give_up(self, error: OSError) -> None:
        self._wanted = False
        self._close()
        self._warn(f"{self._folder}: no more events are written: {error.strerror or error}")

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):  # every row was flushed, or its failure is told
                writer.close()

    def _leave_out_the_writer(self, failed: threading.ExceptHookArgs) -> None:
        """Print what ends a thread, but for TensorBoard's: that is raised at the next row again."""
        if not type(failed.thread).__module__.startswith("tensorboard."):
            self._print_failed_thread(failed)

    def __enter__(self) -> Self:
        self._print_failed_thread = threading.excepthook
        threading.excepthook = self._leave_out_the_writer
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._close()
        threading.excepthook = self._print_failed_thread


def _open(folder: Path, step: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)


def _reason(error: Exception) -> str:
    """Return what an error says in one line."""
    return brief_reason(error)


def _numbers(row: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{section}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{section}{name}", float(value)

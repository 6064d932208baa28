"""An epoch's numbers, for whoever watches a run while it trains. No part of any version.

As lines of JSON in a plain file, and in the sinks that ``run.log`` names.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from d2nas.errors import DamagedArtifactError, StoppedError, StorageError, brief_reason
from d2nas.files.strict_json import MAX_BYTES, canonical_json, parse_json
from d2nas.files.verified_folder import read_plain_file

from ..tracking import TITLES
from ..tracking.isolated import Isolated
from ..tracking.memory import refuse_links
from ..tracking.sink import Sink
from ..tracking.tensorboard import TensorBoard

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


def sinks_of(
    names: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[Sink]:
    """Return the sinks of ``run.log`` for the run whose events lie in ``folder``.

    Raises ``ModuleNotFoundError`` for a tracker that is not installed. TensorBoard may be absent.
    """
    sinks: list[Sink] = [TensorBoard(folder)] if "tensorboard" in names else []
    for name in TITLES:
        if name in names:
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            sinks.append(Isolated(name, folder.name, folder, say, warn))
    return sinks


class Events:
    """Events of one execution of a stage, to be watched; ended with its ``with``.

    Nothing is made before the first row but what a sink makes at a stage's beginning. What cannot
    be written is a warning: what a person watches is no reason to lose what is computed.

    ``facts`` are for ``Sink.begin``; ``outcome`` for ``Sink.end``, where the stage has one.
    """

    def __init__(
        self,
        folder: Path,
        warn: Callable[[str], None],
        sinks: Sequence[Sink] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder, self._warn, self._facts = folder, warn, facts or {}
        self._stage = folder.name
        self._all_sinks, self._sinks = sinks, [*sinks]
        self._rows: Path | None = None
        self._may_write = True
        self.outcome: Mapping[str, Any] = {"tags": {}, "metrics": {}}

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Make the plain file hold the ``rows`` that a training continues from, and return its
        path; None where the disk refuses it.

        What an earlier execution wrote beyond these goes, in the same file, so that ``tail -f``
        stays with it.
        """
        known = b"".join(canonical_json(row) for row in rows)
        path = self._folder / ROWS_FILE
        try:
            refuse_links(path, 3)  # events/RUN/STAGE/rows.jsonl
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                if file.read(len(known)) != known:
                    file.truncate(0)
                    file.write(known)  # at the end, which is the beginning now
                file.truncate(len(known))
        except OSError as error:
            self._give_up(error)
        else:
            self._rows = path
        self._tell(lambda sink: sink.resume(self._stage, rows))
        return self._rows

    def add(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Write an epoch's row at ``step``."""
        if row is None:
            return
        if self._rows is not None:
            try:
                with self._rows.open("ab") as file:
                    file.write(canonical_json(row))
            except OSError as error:
                self._give_up(error)
        self._tell(lambda sink: sink.add(self._stage, step, row))

    @property
    def tells_outcomes(self) -> bool:
        """Whether anybody is told more than rows."""
        return any(not sink.is_local for sink in self._sinks)

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for sink in [*self._sinks]:
            if sink not in self._sinks:
                continue  # given up for an error of another one
            try:
                call(sink)
            except StoppedError:
                raise
            except Exception as error:  # noqa: BLE001 - another library's, of which nothing is needed
                if isinstance(error, OSError) and sink.is_local:
                    self._give_up(error)
                else:
                    self._sinks.remove(sink)
                    self._warn(f"{self._folder}: {sink.failure}: {brief_reason(error)}")

    def _give_up(self, error: OSError) -> None:
        """Write nothing more on the disk that has failed."""
        self._rows = None
        self._sinks = [sink for sink in self._sinks if not sink.is_local]
        if self._may_write:
            self._may_write = False
            self._warn(f"{self._folder}: no more events are written: {error.strerror or error}")

    def __enter__(self) -> Self:
        self._tell(lambda sink: sink.begin(self._stage, self._facts))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell the outcome, and let those end, too, that were given up."""
        lost = [sink for sink in self._all_sinks if sink not in self._sinks]
        self._tell(lambda sink: sink.end(self._stage, self.outcome))
        for sink in lost:
            with suppress(Exception):
                sink.end(self._stage, self.outcome)

"""Memory of what a tracker was told, so that a run that goes on is told there, once.

A small file beside the run's events, kept by the process that tells the tracker.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2nas.errors import BusyError, DamagedArtifactError, StorageError
from d2nas.files.strict_json import MAX_BYTES, canonical_json, parse_json
from d2nas.files.verified_folder import read_plain_file

from ..store import FileSystem
from ..store.locks import acquire

LOCK_SECONDS = 60.0
"""How long to wait for the process of an execution that was killed, which may still tell."""


class Memory:
    """The id of a tracker's run, and which parameters, stages and steps it was told of."""

    def __init__(self, path: Path) -> None:
        self._path, self._disk = path, FileSystem()
        self.id: str | None = None
        self.params: dict[str, str] = {}
        self._stages: dict[str, dict[str, Any]] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Read the file, and keep others from it meanwhile.

        Raises ``BusyError`` if it is not free within ``LOCK_SECONDS``, ``StorageError``.
        """
        lock = acquire(self._path.with_suffix(".lock"), seconds=LOCK_SECONDS)
        if lock is None:
            raise BusyError(f"{self._path} is in use by another process")
        try:
            self._read()
            yield
        finally:
            lock.release()

    def fits(self, stage: str, key: str, params: Mapping[str, str], *, fresh: bool) -> bool:
        """Whether the tracker's run can take this execution of a stage.

        It cannot hold a stage in two settings or, where it starts over (``fresh``), twice, nor two
        values of one parameter.
        """
        known = self._stages.get(stage)
        same = known is None or (known["key"] == key and not fresh)
        return same and all(self.params.get(name, value) == value for name, value in params.items())

    def begin(self, stage: str, key: str) -> None:
        """Remember that the tracker's run has this stage."""
        self._stages.setdefault(stage, {"key": key, "step": 0})
        self._save()

    def last_step(self, stage: str) -> int:
        """Return the step of the last row of a stage that the tracker was told; 0 for none."""
        return int(self._stages[stage]["step"])

    def told(self, stage: str, step: int) -> None:
        """Remember that the row of this step was told."""
        self._stages[stage]["step"] = step
        self._save()

    def forget(self) -> None:
        """Begin another of the tracker's runs."""
        self.id, self.params, self._stages = None, {}, {}

    def _save(self) -> None:
        data = {"id": self.id, "params": self.params, "stages": self._stages}
        self._disk.replace_file(self._path, canonical_json(data))

    def _read(self) -> None:
        """Take what the file holds; one that cannot be read, or is none of ours, counts as none."""
        self.forget()
        try:
            content = read_plain_file(self._path, max_bytes=MAX_BYTES, max_links=1)
            found = parse_json(content, what=str(self._path))
            stages = {
                str(stage): {"key": str(known["key"]), "step": int(known["step"])}
                for stage, known in found["stages"].items()
            }
            params = {str(name): str(value) for name, value in found["params"].items()}
            self.id, self.params, self._stages = str(found["id"]), params, stages
        except (DamagedArtifactError, StorageError):
            return
        except (AttributeError, KeyError, TypeError, ValueError):
            return


def refuse_links(path: Path, folders: int) -> None:
    """Raise ``OSError`` for a link in the place of ``path`` or of the nearest ``folders`` that it
    lies in: what it leads to is not ours.
    """
    for part in (path, *path.parents[:folders]):
        if part.is_symlink():
            raise OSError(errno.ELOOP, f"{part} is a symbolic link")

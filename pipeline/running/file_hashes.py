"""Cache of image files' hashes, and the folder of downloaded data sets."""

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from d2nas.errors import BusyError, StorageError

from ..store import Store

LINE_SECONDS = 30.0
"""Time between two lines that tell how far the hashing has come."""


class FileHashes:
    """The digest cache of image files, kept as one cached value of the store.

    Written at the end of its ``with``, also where an error or a stop ends it: a large folder takes
    hours to read, and the same command then goes on with the rest.
    """

    NAME = "image-hashes"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, str] = store.cached(self.NAME, "v1") or {}
        self._used: dict[str, str] = {}
        self._added = 0

    def get(self, key: str) -> str | None:
        """Return the remembered SHA-256, or None."""
        value = self._known.get(key)
        if value is not None:
            self._used[key] = value
        return value

    def set(self, key: str, value: str) -> None:
        """Remember a SHA-256."""
        self._used[key] = value
        self._added += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what was learned; what was not asked for this time is forgotten, unless the asking
        broke off.
        """
        if error is None:
            self._save(self._used)
        else:
            with suppress(StorageError, BusyError):  # of two errors the first is told
                self._save(self._known | self._used)

    def _save(self, values: dict[str, str]) -> None:
        if self._added:
            self._store.store_cache(self.NAME, "v1", values)


class HashingProgress:
    """Tells now and then how many files have been read, and lets a stop through."""

    def __init__(
        self,
        say: Callable[[str], None],
        check_stop: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._say, self._check_stop, self._clock = say, check_stop, clock
        self._last_line = clock()

    def __call__(self, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` files are done. Raises what ``check_stop`` does."""
        self._check_stop(f"while images were read ({done:,} of {total:,})")
        if self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            self._say(f"reading images, once: {done:,} of {total:,}")

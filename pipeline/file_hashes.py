"""Where downloaded data sets lie, and what is remembered of image files (no torch)."""

from pathlib import Path

from .store import Store

DEFAULT_DATA_ROOT = Path("~/.cache/d2nas/data")


class FileHashes:
    """The digest cache of image files, kept as one cached value of the store."""

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

    def save(self) -> None:
        """Write what was learned; what was not asked for this time is forgotten."""
        if self._added:
            self._store.store_cache(self.NAME, "v1", self._used)


def data_folder() -> Path:
    """Return the folder of downloaded data sets where ``data.root`` names none."""
    return DEFAULT_DATA_ROOT.expanduser()

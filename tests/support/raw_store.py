"""What a store's folder holds, read by nothing of the store's own."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import raw_files

Files = dict[str, bytes]


class RawStore:
    """What stands on the disk, read by nothing that is under test; read again where it changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[object, Any]] = {}

    def names(self) -> dict[str, str]:
        """The id behind every name."""
        found = {}
        for path in self.root.glob("runs/*/*/v*.json"):
            body = self._cached(path, lambda path: json.loads(path.read_bytes())["body"])
            found[f"{body['run']}/{body['stage']}@v{body['number']}"] = body["id"]
        return found

    def recorded(self) -> set[str]:
        """The names that are on record beside the versions."""
        bodies = (
            self._cached(path, lambda path: json.loads(path.read_bytes())["body"])
            for path in self.root.glob("names/*.json")
        )
        return {name for body in bodies for name in body["names"]}

    def version(self, version_id: str) -> Files:
        """The files of a version."""
        return self._cached(self.root / "versions" / version_id, raw_files)

    def listed(self, folder: str) -> set[str]:
        """The names in one of the store's folders."""
        return set(os.listdir(self.root / folder)) if (self.root / folder).is_dir() else set()

    def _cached(self, path: Path, read: Callable[[Path], Any]) -> Any:
        parts = [path, *path.iterdir()] if path.is_dir() else [path] * path.exists()
        now = [(p.name, s.st_ino, s.st_size, s.st_mtime_ns) for p in parts if (s := p.stat())]
        if path not in self._known or self._known[path][0] != now:
            self._known[path] = (now, read(path))
        return self._known[path][1]

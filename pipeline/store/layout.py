"""Layout of a store's folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from .fsio import inside, is_there, safe_name, safe_run_name, storage_error
from .kinds import Kinds


@dataclass(frozen=True)
class Layout:
    """The paths of one store; no path leads out of ``root``, not even through a link."""

    root: Path
    kinds: Kinds
    """What stands there."""

    @property
    def versions(self) -> Path:
        """Folder of all versions, each in a folder named by its id."""
        return self._folder("versions")

    @property
    def runs(self) -> Path:
        """Folder of all references, by run and stage."""
        return self._folder("runs")

    @property
    def name_records(self) -> Path:
        """Folder of the records of which names each version has."""
        return self._folder("names")

    @property
    def staging(self) -> Path:
        """Folder of what is being written or removed."""
        return self._folder("staging")

    @property
    def locks(self) -> Path:
        """Folder of the lock files; a lock is free when its holder dies, the file stays."""
        return self._folder("locks")

    @property
    def cache(self) -> Path:
        """Folder of values that can be computed again."""
        return self._folder("cache")

    def _folder(self, name: str) -> Path:
        return inside(self.root, name, "anything").parent

    def version(self, version_id: str) -> Path:
        """Folder of one version."""
        return inside(self.root, "versions", version_id)

    def run(self, run: str) -> Path:
        """Folder of one run's references. Raises ``ConfigError`` for what is no run's name."""
        return inside(self.root, "runs", safe_run_name(run))

    def reference_file(self, run: str, stage: str, number: int) -> Path:
        """File of one reference. Raises ``ConfigError`` for a name that is no part of a path."""
        name = f"v{number}.json"
        return inside(self.root, "runs", safe_run_name(run), safe_name(stage), name)

    def name_record(self, version_id: str) -> Path:
        """File of one version's record of names."""
        return inside(self.root, "names", f"{version_id}.json")

    def staging_folder(self, name: str) -> Path:
        """One folder that is being written or removed."""
        return inside(self.root, "staging", name)

    def lock_file(self, name: str) -> Path:
        """Lock file of this name."""
        return inside(self.root, "locks", f"{name}.lock")

    def cache_file(self, name: str) -> Path:
        """File of one cached value."""
        return inside(self.root, "cache", f"{name}.json")


def names_in(folder: Path) -> list[str]:
    """Return the names in ``folder``, sorted; none if there is no such folder.

    That there is none must be so in the listing of its parent too: a file system may say so for a
    moment. Raises ``StorageError`` if the operating system cannot list it.
    """
    for _ in range(2):  # twice: another process may have made it in between
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError as error:
            missing = error
            if not is_there(folder):
                return []
        except OSError as error:
            raise storage_error(error, "list", folder) from error
    raise storage_error(missing, "list", folder) from missing

"""Runs a command where some packages are not installed.

python tests/support/without_packages.py PACKAGE,PACKAGE,... COMMAND ...
"""

import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

LACKING: set[str] = set()
"""Packages, by the name that is imported."""


class Absent:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def take_away(packages: set[str]) -> None:
    """Make imports and the record of what is installed say that packages are absent."""
    provided: Mapping[str, list[str]] = metadata.packages_distributions()
    version, gone = metadata.version, {d for p in packages for d in provided.get(p, ())}

    def version_of(name: str) -> str:
        if name in gone or name.lower() in gone:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    LACKING.update(packages)
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    metadata.version = version_of
    metadata.packages_distributions = lambda: {
        package: names for package, names in provided.items() if package not in packages
    }


if __name__ == "__main__":
    take_away({name for name in sys.argv.pop(1).split(",") if name})
    from d2nas.__main__ import main

    sys.argv[0] = "d2nas"
    sys.exit(main())

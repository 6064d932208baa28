"""The ``d2nas`` command: makes sure that ``pipeline`` is ours, then hands over to it.

Other distributions install a top-level ``pipeline`` too and overwrite files silently. So its place
is looked up before it is imported.
"""

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Run the command line; exits with its code."""
    ours = Path(__file__).resolve().parent.parent / "pipeline" / "__init__.py"
    spec = importlib.util.find_spec("pipeline")
    found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
    if found != ours or not (ours.parent / "cli.py").is_file():
        sys.stderr.write(
            f"error: the package 'pipeline' at {found} is not the one that belongs to d2nas\n"
            "hint: another distribution installs a 'pipeline' too; install d2nas in an "
            "environment of its own\n"
        )
        raise SystemExit(2)
    from pipeline.cli import run

    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

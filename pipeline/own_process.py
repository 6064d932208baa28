"""A further process of d2nas: the same packages, whatever lies in the working folder."""

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])


def own_command(*words: str, module: str = "d2nas") -> list[str]:
    """Return the command line of ``d2nas WORDS``, or of another of our modules that is a program,
    for ``own_environment``.

    Python looks for modules in the working folder first, where a ``pipeline.py`` or ``torch.py`` of
    the user's may lie; with ``-P`` it does not.
    """
    return [sys.executable, "-P", "-m", module, *words]


def own_environment() -> dict[str, str]:
    """Return this process's environment, with the place of our packages before others."""
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *([others] if others else [])])}

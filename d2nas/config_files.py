"""Small text files that a user names: search spaces, TOML (no torch)."""

import difflib
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .spaces import SPACES, SearchSpace

_MAX_TEXT_BYTES = 1_000_000


def read_space(space: str) -> SearchSpace:
    """Return ``S0`` to ``S4``, or the space of a TOML file. Raises ``ConfigError``."""
    if space in SPACES:
        return SPACES[space]
    path = Path(space)
    if path.suffix != ".toml":
        close = difflib.get_close_matches(space, SPACES, n=1)
        hint = f"did you mean {close[0]}?" if close else "known: " + ", ".join(SPACES)
        raise ConfigError(f"unknown search space {space!r}", hint=hint + ", or a .toml file")
    return SearchSpace.from_dict(parse_toml(read_text(path), what=space), what=space)


def read_text(path: Path) -> str:
    """Read a small text file that the user named. Raises ``ConfigError``."""
    try:
        # Non-blocking, because a named pipe would make the reader wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{path}: not a file")
            data = file.read(_MAX_TEXT_BYTES + 1)
        if len(data) > _MAX_TEXT_BYTES:
            raise ConfigError(f"{path}: larger than 1 MB")
        return data.decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from None


def parse_toml(text: str, *, what: str) -> dict[str, Any]:
    """Parse TOML; ``what`` names the source. Raises ``ConfigError``."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOML's own errors, and endless integers
        raise ConfigError(f"{what}: not valid TOML ({error})") from None

"""Small text files that a user names: search spaces, TOML (no torch)."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .spaces import SPACES, SearchSpace


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
        if path.stat().st_size > 1_000_000:
            raise ConfigError(f"{path}: larger than 1 MB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from None


def parse_toml(text: str, *, what: str) -> dict[str, Any]:
    """Parse TOML; ``what`` names the source. Raises ``ConfigError``."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{what}: not valid TOML ({error})") from None

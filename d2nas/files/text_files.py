"""Small text files that a user names: search spaces, TOML."""

import difflib
import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StorageError, system_hint
from ..spaces import SPACES, SearchSpace

_MAX_TEXT_BYTES = 1_000_000
_NO_SUCH_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
)
"""What the operating system says of a name that is no file's."""
_MAX_KEY_PARTS = 32
_TOKENS = re.compile(
    r"""[^\s.=\[\]{},"'#]+ | "[^"\n]*" | '[^'\n]*' | [ \t]+ | \. | (?P<end>.)""",
    re.VERBOSE | re.DOTALL,
)
"""Parts of keys, what may stand between them, and what ends a key."""


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
    """Read a small text file that the user named.

    Raises ``ConfigError``, ``StorageError`` where the operating system cannot read it.
    """
    try:
        # Non-blocking, because a named pipe would make the reader wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{path}: not a file")
            data = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise ConfigError(f"{path}: {error.strerror}") from None
        raise StorageError(
            f"cannot read {path}: {error.strerror}",
            hint=system_hint(error, "check the disk and who may read the file"),
        ) from error
    except ValueError:  # a zero character
        raise ConfigError(f"{str(path)!r}: not a path") from None
    if len(data) > _MAX_TEXT_BYTES:
        raise ConfigError(f"{path}: larger than 1 MB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


def parse_toml(text: str, *, what: str) -> dict[str, Any]:
    """Parse TOML; ``what`` names the source. Raises ``ConfigError``."""
    try:
        _check_keys(text)
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOML's own errors, and endless integers
        raise ConfigError(f"{what}: not valid TOML ({error})") from None


def _check_keys(text: str) -> None:
    """Raise ``ValueError`` for a key of many parts: the parser takes its square in time."""
    if text.count(".") <= _MAX_KEY_PARTS:
        return
    dots = 0
    for token in _TOKENS.finditer(text):
        if token[0] == ".":
            dots += 1
            if dots >= _MAX_KEY_PARTS:
                raise ValueError(f"a key of more than {_MAX_KEY_PARTS} parts")
        elif token.lastgroup == "end":
            dots = 0

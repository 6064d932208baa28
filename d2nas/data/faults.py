"""Faults of an image folder, collected so that all of them are told at once."""

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..errors import ConfigError

MAX_TOLD = 20
"""How many are told one by one; of the rest, the kinds are counted."""

DAMAGED_HINT = "repair or remove it; --set data.on_error=skip leaves such images out"

FaultKind = Literal[
    "too few classes",
    "class names",
    "unknown classes",
    "empty classes",
    "small classes",
    "links",
    "irregular files",
    "missing files",
    "invalid rows",
    "damaged images",
]


class _Fault(NamedTuple):
    kind: int
    path: str
    reason: str
    hint: str


class Faults:
    """Faults of the data folder ``root``, in a fixed order: by kind, then by path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: list[_Fault] = []

    def __bool__(self) -> bool:
        """Tell whether anything was noted."""
        return bool(self._found)

    def add(self, kind: FaultKind, reason: str, hint: str, *, path: str = "") -> None:
        """Note a fault of the folder, or of the file at ``path`` below it. ``reason`` and ``hint``
        are one line each.
        """
        self._found.append(_Fault(get_args(FaultKind).index(kind), path, reason, hint))

    def add_damaged(self, path: str, error: ConfigError) -> None:
        """Note an image that cannot be decoded, by the error that names it."""
        self.add("damaged images", reason_of(error, self._root / path), DAMAGED_HINT, path=path)

    def errors(self) -> dict[str, ConfigError]:
        """Return the error of each faulty file, by its path."""
        return {fault.path: self._error(fault) for fault in self._found if fault.path}

    def raise_any(self) -> None:
        """Raise ``ConfigError`` if anything was noted: one fault as it is, of more a summary, with
        the first of them as ``details``.
        """
        if not self:
            return
        found = sorted(self._found)
        if len(found) == 1:
            raise self._error(found[0])
        details = [_line(fault) for fault in found[:MAX_TOLD]]
        if rest := found[MAX_TOLD:]:
            details.append(f"and {len(rest)} more ({_counts(rest)})")
        raise ConfigError(
            f"{shown(self._root)}: {len(found)} faults ({_counts(found)}); first: {details[0]}",
            hint="; ".join(dict.fromkeys(fault.hint for fault in found)),
            details=details,
        )

    def _error(self, fault: _Fault) -> ConfigError:
        where = self._root / fault.path if fault.path else self._root
        return ConfigError(f"{shown(where)}: {fault.reason}", hint=fault.hint)


def reason_of(error: ConfigError, path: Path) -> str:
    """Return what an error says of the file that it names."""
    return str(error).removeprefix(f"{shown(path)}: ")


def shown(path: Path | str) -> str:
    """Return a path as one printable line."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(path)
    )


def _line(fault: _Fault) -> str:
    return f"{shown(fault.path)}: {fault.reason}" if fault.path else fault.reason


def _counts(faults: list[_Fault]) -> str:
    counts = Counter(fault.kind for fault in faults)
    return ", ".join(f"{get_args(FaultKind)[kind]} {count}" for kind, count in counts.items())

"""Classes of a teacher: their names, and their order against that of the data set."""

import json
from collections.abc import Mapping, Sequence

from d2nas.errors import ConfigError, DamagedArtifactError, one_line
from d2nas.files.strict_json import parse_json

from ..store.fsio import storage_error
from .source import Source

CLASS_NAMES_KEY = "class_names"
"""Of an ONNX file's metadata: a JSON list of names, in the order of the outputs."""

_MAX_NAMED = 5


def names_in(metadata: Mapping[str, str], what: str) -> list[str] | None:
    """Return the classes that an ONNX file's metadata name, or None. Raises
    ``DamagedArtifactError`` for names that are no list of texts.
    """
    text = metadata.get(CLASS_NAMES_KEY)
    if text is None:
        return None
    found = parse_json(text, what=f"{what}: {CLASS_NAMES_KEY}")
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DamagedArtifactError(f"{what}: {CLASS_NAMES_KEY} is no JSON list of names")
    return found


def names_beside(source: Source) -> list[str] | None:
    """Return the classes that a file beside the model's names, one a line, or None. Raises
    ``ConfigError`` for what is no UTF-8 text, ``StorageError``.
    """
    file = source.labels_file
    if file is None or not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: no UTF-8 text") from None
    except OSError as error:
        raise storage_error(error, "read", file) from error


def order_of(names: Sequence[str], wanted: Sequence[str], what: str) -> list[int] | None:
    """Return the place among a teacher's ``names`` of each of the data set's; None where the order
    is the same.

    Names are compared as one line each, as bundles write them. Raises ``ConfigError`` where the
    classes are others, naming those that are missing.
    """
    theirs, ours = [one_line(name) for name in names], [one_line(name) for name in wanted]
    if len(set(theirs)) < len(theirs):
        twice = next(name for name in theirs if theirs.count(name) > 1)
        raise ConfigError(f"{what}: it has the class {json.dumps(twice)} twice")
    missing, more = ([*set(a) - set(b)] for a, b in ((ours, theirs), (theirs, ours)))
    if missing or more:
        told = [
            f"{word} {_named(found)}"
            for word, found in (("without", missing), ("with", more))
            if found
        ]
        raise ConfigError(
            f"{what}: its classes are not those of the data: {', '.join(told)}",
            hint="a teacher must have been trained on the same classes",
        )
    places = [theirs.index(name) for name in ours]
    return None if places == [*range(len(places))] else places


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in sorted(names)[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"

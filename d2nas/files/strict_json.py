"""Canonical JSON out, strict JSON in: what every artifact and every genotype is read with.

The standard parser accepts duplicate keys, NaN, any depth and any size. A file that travels
between machines gets none of that.
"""

import hashlib
import json
from typing import Any, NoReturn

from ..errors import DamagedArtifactError

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 32
MAX_INTEGER_DIGITS = 30
MAX_VALUES = 2_000_000
MAX_CONTAINERS = 500_000
"""Of lists and objects: two bytes of text each, and a hundred or two of memory."""


def canonical_json(value: Any) -> bytes:
    """Encode ``value`` so that equal values have equal bytes: sorted keys, no spaces, no NaN.

    Ends with a newline. Raises ``ValueError`` for NaN or infinity, ``TypeError`` for a value that
    JSON does not have.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode() + b"\n"


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical encoding of ``value``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def parse_json(data: bytes | str, *, what: str, is_counted: bool = False) -> Any:
    """Parse strict JSON; ``what`` names the source in errors.

    Raises ``DamagedArtifactError`` for anything but plain, finite, shallow JSON of at most
    ``MAX_BYTES`` without duplicate keys, and of at most ``MAX_VALUES`` values in
    ``MAX_CONTAINERS`` unless the caller has counted them (``is_counted``).
    """
    if len(data) > MAX_BYTES:
        raise DamagedArtifactError(f"{what}: {len(data)} bytes of JSON, at most {MAX_BYTES}")

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def bounded_integer(digits: str) -> int:
        if len(digits) > MAX_INTEGER_DIGITS:
            raise ValueError(f"integer of {len(digits)} digits")
        return int(digits)

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("duplicate key")
        return result

    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if not is_counted:
            _check_counts(text)
        _check_depth(text)
        return json.loads(
            text,
            parse_constant=refuse_constant,
            parse_int=bounded_integer,
            parse_float=_finite_float,
            object_pairs_hook=unique_keys,
        )
    except (ValueError, RecursionError) as error:
        raise DamagedArtifactError(f"{what}: not valid JSON ({error})") from None


def _finite_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is out of range")
    return value


def _check_counts(text: str) -> None:
    # Before parsing: a short text becomes twenty times as much memory.
    values, containers = text.count(",") + 1, text.count("[") + text.count("{")
    if values > MAX_VALUES or containers > MAX_CONTAINERS:
        raise ValueError(f"{values} values in {containers} lists and objects")


def _check_depth(text: str) -> None:
    # Before parsing: a deep document would otherwise reach the parser's recursion limit.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        elif character in "]}":
            depth -= 1

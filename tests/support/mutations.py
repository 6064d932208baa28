"""Random changes to files: of their bytes, and of the values that a JSON document holds."""

import random
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**40, 10**29, 0.5, 1e308, "", "x", "../../etc/passwd", "\u0000", "x" * 5000,
    [], [[]], [None], {}, {"": 1}, ["x"], [1.5], [[["x"]]],
)  # fmt: skip
_PARTS = (b"", b"{", b"]", b'"', b"\xff", b"1e999", b"null", b"-", b"\\u0000", b"7", b"a", b"\n")


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Put a few bytes in the place of a few others, once or twice."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 3)):
        position = draw.randrange(len(changed))
        changed[position : position + draw.randrange(3)] = draw.choice(_PARTS)
    return bytes(changed)


def mutated_values(value: Any, draw: random.Random) -> Any:
    """Return JSON data in which something is replaced, missing, doubled or added."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: child for name, child in value.items() if name != key}
        if draw.random() < 0.05:
            return value | {draw.choice(["", "extra", key.upper()]): draw.choice(JUNK)}
        return value | {key: mutated_values(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        index = draw.randrange(len(value))
        if draw.random() < 0.15:
            return value[:index] + value[index + 1 :]
        if draw.random() < 0.15:
            return [*value, value[index]]
        return [*value[:index], mutated_values(value[index], draw), *value[index + 1 :]]
    return draw.choice(JUNK)

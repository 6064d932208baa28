"""Named arrays out of a safetensors file, for readers that do without torch."""

from typing import Any

import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ..errors import DamagedArtifactError, brief_reason

SAFETENSORS_ERRORS = (
    safetensors.SafetensorError,
    AssertionError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Raised by the library for bytes that are damaged or hostile, into arrays and into tensors."""


def decode_arrays(data: bytes, *, what: str) -> dict[str, NDArray[Any]]:
    """Return the arrays by name; ``what`` names the source in errors.

    Compare names, shapes and types with what is expected: the format promises none. Raises
    ``DamagedArtifactError``.
    """
    try:
        return dict(safetensors.numpy.load(data))
    except SAFETENSORS_ERRORS as error:
        raise not_safetensors(what, error) from None


def not_safetensors(what: str, error: Exception) -> DamagedArtifactError:
    """Return the refusal of bytes from ``what`` that do not decode."""
    return DamagedArtifactError(f"{what}: not valid safetensors ({brief_reason(error)})")

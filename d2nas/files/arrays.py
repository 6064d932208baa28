"""Named arrays out of a safetensors file, for readers that do without torch."""

from typing import Any

import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ..errors import DamagedArtifactError


def decode_arrays(data: bytes, *, what: str) -> dict[str, NDArray[Any]]:
    """Return the arrays by name; ``what`` names the source in errors.

    Compare names, shapes and types with what is expected: the format promises none. Raises
    ``DamagedArtifactError``.
    """
    try:
        return dict(safetensors.numpy.load(data))
    except (
        safetensors.SafetensorError,
        AssertionError,
        KeyError,
        MemoryError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        problem = " ".join(str(error).split())[:200]
        raise DamagedArtifactError(f"{what}: not valid safetensors ({problem})") from None

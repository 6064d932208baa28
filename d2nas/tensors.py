"""Reading safetensors that may come from anywhere."""

import safetensors
import safetensors.torch
from torch import Tensor

from .errors import DamagedArtifactError


def decode_tensors(data: bytes, *, what: str) -> dict[str, Tensor]:
    """Return the tensors, on the CPU, by name; ``what`` names the source in errors.

    Compare names, shapes and dtypes with what is expected: the format promises none. Raises
    ``DamagedArtifactError``.
    """
    try:
        loaded = safetensors.torch.load(data)
    except (
        safetensors.SafetensorError,
        AssertionError,
        KeyError,
        MemoryError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        problem = " ".join(str(error).split())[:200]
        raise DamagedArtifactError(f"{what}: not valid safetensors ({problem})") from None
    # Sorted, so that loops over the result do not depend on the file's order.
    return {name: loaded[name].clone() for name in sorted(loaded)}

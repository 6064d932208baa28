"""Reading safetensors that may come from anywhere."""

from collections.abc import Callable, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import DamagedArtifactError
from .arrays import SAFETENSORS_ERRORS, not_safetensors
from .strict_json import canonical_json, parse_json


def decode_tensors(data: bytes, *, what: str) -> dict[str, Tensor]:
    """Return the tensors, on the CPU, by name; ``what`` names the source in errors.

    Compare names, shapes and dtypes with what is expected: the format promises none. Raises
    ``DamagedArtifactError``.
    """
    try:
        loaded = safetensors.torch.load(data)
    except SAFETENSORS_ERRORS as error:
        raise not_safetensors(what, error) from None
    # Sorted, so that loops over the result do not depend on the file's order.
    return {name: loaded[name].clone() for name in sorted(loaded)}


STATE_TENSORS = "state.safetensors"
STATE_SCALARS = "state.json"


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return safetensors bytes; equal tensors give equal bytes, in whatever order they come.

    Values, shapes and dtypes are kept exactly; device, strides and sharing are not. Raises
    ``ValueError`` for a tensor the format does not have (sparse, complex128).
    """
    plain = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.layout != torch.strided:
            raise ValueError(f"{name}: only dense tensors can be stored")
        # A clone of its own: the format refuses tensors that share memory.
        plain[name] = tensor.cpu().contiguous().clone(memory_format=torch.contiguous_format)
    try:
        return bytes(safetensors.torch.save(plain))
    except (KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"a tensor cannot be stored: {error}") from None


def encode_state(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a checkpoint, by name.

    ``scalars`` is JSON; raises ``ValueError`` or ``TypeError`` if it is not (NaN included).
    """
    return {
        STATE_TENSORS: encode_tensors(tensors),
        STATE_SCALARS: canonical_json(dict(scalars)),
    }


def decode_state(read: Callable[[str], bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and scalars of a checkpoint; ``read`` is an opened version's.

    Raises ``DamagedArtifactError``.
    """
    tensors = decode_tensors(read(STATE_TENSORS), what=STATE_TENSORS)
    scalars = parse_json(read(STATE_SCALARS), what=STATE_SCALARS)
    if not isinstance(scalars, dict):
        raise DamagedArtifactError(f"{STATE_SCALARS}: not a JSON object")
    return tensors, scalars

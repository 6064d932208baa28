"""Devices: ONNX Runtime's names, copies that the host does not wait for, the driver's version."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
"""Names that ONNX Runtime has for the two devices."""

_DRIVER_VERSION = re.compile(r"\b(\d+\.\d+(?:\.\d+)?)\b")


def send(host: "Tensor", device: "torch.device") -> "Tensor":
    """Return a tensor of the host on ``device``; differentiable.

    A copy from ordinary memory to a GPU makes the host wait until all work before it is done; one
    from pinned memory is put in line like any other work. PyTorch's allocator of pinned memory
    does not hand the block out again before the copy is made.
    """
    if device.type != "cuda" or host.device.type != "cpu":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def driver_version(version_file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of NVIDIA's driver, None where there is none."""
    try:
        found = _DRIVER_VERSION.search(version_file.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None

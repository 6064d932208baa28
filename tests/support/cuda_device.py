"""What tests on a CUDA device need of PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUDA = torch.device("cuda:0")


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that add in one order; which of them a library takes by itself is its choice."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make whatever waits for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

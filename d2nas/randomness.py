"""Every random draw is a function of (seed, purpose, step).

A resumed run then needs the step number and nothing else: no generator state to save, to restore,
or to forget. Nothing in d2nas draws from the global generators; networks of libraries, which know
no others, do between two states of them that are kept (``globally_seeded``).
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a 63-bit seed, statistically independent for different arguments."""
    words = f"{seed}/{purpose}/{step}".encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose at one step.

    Always on the CPU, so that the same run draws the same numbers whatever device computes.
    """
    return torch.Generator().manual_seed(derive_seed(seed, purpose, step))


@contextlib.contextmanager
def globally_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let code of others draw from PyTorch's own generators, seeded; afterwards these are as they
    were, on the CPU and on ``device``.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

"""Machine that a training ran on, as far as it decides the order of float sums; threads as before.

With another order the same training is no longer equal to the last bit.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..cpus import processor_name, usable_cpus
from ..devices import driver_version
from ..parallel import ALONE, Ranks
from . import precision

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""How users say how many threads PyTorch takes; launchers of several processes say so, too."""


def machine_facts(device: str, ranks: Ranks | None) -> dict[str, Any]:
    """Return the number of processes, and what else it is on a ``device`` (cpu, cuda).

    Processes exchange by gloo on CPUs and by NCCL on GPUs, which both come with PyTorch.
    """
    processes = (ranks or ALONE).size
    cpu = gpu = None
    if device == "cpu":
        cpu = precision.cpu_arithmetic() | {"processor": processor_name()}
    elif torch.cuda.is_available():
        gpu = {
            "name": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": driver_version(),
        }
        if processes > 1:
            gpu["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {"processes": processes, "cpu": cpu, "gpu": gpu}


def take_threads(facts: Mapping[str, Any]) -> int | None:
    """Let PyTorch take as many CPU threads as where these facts were recorded; return how many it
    took before, None where nothing changes.

    Not where the user said how many, nor where this process may use fewer CPUs.
    """
    cpu = facts.get("cpu")
    was = cpu.get("threads") if isinstance(cpu, Mapping) else None
    before = torch.get_num_threads()
    if not isinstance(was, int) or was == before or not 1 <= was <= usable_cpus():
        return None
    if any(name in os.environ for name in THREAD_VARIABLES):
        return None
    torch.set_num_threads(was)
    return before

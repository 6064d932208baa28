"""Functions of the tests, run by several processes that train together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from d2nas.parallel import Ranks


def on_processes(
    count: int, function: str, folder: Path, *arguments: str
) -> list[dict[str, Tensor]]:
    """Run ``module.function`` of the tests on some ranks; returns what each wrote."""
    module, _, name = function.partition(".")
    own = Path(__file__).resolve()
    (home,) = own.parents[1].rglob(f"{module}.py")
    folders = [str(own.parent), str(home.parent)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = (
        "import torch, json, sys; torch.set_num_threads(1)\n"
        f"sys.path[:0] = {folders!r}\n"
        f"import {module} as t\n"
        "from d2nas.parallel import connected, environment_ranks\n"
        "ranks = environment_ranks()\n"
        "with connected(ranks):\n"
        f"    t.{name}(ranks, {str(folder)!r}, *{arguments!r})\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0] * count, errors
    return [load_file(folder / f"{rank}.safetensors") for rank in range(count)]


def save(folder: str, ranks: Ranks, tensors: dict[str, Tensor]) -> None:
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(packed, Path(folder) / f"{ranks.rank}.safetensors")

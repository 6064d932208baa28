"""Functions of the tests, run by several processes that train together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from children import ForkServer, function_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2nas.parallel import Ranks, connected, environment_ranks


def on_processes(
    count: int,
    function: str,
    folder: Path,
    *arguments: str,
    fork_server: ForkServer | None = None,
) -> list[dict[str, Tensor]]:
    """Run ``module.function`` of the tests on some ranks; returns what each wrote.

    The processes are forked, which saves seconds; without a ``fork_server`` they are fresh ones, as
    CUDA needs them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environments = [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(count)
    ]
    words = (function, str(folder), *arguments)
    if fork_server is None:
        ended = _fresh(words, environments)
    else:
        pids = [fork_server.call("processes.on_a_rank", *words, **own) for own in environments]
        ended = [fork_server.wait(pid) for pid in pids]
    assert [code for code, _ in ended] == [0] * count, [talk for _, talk in ended]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(count)]


def _fresh(words: tuple[str, ...], environments: list[dict[str, str]]) -> list[tuple[int, str]]:
    support = str(Path(__file__).resolve().parent)
    script = (
        "import torch, sys; torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {support!r})\n"
        f"import processes; processes.on_a_rank(*{words!r})\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | own,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in environments
    ]
    talk = [child.communicate(timeout=300)[1] for child in children]
    return [(child.returncode, said) for child, said in zip(children, talk, strict=True)]


def on_a_rank(function: str, folder: str, *arguments: str) -> None:
    """Call ``module.function`` with this process's rank, connected to the others."""
    ranks = environment_ranks()
    with connected(ranks):
        function_of(function)(ranks, folder, *arguments)


def save(folder: str, ranks: Ranks, tensors: dict[str, Tensor]) -> None:
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(packed, Path(folder) / f"{ranks.rank}.safetensors")

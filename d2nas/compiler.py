"""Import of PyTorch's compiler without the folder that it makes in the temporary one."""

import contextlib
import importlib
import os
from functools import cache

import torch

_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


@cache
def load_compiler() -> None:
    """Import the compiler, as PyTorch's optimizers, data parallelism and exporter do by themselves.

    Each of these imports makes the folder of compiled code, for nothing where nothing is compiled,
    and fails where no temporary folder can be written. Meanwhile the folder is one that exists. A
    compilation makes it where PyTorch always does.
    """
    if _CACHE_FOLDER in os.environ:  # wanted there
        return
    os.environ[_CACHE_FOLDER] = os.path.dirname(torch.__file__)
    try:
        for name in ("torch._dynamo", "torch._inductor.compiler_bisector"):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(name)
    finally:
        del os.environ[_CACHE_FOLDER]

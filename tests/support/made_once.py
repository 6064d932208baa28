"""Costly things that many tests begin with, made once and shared by all test processes.

A folder of a finished run is shared with ``made_once``; of what is traced for ONNX by commands and
for graphs to look at, a function of the network and the opset alone, ``traced_once`` keeps the
answers, and ``digits_read_once`` the table of digits. Runs of ``pytest -m long`` trace each network
and read each table again. The tests of the exporter and of the data sets do not use it.
"""

import copy
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import campaigns
import numpy as np
import onnx
import pytest
import torch
from faults import memory_folder
from torch.onnx._internal.exporter import _registration

from d2nas.nn.network import Network
from pipeline.onnx_io import export

_real_trace, _real_export = export._traced, torch.onnx.export
_traces: Path | None = None
_real_table = np.loadtxt
_tables: dict[tuple[Any, ...], Any] = {}


def shared_root(factory: pytest.TempPathFactory) -> Path:
    """The folder that all test processes of this session have in common."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of this name, which the first who asks for it has filled with ``make``."""
    target = shared_root(factory) / name
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, and with the process
        if not target.exists():
            with memory_folder(factory.mktemp(name)) as folder:
                make(folder)
                unfinished = Path(tempfile.mkdtemp(dir=target.parent)) / name
                shutil.copytree(folder, unfinished)
            unfinished.rename(target)
    return target


def keep_traces(folder: Path) -> None:
    """Let ``traced_once`` keep its answers in a folder."""
    global _traces
    folder.mkdir(exist_ok=True)
    _traces = folder


def _trace(network: torch.nn.Module, example: torch.Tensor, opset: int) -> onnx.ModelProto:
    if type(network) is not Network or torch.onnx.export is not _real_export or _traces is None:
        return _real_trace(network, example, opset)
    asked = hashlib.sha256(repr((network, network.genotype, example.shape, opset)).encode())
    for name, tensor in network.state_dict().items():
        asked.update(name.encode() + tensor.cpu().numpy().tobytes())
    known = _traces / asked.hexdigest()
    if not known.exists():
        model = _real_trace(network, example, opset)
        with tempfile.NamedTemporaryFile(dir=_traces, delete=False) as file:
            file.write(model.SerializeToString())
        Path(file.name).rename(known)
    return onnx.ModelProto.FromString(known.read_bytes())


@contextmanager
def traced_once() -> Iterator[None]:
    """Trace networks that were traced before, in this or another test process, no second time."""
    if campaigns.LONG:
        yield
    else:
        with mock.patch.object(export, "_traced", _trace):
            yield


@contextmanager
def one_registry() -> Iterator[None]:
    """Let all exports of this process share the table of what ONNX has for PyTorch's operations,
    which each would make again, half a second long: it depends on PyTorch alone.
    """
    kind, made = _registration.ONNXRegistry, dict[Any, Any]()
    real = kind.from_torchlib

    def from_torchlib(*given: Any, **options: Any) -> Any:
        asked = (given, tuple(options.items()))
        if asked not in made:
            made[asked] = real(*given, **options)
        return copy.copy(made[asked])

    with mock.patch.object(kind, "from_torchlib", staticmethod(from_torchlib)):
        yield


def _table(path: Path, **options: Any) -> Any:
    state = path.stat()
    key = path, state.st_ino, state.st_size, state.st_mtime_ns, repr(options)
    if key not in _tables:
        _tables[key] = _real_table(path, **options)
    return _tables[key].copy()


@contextmanager
def digits_read_once() -> Iterator[None]:
    """Read a table that this process has read before, and is as it was, no second time."""
    if campaigns.LONG:
        yield
    else:
        with mock.patch.object(np, "loadtxt", _table):
            yield

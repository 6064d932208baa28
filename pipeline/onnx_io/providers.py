"""Execution providers: those that are listed, and those that run a model.

What a build lists says nothing about what loads: each is tried with a tiny model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from d2nas.devices import CPU_PROVIDER, CUDA_PROVIDER
from d2nas.errors import D2NasError

from . import INPUT_NAME, OUTPUT_NAME
from .runtime import captured_log, load_problem, load_runtime, problem, runtime_errors
from .session import open_session, preload_cuda, strict_options

TENSORRT_PROVIDER = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class ProviderStatus:
    """One execution provider: is it in the build (``listed``), does it run a model (``loads``)."""

    name: str
    listed: bool
    loads: bool
    problem: str | None
    """Why it does not load, in one line; None if it does."""


def runtime_device(device: str) -> str:
    """Return ``device``, with ``auto`` replaced by ``cuda`` if CUDA runs a model, else ``cpu``."""
    if device != "auto":
        return device
    return "cpu" if cuda_problem() else "cuda"


def cuda_problem() -> str | None:
    """Say in one line why CUDA runs no model here; None if it runs one."""
    found = _try_device(load_runtime(), "cuda", CUDA_PROVIDER).problem
    return None if found is None else found.partition(", but ")[2] or found


def require_device(device: str) -> None:
    """Run a tiny model on ``device``; raises what ``open_session`` raises where it cannot be had.

    ``device`` is ``cpu``, ``cuda`` or ``cuda:N``.
    """
    session = open_session(_probe_model(), device=device)
    session.run(np.ones((2, *session.description.array_shape), np.float32))


def loadable_providers() -> list[ProviderStatus]:
    """Try CUDA, TensorRT (if it is in the build) and the CPU with a tiny model each.

    What a build lists says nothing about what loads, so both are reported.
    """
    runtime = load_runtime()
    statuses = [_try_device(runtime, "cuda", CUDA_PROVIDER)]
    if TENSORRT_PROVIDER in runtime.get_available_providers():
        statuses.append(_try_tensorrt(runtime))
    statuses.append(_try_device(runtime, "cpu", CPU_PROVIDER))
    return statuses


def _try_device(runtime: Any, device: str, provider: str) -> ProviderStatus:
    listed = provider in runtime.get_available_providers()
    try:
        session = open_session(_probe_model(), device=device, num_threads=1)
        session.run(np.ones((2, *session.description.array_shape), np.float32))
    except D2NasError as error:
        return ProviderStatus(provider, listed, loads=False, problem=str(error))
    return ProviderStatus(provider, listed, loads=True, problem=None)


def _try_tensorrt(runtime: Any) -> ProviderStatus:
    log: list[str] = []
    reason: str | None = None
    try:
        with captured_log() as log:
            preload_cuda(runtime)
            session = runtime.InferenceSession(
                _probe_model(),
                strict_options(runtime),
                providers=[(TENSORRT_PROVIDER, {})],
                enable_fallback=0,
            )
        if list(session.get_providers())[:1] != [TENSORRT_PROVIDER]:
            reason = load_problem("".join(log)) or "ONNX Runtime would have used the CPU"
    except runtime_errors(runtime) as error:
        reason = problem(error, "".join(log))
    return ProviderStatus(TENSORRT_PROVIDER, listed=True, loads=reason is None, problem=reason)


def _probe_model() -> bytes:
    """Return a tiny classifier with a convolution: that is what needs cuDNN."""
    kernel = helper.make_tensor("kernel", onnx.TensorProto.FLOAT, [2, 1, 3, 3], [0.5] * 18)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [INPUT_NAME, "kernel"], ["features"], name="conv"),
            helper.make_node("GlobalAveragePool", ["features"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], [OUTPUT_NAME], name="flatten"),
        ],
        "probe",
        [helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["batch", 2])],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())

"""PyTorch's own time for a network, without a compiler: what a runtime is compared with."""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2nas.errors import ConfigError

from ..onnx_io.devices import CpuDevice, Device
from ..onnx_io.latency import Timings, time_runs, timing_images
from ..onnx_io.session import PLAIN, OnnxSession

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SECONDS_SHARE = 0.25
"""Of the time budget: PyTorch is there to compare with, not to be published."""


def measure_eager(
    network: nn.Module, session: OnnxSession, batch: int, *, samples: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield PyTorch's times for the images that ``session`` is timed with, in both memory layouts.

    ``samples`` and ``seconds`` are what the session was given. The network must be on the session's
    kind of device. Raises ``ConfigError``.
    """
    device = next(network.parameters()).device
    if device.type != session.device.kind:
        raise ConfigError(f"the network is on {device}, the session on {session.device.label}")
    inputs = eager_inputs(session, batch)
    for layout in LAYOUTS:
        run = eager_run(network, inputs.to(device), layout)
        with session_threads(session.device), torch.inference_mode():
            runs, warm_up = time_runs(run, samples=samples, seconds=seconds * SECONDS_SHARE)
        times = Timings(batch, f"PyTorch eager, {layout}", runs, warm_up.runs, PLAIN, "none")
        yield {
            "batch": batch,
            "runtime": times.provider,
            "device": session.device.label,
            "kind": session.device.kind,
            "p50_ms": times.percentile_ms(50),
            "mean_ms": times.mean_ms,
            "samples": len(runs),
            "stable": times.stable,
        }
    network.to(memory_format=torch.contiguous_format)


def eager_inputs(session: OnnxSession, batch: int) -> Tensor:
    """Return float32 images [batch, channels, height, width], those the session is timed with."""
    values = timing_images(batch, session.description)
    if session.description.input_type == "uint8":
        values = np.moveaxis(values, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def eager_run(network: nn.Module, inputs: Tensor, layout: str) -> "functools.partial[None]":
    """Return a call that runs the network on ``inputs`` and waits; changes the network's layout."""
    network.to(memory_format=LAYOUTS[layout])
    return functools.partial(_answer, network, inputs.contiguous(memory_format=LAYOUTS[layout]))


def _answer(network: nn.Module, inputs: Tensor) -> None:
    network(inputs)
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)


@contextmanager
def session_threads(device: Device) -> Iterator[None]:
    """Give PyTorch as many threads as the session has."""
    before = torch.get_num_threads()
    try:
        if isinstance(device, CpuDevice):
            torch.set_num_threads(device.num_threads)
            # The session's own threads look for work for a while after a run.
            time.sleep(0.05)
        yield
    finally:
        torch.set_num_threads(before)

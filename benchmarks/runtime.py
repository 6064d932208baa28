"""Times ONNX Runtime against PyTorch without a compiler, for one exported network on one device.

Both answer the same images again and again, in blocks that alternate; the network is untrained,
which changes no time.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from d2nas.config import Config
from d2nas.genotype import Genotype
from d2nas.nn.network import Network
from d2nas.nn.operations import initialize
from d2nas.randomness import generator
from pipeline.gate.eager import LAYOUTS, eager_inputs, eager_run, session_threads
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.latency import timing_images
from pipeline.onnx_io.providers import runtime_device
from pipeline.onnx_io.session import open_session

from .pairs import TimedWork, compare

GENOTYPE = "DARTS_V2"
INPUT_SHAPE = (3, 32, 32)
BLOCK = 20
"""Runs of one timed block: long beside what a switch between the two costs."""
GOAL = 1.5
"""How much faster ONNX Runtime should be than contiguous eager PyTorch at batch 1."""


def compare_runtimes(config: Config, batch: int, pairs: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of ONNX Runtime against each memory layout of PyTorch, per run and image.

    ``ratio_median`` is ONNX Runtime's time over PyTorch's. Raises as ``open_session`` does.
    """
    network = _network(config)
    model = export_onnx(
        network,
        input_shape=INPUT_SHAPE,
        opset=config.export.opset,
        metadata={},
        precision=config.export.float_precision,
    )
    session = open_session(model, device=runtime_device(config.validate_.device))
    # From host to host on both sides would time copies; on the device both wait for the result.
    bound = session.bind(timing_images(batch, session.description))
    network.to(torch.device(session.device.kind))
    inputs = eager_inputs(session, batch).to(session.device.kind)
    units = {"run": BLOCK, "image": BLOCK * batch}
    runtime = TimedWork(f"ONNX Runtime, {session.device.label}", _block(bound), units, _settle)
    for layout in LAYOUTS:
        run = eager_run(network, inputs, layout)
        eager = TimedWork(f"PyTorch eager, {layout}", _block(run), units, _settle)
        with session_threads(session.device), torch.inference_mode():
            yield compare(runtime, eager, pairs)


def _network(config: Config) -> Network:
    with torch.random.fork_rng(devices=[]):
        network = Network(
            Genotype.published(GENOTYPE),
            num_cells=config.retrain.num_cells,
            init_channels=config.retrain.init_channels,
            num_classes=10,
            in_channels=INPUT_SHAPE[0],
            stem="cifar",
            auxiliary=False,
        ).eval()
    initialize(network, generator(0, "network-weights"))
    return network


def _block(run: Callable[[], object]) -> Callable[[], None]:
    return functools.partial(_repeat, run)


def _repeat(run: Callable[[], object]) -> None:
    for _ in range(BLOCK):
        run()


def _settle() -> None:
    # Each side's threads look for work for a while after a run, on cores that the other one needs.
    time.sleep(0.05)

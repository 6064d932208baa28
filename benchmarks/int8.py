"""What do 8-bit integers do to trained networks, and what do they save?

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/int8.py \
        --data-root /usr/share/datasets/fashion-mnist --out benchmarks/int8.json

Networks of three widths are trained on digits or Fashion-MNIST (as in ``fp16_parity``), exported
and quantised with weights of 8 and of 7 bits by training images, and compared on the CPU with
PyTorch over the test images. Then each of them, and DARTS_V2 of 8 cells x 36 channels as
initialised at 32 pixels, is timed in turns with its float32 model, on one thread. CPU figures.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fp16_parity import (
    BATCH,
    Logits,
    configured,
    described,
    in_class_order,
    numbers,
    session_of,
    trained,
)
from d2nas.data.images import Normalizer, load_data
from d2nas.genotype import Genotype
from d2nas.nn.network import Network
from pipeline.gate.parity import in_batches
from pipeline.latency.timing import time_in_turns
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.quantisation import quantise
from pipeline.onnx_io.session import open_session

CASES = [("digits", 8, 12, 0), ("digits", 36, 3, 0), ("fashion-mnist", 16, 4, 0)]
NUM_CALIBRATION = 256
BATCHES = (1, 4)
LARGE: dict[str, Any] = {"cells": 8, "channels": 36, "image_size": 32}


def main() -> None:
    """Train, export, quantise, compare and time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    rows = [measured(case, arguments.data_root) for case in CASES]
    found = described() | {"command": " ".join(["python", *sys.argv]), "rows": [*rows, large()]}
    Path(arguments.out).write_text(json.dumps(found, indent=1) + "\n")


def measured(case: tuple[str, int, int, int], root: str) -> dict[str, Any]:
    """Return accuracy, distance and latency of a trained network."""
    name, channels, epochs, seed = case
    config = configured(case, root)
    data = load_data(config.data, seed=seed, default_root=Path.cwd())
    network, normalizer = trained(config, data, epochs), Normalizer(data.mean, data.std)
    test = in_class_order(data)
    images, labels = normalizer(test.images_NCHW).numpy(), test.labels_N.numpy()
    calibration = normalizer(data.train.pixels(slice(0, NUM_CALIBRATION))).numpy()

    def answer(rows: Logits) -> Logits:
        with torch.no_grad():
            logits: Logits = network(torch.from_numpy(rows)).numpy()
        return logits

    reference = in_batches(answer, images, BATCH)
    model = export_onnx(network, input_shape=images.shape[1:], opset=20, metadata={})
    row: dict[str, Any] = {"data": name, "channels": channels, "epochs": epochs, "seed": seed}
    row["accuracy"] = float((reference.argmax(axis=1) == labels).mean())
    for bits in (8, 7):
        data_int8 = quantise(model, [calibration], bits=bits)
        logits = in_batches(session_of(data_int8), images, BATCH)
        accuracy = float((logits.argmax(axis=1) == labels).mean())
        row[f"{bits} bits"] = numbers(reference, logits) | {"accuracy": accuracy}
    return row | {"latency": latency(model, quantise(model, [calibration], bits=8))}


def large() -> dict[str, Any]:
    """Return the latency of DARTS_V2, 8 cells x 36 channels, at 32 pixels."""
    torch.manual_seed(0)
    network = Network(
        Genotype.published("DARTS_V2"),
        num_cells=LARGE["cells"],
        init_channels=LARGE["channels"],
        num_classes=10,
        in_channels=3,
    ).eval()
    model = export_onnx(network, input_shape=(3, 32, 32), opset=20, metadata={})
    images = np.random.default_rng(0).standard_normal((32, 3, 32, 32), np.float32)
    return LARGE | {"latency": latency(model, quantise(model, [images], bits=8))}


def latency(model: bytes, quantised: bytes) -> list[dict[str, float]]:
    """Return the quietest round's median of both models at each batch size, in milliseconds."""
    sessions = [open_session(one, device="cpu", num_threads=1) for one in (quantised, model)]
    found = []
    for batch in BATCHES:
        own, others = (times.quietest_ms for times in time_in_turns(sessions, batch))
        found.append({"batch": batch, "int8_ms": own, "fp32_ms": others, "ratio": own / others})
    return found


if __name__ == "__main__":
    main()

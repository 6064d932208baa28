"""What does half precision do to trained networks, and which limit tells it from a fault?

    python benchmarks/fp16_parity.py --data-root /usr/share/datasets/fashion-mnist \
        --out benchmarks/fp16_parity.json

Networks of several widths are trained for few or many steps on digits and on Fashion-MNIST (in
Debian's package dataset-fashion-mnist; 2,000 training images, test images in class order as a
folder has them), exported in fp32 and fp16, and compared on the CPU with PyTorch: spread, distance
and agreement over all test images, over the first 64 and over 64 sampled ones, and the distance of
each faulty copy that the gate's self-test makes. Finished networks are kept in the file, and the
next call goes on with the others. CPU figures: rounding on a GPU is another.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2nas.config import Config
from d2nas.data.images import ImageData, ImageSet, Normalizer, load_data
from d2nas.data.subsample import spread_sample
from d2nas.genotype import Genotype
from d2nas.nn.network import Network
from d2nas.train.retrain import Retraining
from pipeline.commands.configuration import configure
from pipeline.gate.comparison import compare
from pipeline.gate.mutants import mutants
from pipeline.gate.parity import in_batches
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.providers import runtime_device
from pipeline.onnx_io.session import open_session

CASES = [
    (data, channels, epochs, seed)
    for data in ("digits", "fashion-mnist")
    for channels in (4, 8, 16, 36)
    for epochs in ((0, 1, 3, 12) if data == "digits" else (1, 4))
    for seed in (0,)
    if not (data == "fashion-mnist" and channels == 36)
]
NUM_CELLS = 5
NUM_TEST = 1000
BATCH = 64
Logits = NDArray[np.float32]


def main() -> None:
    """Train, export and compare what is not in the file yet."""
    arguments = parse_arguments()
    torch.set_flush_denormal(True)
    out = Path(arguments.out)
    found = json.loads(out.read_text()) if out.exists() else {"rows": []}
    done = {(r["data"], r["channels"], r["epochs"], r["seed"]) for r in found["rows"]}
    for case in CASES:
        if case not in done:
            found = described() | {"rows": [*found["rows"], measured(case, arguments.data_root)]}
            out.write_text(json.dumps(found, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def described() -> dict[str, Any]:
    """Return how and where these figures come about."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit,
        "device": "cpu",
        "machine": {"processor": processor, "threads": torch.get_num_threads()},
        "protocol": f"DARTS_V2, {NUM_CELLS} cells, up to {NUM_TEST} test images in class order",
    }


def configured(case: tuple[str, int, int, int], root: str) -> Config:
    """Return the configuration of a case."""
    data, channels, epochs, seed = case
    settings = [
        f"run.seed={seed}",
        f"retrain.init_channels={channels}",
        f"retrain.num_cells={NUM_CELLS}",
        f"retrain.epochs={max(1, epochs)}",
        "retrain.auxiliary=false",
        "retrain.cutout=0",
        "retrain.drop_path=0.0",
        f"retrain.batch_size={BATCH}",
        "retrain.device=cpu",
    ]
    if data == "digits":
        return configure("quickstart", settings)
    limits = ["data.train_images=2000", "data.image_size=16", "data.fit=crop"]
    return configure("fashion-mnist", [*settings, *limits, f"data.root={root}"])


def measured(case: tuple[str, int, int, int], root: str) -> dict[str, Any]:
    """Train a network, export it twice, and compare."""
    name, channels, epochs, seed = case
    config = configured(case, root)
    data = load_data(config.data, seed=seed, default_root=Path.cwd())
    network = trained(config, data, epochs)
    test = in_class_order(data)
    images = Normalizer(data.mean, data.std)(test.images_NCHW).numpy()
    labels = test.labels_N.numpy()

    def answer(rows: Logits) -> Logits:
        with torch.no_grad():
            logits: Logits = network(torch.from_numpy(rows)).numpy()
        return logits

    reference = in_batches(answer, images, BATCH)
    sample = spread_sample(len(labels), BATCH, purpose="check", labels=labels)
    row: dict[str, Any] = {"data": name, "channels": channels, "epochs": epochs, "seed": seed}
    row["accuracy"] = float((reference.argmax(axis=1) == labels).mean())
    shape = (data.channels, data.image_size, data.image_size)
    for precision in ("fp32", "fp16"):
        model = export_onnx(
            network,
            input_shape=shape,
            opset=20,
            metadata={},
            precision=precision,
        )
        logits = in_batches(session_of(model), images, BATCH)
        row[precision] = {
            "all": numbers(reference, logits),
            "first_64": numbers(reference[:BATCH], logits[:BATCH]),
            "sampled_64": numbers(reference[sample], logits[sample]),
            "faulty_copies": {
                fault: numbers(reference[sample], session_of(copy)(images[sample]))
                for fault, copy in mutants(model)
            },
        }
    return row


def trained(config: Config, data: ImageData, epochs: int) -> Network:
    """Return the network after ``epochs``: as initialised after none."""
    training = Retraining(
        config.retrain,
        Genotype.published("DARTS_V2"),
        data,
        seed=config.run.seed,
        device=torch.device("cpu"),
        augmentation=config.data,
    )
    if epochs:
        for _ in training.run():
            pass
    network = training.network.eval()
    assert isinstance(network, Network)
    return network


def in_class_order(data: ImageData) -> ImageSet:
    """Return some test images of every class, class by class."""
    assert isinstance(data.test, ImageSet)
    labels = data.test.labels_N
    some = torch.tensor(
        spread_sample(len(labels), NUM_TEST, purpose="benchmark", labels=labels.tolist())
    )
    return data.test.select(some[torch.argsort(labels[some], stable=True)])


def session_of(model: bytes) -> Any:
    """Return the model as a function."""
    return open_session(model, device=runtime_device("cpu")).run


def numbers(reference: Logits, got: Logits) -> dict[str, float | None]:
    """Return what a verdict rests on."""
    result = compare(reference, got)
    return {
        "spread": result.spread,
        "relative_l2": result.relative_l2,
        "top1_agreement": result.top1_agreement,
    }


if __name__ == "__main__":
    main()

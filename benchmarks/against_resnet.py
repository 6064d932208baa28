"""Is the search worth its time? A whole run against a plain ResNet with as much processor time.

    python -m benchmarks.against_resnet run --data-root DIR [--images photographs] [--seed 0]
    python -m benchmarks.against_resnet report

3,000 training images and 2,000 others of the training set to judge by, which neither has seen. The
run is ``d2nas run small``, search to validated model, in one thread; its user and system time is
the ResNet's budget, which trains by what a tutorial would do: SGD with momentum, one cycle of the
learning rate, shifted and mirrored images. Latency of both models on ONNX Runtime, one image, in
turns. A row for each seed in ``against_resnet.jsonl``.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2nas.data.images import ImageData, Normalizer, load_data
from pipeline.commands.configuration import configure
from pipeline.onnx_io.export import export_onnx
from pipeline.onnx_io.latency import measure_latency
from pipeline.onnx_io.session import OnnxSession, open_session

from .rows import append_row, rows_of

ROWS_FILE = Path(__file__).parent / "against_resnet.jsonl"
IMAGES = {"Fashion-MNIST": "fashion-mnist", "photographs": "folder"}
"""Which images, and their ``data.name``."""
SIZES = ("data.train_images=3000", "data.evaluation=held-out", "data.held_out_images=2000")
BATCH, LR, MOMENTUM, DECAY, SHIFT = 64, 0.1, 0.9, 5e-4, 4
ROUNDS, RUNS = 7, 300


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def resnet14(in_channels: int, num_classes: int) -> nn.Module:
    """Return a ResNet for small images (He et al., arXiv 1512.03385, 4.2), twice as wide: two
    blocks each of 32, 64 and 128 channels.
    """
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 32, 3, 1, 1, bias=False)]
    layers += [nn.BatchNorm2d(32), nn.ReLU()]
    before = 32
    for channels in (32, 64, 128):
        for stride in (1 if channels == 32 else 2, 1):
            layers.append(_Block(before, channels, stride))
            before = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
    return nn.Sequential(*layers)


def trained_resnet(data: ImageData, seconds: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Train for as much processor time; return the network and what it took. The first epoch says
    how many fit.
    """
    began = time.process_time()
    torch.manual_seed(seed)
    network = resnet14(data.channels, len(data.class_names)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    images = Normalizer(data.mean, data.std)(data.train.pixels(slice(None)))
    labels = data.train.labels_N
    epochs, epoch = 1, 0
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    while epoch < epochs:
        for chosen in torch.split(torch.randperm(len(labels)), BATCH):
            if len(chosen) > 1:
                loss = F.cross_entropy(network(_augmented(images[chosen])), labels[chosen])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
        epoch += 1
        if schedule is None:
            epochs = max(2, int(seconds / (time.process_time() - began)))
            steps = (epochs - 1) * (-(-len(labels) // BATCH) + 1)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    return network.eval(), {"epochs": epochs, "cpu_seconds": time.process_time() - began}


def _augmented(images: Tensor) -> Tensor:
    """Return images moved by up to ``SHIFT`` pixels, each by its own way, half of them mirrored."""
    size = images.shape[-1]
    padded = F.pad(images, (SHIFT,) * 4)
    corners = torch.randint(0, 2 * SHIFT + 1, (len(images), 2)).tolist()
    cut = [
        one[:, row : row + size, column : column + size]
        for one, (row, column) in zip(padded, corners, strict=True)
    ]
    mirrored = torch.rand(len(images)) < 0.5
    moved = torch.stack(cut)
    moved[mirrored] = moved[mirrored].flip(-1)
    return moved.to(memory_format=torch.channels_last)


def accuracy_of(network: nn.Module, data: ImageData) -> float:
    """Return the share of right answers on the images that judge."""
    images = Normalizer(data.mean, data.std)(data.test.pixels(slice(None)))
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(dim=1) for part in torch.split(images, 256)])
    return float((answers == data.test.labels_N).double().mean())


def whole_run(settings: Sequence[str], folder: Path) -> tuple[dict[str, Any], float]:
    """Run ``d2nas run small``; return its answer and its processor time in seconds."""
    words = [word for setting in settings for word in ("--set", setting)]
    places = ["--store", str(folder / "store"), "--exported", str(folder / "exported")]
    before = _children_seconds()
    command = [sys.executable, "-m", "d2nas", "run", "small", "--json", *places, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout), _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def times_of(sessions: Sequence[OnnxSession]) -> list[float]:
    """Return each session's median time for one image in milliseconds, of ``ROUNDS`` in turns."""
    rounds: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, found in zip(sessions, rounds, strict=True):
            record = measure_latency(session, 1, samples=RUNS, seconds=5.0)
            found.append(float(record.to_dict()["p50_ms"]))
    return [statistics.median(found) for found in rounds]


def compare(images: str, data_root: str, seed: int) -> None:
    """Make both, and add the row."""
    settings = [f"data.name={IMAGES[images]}", f"data.root={data_root}", *SIZES]
    settings += [f"run.seed={seed}", "data.split_seed=0"]
    config = configure("small", settings)
    data = load_data(config.data, seed=0, default_root=Path.cwd())
    with tempfile.TemporaryDirectory() as folder:
        told, seconds = whole_run(settings, Path(folder))
        model = next(Path(told["bundle"]).glob("*/model.onnx")).read_bytes()
    network, took = trained_resnet(data, seconds, seed)
    shape = (data.channels, data.image_size, data.image_size)
    plain = export_onnx(network, input_shape=shape, opset=config.export.opset, metadata={})
    sessions = [open_session(one, device="cpu") for one in (model, plain)]
    own_ms, plain_ms = times_of(sessions)
    row = {
        "images": images,
        "seed": seed,
        "run": {
            "accuracy": told["accuracy"]["onnx"],
            "params": told["params"],
            "p50_ms": own_ms,
            "cpu_seconds": round(seconds, 1),
        },
        "resnet": {
            "accuracy": accuracy_of(network, data),
            "params": sum(parameter.numel() for parameter in network.parameters()),
            "p50_ms": plain_ms,
            **took,
        },
    }
    append_row(ROWS_FILE, row, same=("images", "seed"))


def report() -> list[dict[str, Any]]:
    """Return the means by images: accuracies with deviations, the ratio of parameters and times."""
    found = []
    for images in IMAGES:
        rows = [row for row in rows_of(ROWS_FILE) if row["images"] == images]
        if len(rows) < 2:
            continue
        means: dict[str, Any] = {"images": images, "n": len(rows)}
        for who in ("run", "resnet"):
            values = [row[who]["accuracy"] for row in rows]
            means[who] = [statistics.fmean(values), statistics.stdev(values)]
        for key in ("params", "p50_ms"):
            ratios = [row["run"][key] / row["resnet"][key] for row in rows]
            means[f"{key}, run over resnet"] = statistics.fmean(ratios)
        found.append(means)
    return found


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--images", choices=[*IMAGES], default="Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "run":
        compare(arguments.images, arguments.data_root, arguments.seed)
    else:
        sys.stdout.write("".join(json.dumps(row) + "\n" for row in report()))


if __name__ == "__main__":
    main()

"""Times retraining against a plain implementation of the same network and recipe.

Plain is how the original codes train: PyTorch's own modules and backward, contiguous float32,
augmentation image by image in a loader's worker, an ordinary optimizer, and every step's numbers
read by the host. Both train the same network on the same made-up images.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from d2nas.compiler import load_compiler
from d2nas.config import DataConfig, RetrainConfig
from d2nas.data.augmentation import cutout_pixels
from d2nas.data.images import ImageData, ImageSet
from d2nas.genotype import Genotype
from d2nas.measure.cost import count_cost
from d2nas.train.loop import torch_device
from d2nas.train.precision import arithmetic_of
from d2nas.train.retrain import Retraining, has_auxiliary, train_step

from .pairs import TimedWork, compare
from .plain_network import PlainNetwork
from .search import IMAGE_SIZE, made_images

GENOTYPE = "DARTS_V2"
EPOCH_STEPS = 64
STEPS = 2
"""Steps of one timed run."""

GOAL = 1.25
"""Images per second over those of the plain implementation, at least."""

ESTIMATED_GPUS = {
    # name: memory bytes per second, fp32 and half-precision multiply-adds per second (data sheets)
    "A100 40 GB": (1.555e12, 9.75e12, 156e12),
    "H100 SXM": (3.35e12, 33.5e12, 494e12),
}


class OurStepper:
    """The retraining of ``d2nas.retrain``, step after step."""

    def __init__(self, config: RetrainConfig, data: ImageData, device: torch.device) -> None:
        self.retraining = Retraining(
            config,
            Genotype.published(GENOTYPE),
            data,
            seed=0,
            device=device,
            augmentation=DataConfig(),
        )
        self.retraining.network.train()
        # From the middle of the training on, where half of drop-path is at work.
        self.taken = self.retraining.num_steps // 2

    def run(self, steps: int) -> None:
        """Take ``steps`` steps and wait until they are done."""
        with self.retraining.arithmetic.pinned():
            for _ in range(steps):
                train_step(self.retraining, self.taken % self.retraining.num_steps)
                self.taken += 1
        _wait_for(self.retraining.device)


class _Augmented(Dataset[Any]):
    """One image at a time, as the original codes prepare it."""

    def __init__(self, images: ImageSet, data: ImageData, cutout: int) -> None:
        self.images, self.cutout = images, cutout
        self.transform = v2.Compose(
            [
                v2.RandomCrop(data.image_size, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.images.images_NCHW[index].permute(1, 2, 0).numpy()
        image: Tensor = self.transform(Image.fromarray(pixels))
        size = image.shape[-1]
        top, left = (int(np.random.randint(size)) - self.cutout // 2 for _ in range(2))
        mask = torch.ones(size, size)
        mask[max(0, top) : top + self.cutout, max(0, left) : left + self.cutout] = 0.0
        return image * mask, self.images.labels_N[index]


class PlainStepper:
    """The same network and recipe, in the original codes' way."""

    def __init__(self, config: RetrainConfig, data: ImageData, device: torch.device) -> None:
        self.config, self.device = config, device
        self.arithmetic = arithmetic_of(config.precision, device)  # as ours
        self.network = PlainNetwork(
            Genotype.published(GENOTYPE),
            num_cells=config.num_cells,
            init_channels=config.init_channels,
            num_classes=len(data.class_names),
            auxiliary=has_auxiliary(config, data.image_size),
        ).to(device)
        self.network.train()
        load_compiler()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.loader = DataLoader(
            _Augmented(data.train, data, cutout_pixels(config.cutout, data.image_size)),  # type: ignore[arg-type]
            batch_size=config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=1,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        with _child_signals_kept():
            iter(self.loader)  # persistent workers: started here, used by every later epoch
        self.batches = self._batches()
        self.correct, self.loss = 0.0, 0.0

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def run(self, steps: int) -> None:
        """Take ``steps`` steps and wait until they are done."""
        with self.arithmetic.pinned():
            for _ in range(steps):
                self._step()
        _wait_for(self.device)

    def _step(self) -> None:
        images, labels = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        logits, auxiliary = self.network(images, self.config.drop_path / 2)
        loss = F.cross_entropy(logits, labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary_weight * F.cross_entropy(auxiliary, labels)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        # The original codes print these of every step's batch.
        self.loss = loss.item()
        self.correct = (logits.argmax(dim=1) == labels).float().mean().item()


@contextlib.contextmanager
def _child_signals_kept() -> Iterator[None]:
    """Undo PyTorch's handler for ended workers: it raises wherever the main thread happens to be,
    long after the measurement too.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def compare_training(
    config: RetrainConfig, pairs: int, *, steps: int, size: int = IMAGE_SIZE
) -> list[dict[str, Any]]:
    """Time ours against plain, per step and per image. Rows of ``pairs.compare``."""
    device = torch_device(config.device)
    data = made_images(EPOCH_STEPS * config.batch_size // 2, size)
    ours, plain = OurStepper(config, data, device), PlainStepper(config, data, device)
    units = {"step": steps, "image": steps * config.batch_size}
    return compare(
        TimedWork("d2nas", lambda: ours.run(steps), units),
        TimedWork("plain", lambda: plain.run(steps), units),
        pairs,
    )


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations read and write, if each fetches its inputs from memory and
    stores its results there: views are free, nothing is fused, nothing stays in a cache.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, Tensor):
                    self.bytes += leaf.numel() * leaf.element_size()
        return result


def estimate(config: RetrainConfig, size: int = IMAGE_SIZE) -> list[dict[str, Any]]:
    """Return what a GPU's data sheet allows: images per second, at most, by arithmetic and memory.

    An estimate (roofline), no measurement. Arithmetic: three times the forward's multiply-adds.
    Memory: the bytes of one real step on this machine's CPU, by ``Traffic``; half of it in half
    precision.
    """
    cpu = torch.device("cpu")
    data = made_images(config.batch_size, size)
    ours = OurStepper(config.model_copy(update={"precision": "fp32", "compile": False}), data, cpu)
    with Traffic() as traffic:
        ours.run(1)
    per_image = traffic.bytes / config.batch_size
    macs = count_cost(ours.retraining.network, (3, size, size)).macs
    rows = []
    for name, (bandwidth, plain_rate, half_rate) in ESTIMATED_GPUS.items():
        for precision, rate, traffic_bytes in (
            ("fp32", plain_rate, per_image),
            ("bf16", half_rate, per_image / 2),
        ):
            by_arithmetic, by_memory = rate / (3 * macs), bandwidth / traffic_bytes
            rows.append(
                {
                    "gpu": name,
                    "precision": precision,
                    "macs_per_image": 3 * macs,
                    "bytes_per_image": round(traffic_bytes),
                    "images_per_second": min(by_arithmetic, by_memory),
                    "bound": "memory" if by_memory < by_arithmetic else "arithmetic",
                    "estimated": True,
                }
            )
    return rows


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

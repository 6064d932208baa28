"""Training batches, each a function of seed, purpose and step; from memory or from disk.

Images in memory are augmented on their device, a batch at a time. Image files are decoded ahead of
time by worker processes, which also do what needs the whole picture: random crops and colours.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .config import DataConfig
from .data import Images, ImageSet, Normalizer, Part, augment_pixels, batch_indices, cutout
from .errors import D2NasError, OutOfMemoryError
from .image_decoding import Decoding, read_image, read_random_crop, strict_pillow
from .image_files import ImageFiles, channels_first, check_unchanged
from .parallel import ALONE, Ranks, local_size
from .randomness import generator
from .transfer import send

MAX_WORKERS = 8
_AHEAD = 4
"""Batches that each worker has ready or in hand."""


@dataclass(frozen=True, slots=True)
class Order:
    """Which images each step sees, and with what random numbers."""

    num_images: int
    batch_size: int
    seed: int
    purpose: str
    ranks: Ranks = ALONE

    @property
    def part(self) -> Part:
        """This rank's part of a batch; a batch is never larger than the set."""
        whole = min(self.batch_size, self.num_images)
        return Part(whole, self.ranks.part(whole))

    def indices(self, step: int) -> Tensor:
        """Return the int64 indices of this rank's images of a step."""
        indices = batch_indices(
            self.num_images, self.batch_size, seed=self.seed, purpose=self.purpose, step=step
        )
        return indices[self.part.own]

    def generator(self, what: str, step: int) -> torch.Generator:
        """Return the source of a step's random numbers for ``what``."""
        return generator(self.seed, f"{self.purpose}-{what}", step)


class Batches:
    """The augmented batches of one image set."""

    def __init__(
        self,
        images: Images,
        normalizer: Normalizer,
        augmentation: DataConfig,
        batch_size: int,
        *,
        cutout_size: int,
        seed: int,
        purpose: str,
        ranks: Ranks = ALONE,
    ) -> None:
        self.images, self.normalizer, self.augmentation = images, normalizer, augmentation
        self.cutout_size = cutout_size
        self.order = Order(len(images), batch_size, seed, purpose, ranks)
        self._stream = None
        if isinstance(images, ImageFiles):
            self._stream = _FileStream(images, self.order, augmentation)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the normalised images (N, C, H, W), channels-last, and the labels (N,): this
        rank's part of the step's batch.

        Raises ``ConfigError`` naming an image file that cannot be decoded, ``StorageError``, and
        ``OutOfMemoryError`` when a worker process was killed.
        """
        pixels, labels = self._pixels(step)
        draws = self.order.generator("augmentation", step)
        pixels = augment_pixels(
            pixels,
            crop_padding=self.augmentation.crop_padding,
            flip_probability=0.5 if self.augmentation.flip else 0.0,
            generator=draws,
            part=self.order.part,
        )
        images = self.normalizer(pixels)
        if self.cutout_size:
            images = cutout(images, size=self.cutout_size, generator=draws, part=self.order.part)
        return channels_last(images), labels

    def blank(self) -> tuple[Tensor, Tensor]:
        """Return images and labels of this rank's shape of batch that are all zeros; reads none."""
        own, device = self.order.part.own, self.images.labels_N.device
        images = torch.zeros((own.stop - own.start, *self._image_shape()), device=device)
        return channels_last(images), torch.zeros(len(images), dtype=torch.int64, device=device)

    def _image_shape(self) -> tuple[int, int, int]:
        if isinstance(self.images, ImageSet):
            channels, height, width = self.images.images_NCHW.shape[1:]
            return channels, height, width
        decoding = self.images.decoding
        return decoding.channels, decoding.size, decoding.size

    def _pixels(self, step: int) -> tuple[Tensor, Tensor]:
        indices = send(self.order.indices(step), self.images.labels_N.device)
        labels = self.images.labels_N[indices]
        if isinstance(self.images, ImageSet):
            return self.images.images_NCHW[indices], labels
        assert self._stream is not None
        return self._stream.read(step).to(labels.device, non_blocking=True), labels


def channels_last(images_NCHW: Tensor) -> Tensor:
    """Return the images, or a convolution's weights, with their channels next to each other.

    With one channel, or one pixel, both layouts are the same bytes, and PyTorch takes the strides
    of the other one, in which all that follows would be computed: here they are set as meant.
    """
    images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = images_NCHW.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return images_NCHW.as_strided(images_NCHW.shape, strides)


class _Request(NamedTuple):
    """One image to decode; the seed decides its crop and colours."""

    path: Path
    seed: int
    state: tuple[int, ...] | None
    """Of the file that was hashed when the training began."""


class _Failure(NamedTuple):
    """An error on its way from a worker: exceptions lose their hint when they are pickled."""

    kind: type[D2NasError]
    message: str
    hint: str | None


@dataclass(frozen=True)
class _Decoder(Dataset[Any]):
    """What a worker process does with a batch of requests; holds no list of files."""

    decoding: Decoding
    random_crop: bool
    color_jitter: float

    def __getitems__(self, requests: list[_Request]) -> "Tensor | _Failure":
        try:
            with strict_pillow():
                return torch.cat([self._decode(request) for request in requests])
        except D2NasError as error:
            return _Failure(type(error), str(error), error.hint)

    def _decode(self, request: _Request) -> Tensor:
        check_unchanged(request.path, request.state)
        if self.random_crop:
            pixels = read_random_crop(
                request.path,
                self.decoding,
                color_jitter=self.color_jitter,
                seed=request.seed,
            )
        else:
            pixels, _ = read_image(request.path, self.decoding)
        return channels_first(pixels[None])


class _FileStream:
    """The decoded batches of one set of files, in the order of their steps.

    Steps are asked for one after the other; any other step restarts the workers there.
    """

    def __init__(self, files: ImageFiles, order: Order, augmentation: DataConfig) -> None:
        self._files, self._order, self._augmentation = files, order, augmentation
        self._iterator: Iterator[Tensor | _Failure] | None = None
        self._next = -1

    def read(self, step: int) -> Tensor:
        """Return uint8 images N x channels x size x size, pinned where they go to a GPU."""
        if self._iterator is None or step != self._next:
            with child_signals_kept():
                self._iterator = iter(self._loader(step))
        try:
            pixels = next(self._iterator)
        except (RuntimeError, OSError, EOFError) as error:
            # What cannot be read arrives as a value: an OSError is of the way between processes.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OutOfMemoryError(
                f"a process that reads images ended: {reason}",
                hint="memory (or /dev/shm) is the usual reason: lower data.workers, 0 uses none",
            ) from None
        if isinstance(pixels, _Failure):
            raise pixels.kind(pixels.message, hint=pixels.hint)
        self._next = step + 1
        return pixels

    def _loader(self, first_step: int) -> DataLoader[Any]:
        augmentation, files = self._augmentation, self._files
        workers = augmentation.workers
        if workers is None:
            workers = min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // local_size()))
        return DataLoader(
            _Decoder(files.decoding, augmentation.crop == "resized", augmentation.color_jitter),
            batch_sampler=_Requests(files, self._order, first_step),
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            collate_fn=_as_they_are,
            pin_memory=files.labels_N.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # else the workers' seeds come from the global one
        )


@dataclass(frozen=True)
class _Requests:
    """The requests of every step from ``first_step`` on, without end."""

    files: ImageFiles
    order: Order
    first_step: int

    def __iter__(self) -> Iterator[list[_Request]]:
        for step in itertools.count(self.first_step):
            indices = self.order.indices(step).tolist()
            draws = self.order.generator("decoding", step)
            part = self.order.part
            seeds = torch.randint(2**62, (part.num_whole,), generator=draws)[part.own].tolist()
            yield [
                _Request(self.files.root / self.files.paths[index], seed, self.files.state(index))
                for index, seed in zip(indices, seeds, strict=True)
            ]


@contextlib.contextmanager
def child_signals_kept() -> Iterator[None]:
    """Undo PyTorch's handler for ended workers: it raises wherever the main thread happens to be,
    in the middle of a commit too. A dead worker is noticed when its batch does not come.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _as_they_are(decoded: Any) -> Any:
    return decoded


def _leave_signals_to_the_parent(_worker: int) -> None:
    # What stops the parent may reach the whole process group. The parent finishes its step and
    # saves; until then it needs its workers.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != os.getppid():
        pass
    os._exit(0)

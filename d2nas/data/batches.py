"""Training batches, each a function of seed, purpose and step; from memory or from disk.

Images in memory are augmented on their device, a batch at a time. Image files are decoded ahead of
time by worker processes, which also do what needs the whole picture: random crops and colours.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import DataConfig
from ..cpus import usable_cpus
from ..devices import send
from ..errors import ConfigError
from ..parallel import ALONE, Ranks, local_size
from ..randomness import generator
from .augmentation import (
    Part,
    augment_pixels,
    cutout,
    random_erasing,
    read_random_crop,
    shift_pixels,
)
from .decoding import Decoding, read_image, strict_pillow
from .faults import DAMAGED_HINT
from .files import ImageFiles, channels_first, check_unchanged
from .images import Images, ImageSet, Normalizer
from .splits import epoch_order
from .workers import ImageWorkers

MAX_WORKERS = 8


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch; one where the set is smaller than a batch."""
    if num_images < 1 or batch_size < 1:
        raise ValueError(f"no batches of {batch_size} in {num_images} images")
    return max(1, num_images // batch_size)


# Permuting a million images takes as long as a step. Batches are views of it: never written to.
_epoch_order = lru_cache(maxsize=4)(epoch_order)


def batch_indices(
    num_images: int, batch_size: int, *, seed: int, purpose: str, step: int
) -> Tensor:
    """Return the int64 indices of the batch of one step, counted over all epochs from 0.

    Within an epoch no image comes twice; the incomplete last batch is left out. A batch larger
    than the set is the whole set.
    """
    epoch, position = divmod(step, steps_per_epoch(num_images, batch_size))
    order = _epoch_order(num_images, seed=seed, purpose=purpose, epoch=epoch)
    return order[position * batch_size : (position + 1) * batch_size]


@dataclass(frozen=True, slots=True)
class Order:
    """Order of the images: those of each step, with their random numbers."""

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
        trivial: bool = False,
        erasing: float = 0.0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.images, self.normalizer, self.augmentation = images, normalizer, augmentation
        self.cutout_size, self.trivial, self.erasing = cutout_size, trivial, erasing
        self.order = Order(len(images), batch_size, seed, purpose, ranks)
        self._stream = None
        if isinstance(images, ImageFiles):
            self._stream = _FileStream(images, self.order, augmentation)
        self.stalled: Callable[[float], None] = lambda _seconds: None
        """Called now and then while a batch is waited for, with the seconds so far; may raise."""

    @property
    def augments(self) -> bool:
        """Whether an image of a batch may differ from the one in the set."""
        given = self.augmentation
        shifts = shift_pixels(given.crop_padding, self._image_shape()[-1]) > 0
        decoded = given.crop == "resized" or given.color_jitter > 0.0
        changed = self.cutout_size > 0 or self.trivial or self.erasing > 0.0
        return shifts or given.flip or decoded or changed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the normalised images (N, C, H, W), channels-last, and the labels (N,): this
        rank's part of the step's batch.

        Raises ``ConfigError`` naming an image file that cannot be decoded, ``StorageError``, and
        ``OutOfMemoryError`` when a worker process was killed or cannot be started.
        """
        pixels, labels = self._pixels(step)
        draws = self.order.generator("augmentation", step)
        pixels = augment_pixels(
            pixels,
            crop_padding=shift_pixels(self.augmentation.crop_padding, pixels.shape[-1]),
            flip_probability=0.5 if self.augmentation.flip else 0.0,
            generator=draws,
            part=self.order.part,
        )
        part = self.order.part
        if self.trivial:
            from .trivial_augment import trivial_augment  # torchvision's take a while to import

            own = self.order.generator("trivial-augment", step)
            pixels = trivial_augment(pixels, generator=own, part=part)
        images = self.normalizer(pixels)
        if self.cutout_size:
            images = cutout(images, size=self.cutout_size, generator=draws, part=part)
        if self.erasing:
            own = self.order.generator("erasing", step)
            images = random_erasing(images, probability=self.erasing, generator=own, part=part)
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
        return self._stream.read(step, self.stalled).to(labels.device, non_blocking=True), labels


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


@dataclass(frozen=True)
class _Decoder:
    """Decoder of a batch of requests, in a worker too; holds no list of files."""

    decoding: Decoding
    random_crop: bool
    color_jitter: float

    def __call__(self, requests: list[_Request], out: NDArray[np.uint8]) -> None:
        """Decode to ``out``, uint8 N x channels x size x size."""
        with strict_pillow():
            for request, pixels in zip(requests, out, strict=True):
                pixels[...] = self._decode(request)

    def _decode(self, request: _Request) -> NDArray[np.uint8]:
        check_unchanged(request.path, request.state)
        try:
            if self.random_crop:
                pixels = read_random_crop(
                    request.path,
                    self.decoding,
                    color_jitter=self.color_jitter,
                    seed=request.seed,
                )
            else:
                pixels, _ = read_image(request.path, self.decoding)
        except ConfigError as error:
            raise ConfigError(str(error), hint=DAMAGED_HINT) from error
        return channels_first(pixels[None])[0].numpy()


class _FileStream:
    """The decoded batches of one set of files, in the order of their steps.

    Steps are asked for one after the other; any other step restarts the workers there.
    """

    def __init__(self, files: ImageFiles, order: Order, augmentation: DataConfig) -> None:
        self._files, self._order = files, order
        own, decoding = order.part.own, files.decoding
        self._shape = (own.stop - own.start, decoding.channels, decoding.size, decoding.size)
        self._decode = _Decoder(decoding, augmentation.crop == "resized", augmentation.color_jitter)
        workers = augmentation.workers
        if workers is None:
            workers = min(MAX_WORKERS, max(1, usable_cpus() // local_size()))
        self._num_workers = workers
        self._requests: Iterator[list[_Request]] = iter(())
        self._workers: ImageWorkers | None = None
        self._next: int | None = None

    def read(self, step: int, stalled: Callable[[float], None]) -> Tensor:
        """Return uint8 images N x channels x size x size, pinned where they go to a GPU."""
        if step != self._next:
            self._restart(step)
        self._next = None  # what fails is started anew
        pinned = self._files.labels_N.device.type == "cuda"
        pixels = torch.empty(self._shape, dtype=torch.uint8, pin_memory=pinned)
        if self._workers is not None:
            self._workers.next(pixels, stalled)
        else:
            self._decode(next(self._requests), pixels.numpy())
        self._next = step + 1
        return pixels

    def _restart(self, step: int) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self._requests = iter(_Requests(self._files, self._order, step))
        if self._num_workers:
            self._workers = ImageWorkers(
                self._decode, self._requests, self._shape, self._num_workers
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

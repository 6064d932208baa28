"""Read a data set's images from where they lie into one uint8 tensor, before any split.

Every source becomes a ``Pool``: labels and the published parts at once, pixels on request, in the
order asked for. So a split needs no second copy of the images.
"""

import contextlib
import gzip
import hashlib
import http.client
import os
import socket
import struct
import sys
import tempfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, StorageError
from .decoding import Decoding, check_decodes, fit_image, is_grey, read_each, strict_pillow
from .faults import Faults
from .files import ImageFiles, channels_first, file_states, read_files
from .sizes import ImageSize, folder_image_size
from .sources import (
    PUBLISHED,
    DigestCache,
    FolderListing,
    check_md5_files,
    content_digest,
    damaged_file,
    data_root,
    find_published,
    how_to_get,
    listing_digest,
    not_there,
    published_digest,
    shown,
    usable_images,
)

MAX_TENSOR_BYTES = 8 * 2**30
TRAIN, VALIDATION, TEST = range(3)

# The largest official file has 47 MB; what is cut off here fails its checksum.
_MAX_UNZIPPED_BYTES = 2**26
_NETWORK_TIMEOUT_SECONDS = 30.0
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    RuntimeError,  # what torchvision raises for a failed or damaged download
)


@dataclass(frozen=True, eq=False)
class Pool:
    """All labelled images of a data set.

    ``parts`` holds ``TRAIN``, ``VALIDATION`` or ``TEST`` per image, as published or as the
    folders say. ``read(order)`` returns the images of those indices, uint8 N x channels x size x
    size, and the digest of the content; ``order`` must name each image once.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Tensor
    parts: Tensor
    image_size: int
    channels: int
    read: Callable[[Tensor], tuple[Tensor, str]]
    files: ImageFiles | None = None
    """All images, where they are to be streamed: ``read`` is not for these."""
    sizes: ImageSize | None = None
    """What a folder's pictures are, and what a person should know of them."""


def open_pool(config: DataConfig, *, default_root: Path, cache: DigestCache | None = None) -> Pool:
    """Open the data set that ``config`` names, downloading a published one that is not there.

    ``cache`` spares decoding all images of a folder where damaged ones are skipped.

    Raises ``ConfigError`` for data that cannot be used or fetched, ``DamagedArtifactError`` for a
    published file with the wrong checksum, ``StorageError`` when reading or writing fails.
    """
    if config.name == "digits":
        return _digits(config, default_root)
    if config.name in PUBLISHED:
        return _published(config, default_root)
    return _folder(config, usable_images(config, default_root, cache=cache))


def _digits(config: DataConfig, default_root: Path) -> Pool:
    from sklearn.datasets import load_digits

    digest = content_digest(config, default_root=default_root)
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    class_names = tuple(str(name) for name in digits.target_names)
    return _array_pool(config, class_names, images, labels, torch.zeros_like(labels), digest)


def _array_pool(
    config: DataConfig,
    class_names: tuple[str, ...],
    images: NDArray[np.uint8],
    labels: Tensor,
    parts: Tensor,
    digest: str,
) -> Pool:
    """Make a pool of square uint8 images in memory: N x size x size, or N x size x size x 3."""
    own_size, own_channels = images.shape[1], 1 if images.ndim == 3 else 3
    size, channels = config.image_size or own_size, config.channels or own_channels

    def read(order: Tensor) -> tuple[Tensor, str]:
        chosen = images[order.numpy()]
        if (size, channels, config.crop_fraction) != (own_size, own_channels, 1.0):
            decoding = _decoding(config, size, channels)
            chosen = np.stack([fit_image(Image.fromarray(one), decoding) for one in chosen])
        return channels_first(chosen), digest

    return Pool(config.name, class_names, labels, parts, size, channels, read)


def _published(config: DataConfig, default_root: Path) -> Pool:
    root = data_root(config, default_root)
    files = find_published(config.name, root)
    if len(files) < len(PUBLISHED[config.name]):
        if config.root is not None:
            # A folder of the user's is read, never filled: it may be misspelt, or not theirs.
            raise not_there(config.name, root, default_root)
        _download(config.name, root)
        files = find_published(config.name, root)
    missing = [file.path for file in PUBLISHED[config.name] if file.path not in files]
    if missing:
        raise ConfigError(
            f"{config.name}: {missing[0]} is not under {shown(root)}", hint=how_to_get(config.name)
        )
    if config.name == "fashion-mnist":
        class_names, parts = _read_fashion_mnist(files)
    else:
        check_md5_files(config.name, files)
        class_names, parts = _read_with_torchvision(config.name, root)
    (train_images, train_labels), (test_images, test_labels) = parts
    labels = torch.from_numpy(np.concatenate([train_labels, test_labels]).astype(np.int64))
    part_of = torch.full_like(labels, TRAIN)
    part_of[len(train_labels) :] = TEST
    images = np.concatenate([train_images, test_images])
    digest = published_digest(config.name)
    return _array_pool(config, class_names, images, labels, part_of, digest)


def _read_with_torchvision(name: str, root: Path) -> tuple[tuple[str, ...], list[Any]]:
    """Return class names and (images N x H x W x 3, labels) of train and test.

    CIFAR's files are pickles, which run code when read: call ``check_md5_files`` first.
    """
    from torchvision import datasets

    if name == "svhn":
        splits = [datasets.SVHN(root, split) for split in ("train", "test")]
        parts = [(split.data.transpose(0, 2, 3, 1), split.labels) for split in splits]
        return tuple(str(digit) for digit in range(10)), parts
    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    halves = [reader(root, train=train) for train in (True, False)]
    return tuple(halves[0].classes), [(half.data, half.targets) for half in halves]


def _read_fashion_mnist(files: dict[str, Path]) -> tuple[tuple[str, ...], list[Any]]:
    from torchvision import datasets

    contents = {}
    for path, checksum in PUBLISHED["fashion-mnist"]:
        content = _unzipped(files[path])
        if checksum != f"sha256-unzipped:{hashlib.sha256(content).hexdigest()}":
            raise damaged_file("fashion-mnist", files[path])
        contents[path.rpartition("/")[2]] = content
    parts = [
        (
            _idx_values(contents[f"{part}-images-idx3-ubyte.gz"]),
            _idx_values(contents[f"{part}-labels-idx1-ubyte.gz"]),
        )
        for part in ("train", "t10k")
    ]
    return tuple(datasets.FashionMNIST.classes), parts


def _unzipped(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(_MAX_UNZIPPED_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise damaged_file("fashion-mnist", path) from None
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error


def _idx_values(content: bytes) -> NDArray[np.uint8]:
    """Return the bytes of an IDX file as an array: lengths are big-endian, their number byte 3."""
    num_lengths = content[3]
    lengths = struct.unpack_from(f">{num_lengths}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_lengths).reshape(lengths)


def _download(name: str, root: Path) -> None:
    """Fetch the official files with torchvision; they appear in ``root`` complete or not at all."""
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch,
            contextlib.redirect_stdout(sys.stderr),
            _network_timeout(),
        ):
            if name == "svhn":
                for split in ("train", "test"):
                    datasets.SVHN(scratch, split, download=True)
            else:
                readers = {
                    "fashion-mnist": datasets.FashionMNIST,
                    "cifar10": datasets.CIFAR10,
                    "cifar100": datasets.CIFAR100,
                }
                readers[name](scratch, download=True)
            for path, file in find_published(name, Path(scratch)).items():
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except _NETWORK_ERRORS as error:
        raise ConfigError(
            f"{name}: not under {shown(root)}, and the download failed ({type(error).__name__})",
            hint=how_to_get(name),
        ) from error
    except OSError as error:
        raise StorageError(f"{shown(root)}: {error.strerror or error}") from error


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    # torchvision sets none: a host that never answers would stop the run for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _folder(config: DataConfig, listing: FolderListing) -> Pool:
    paths = [file.path for file in listing.files]
    try:
        sizes = folder_image_size(config, listing)
    except ConfigError:  # none that was looked at can be read
        _refuse_damaged(listing.root, paths, is_grey)
        raise
    size = sizes.size
    if config.stream == "never":
        check_fits(config.name, len(paths), config.channels or 1, size)
    try:
        if sizes.pictures is not None and sizes.pictures.problem is not None:
            raise sizes.pictures.problem
        with strict_pillow():
            channels = config.channels or (
                1 if all(is_grey(listing.root / path) for path in paths) else 3
            )
    except ConfigError:
        # Not this one alone: all, but of what is streamed only those whose header says so.
        streamed = streams(config, _num_bytes(len(paths), 3, size))
        _refuse_damaged(listing.root, paths, is_grey if streamed else check_decodes)
        raise
    labels = torch.tensor([file.label for file in listing.files])
    parts = torch.full_like(labels, TRAIN)
    parts[len(listing.train) :] = VALIDATION
    parts[len(listing.train) + len(listing.validation) :] = TEST
    decoding = _decoding(config, size, channels)
    files = ImageFiles(listing.root, tuple(paths), labels, decoding)
    pool = Pool(
        name=config.name,
        class_names=listing.class_names,
        labels=labels,
        parts=parts,
        image_size=size,
        channels=channels,
        read=lambda order: _read_folder(files, order),
        sizes=sizes,
    )
    if streams(config, _num_bytes(len(paths), channels, size)):
        states = file_states(listing.root, paths)
        return replace(pool, read=_unread, files=replace(files, states=states))
    check_fits(config.name, len(paths), channels, size)
    return pool


def _refuse_damaged(root: Path, paths: Sequence[str], check: Callable[[Path], object]) -> None:
    """Raise ``ConfigError`` naming all images for which ``check`` raises it."""
    faults = Faults(root)
    with strict_pillow():
        for path, result in zip(paths, read_each(root, paths, check), strict=True):
            if isinstance(result, ConfigError):
                faults.add_damaged(path, result)
    faults.raise_any()


def streams(config: DataConfig, num_bytes: int) -> bool:
    """Whether images stay on disk that would take so many bytes in memory."""
    if config.name not in ("folder", "imagenet") or config.stream == "never":
        return False
    if config.stream == "always" or config.name == "imagenet":
        return True
    return config.crop == "resized" or config.color_jitter > 0 or num_bytes > MAX_TENSOR_BYTES


def _unread(order: Tensor) -> tuple[Tensor, str]:
    raise ValueError(f"{len(order)} images are to be streamed, not read at once")


def _decoding(config: DataConfig, size: int, channels: int) -> Decoding:
    return Decoding(size, channels, config.fit, config.crop_fraction)


def _num_bytes(num_images: int, channels: int, size: int) -> int:
    return num_images * channels * size * size


def check_fits(name: str, num_images: int, channels: int, size: int) -> None:
    """Raise ``ConfigError`` for a set that is too big for one tensor (``MAX_TENSOR_BYTES``)."""
    needed = _num_bytes(num_images, channels, size)
    if needed > MAX_TENSOR_BYTES:
        raise ConfigError(
            f"{name}: {num_images} images of {channels} x {size} x {size} are "
            f"{needed / 2**30:.1f} GiB, at most {MAX_TENSOR_BYTES / 2**30:.0f} fit in memory",
            hint="lower data.image_size, or use fewer images; image files can be streamed",
        )


def _read_folder(files: ImageFiles, order: Tensor) -> tuple[Tensor, str]:
    paths = files.select(order).paths
    images, hashes = read_files(files.root, paths, files.decoding)
    return images, listing_digest(zip(paths, hashes, strict=True))

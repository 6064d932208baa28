"""Read a data set's images from where they lie into one uint8 tensor, before any split.

Every source becomes a ``Pool``: labels and the published parts at once, pixels on request, in the
order asked for. So a split needs no second copy of the images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..config.registry import data_sets
from ..errors import ConfigError
from .decoding import Decoding, check_decodes, fit_image, is_grey, read_each, strict_pillow
from .faults import Faults
from .files import ImageFiles, channels_first, file_states, read_files
from .folders import FolderListing
from .official import official_files
from .sets import Arrays, DataSet
from .sizes import ImageSize, folder_image_size
from .sources import DigestCache, arrays_digest, data_root, list_usable_images, listing_digest

MAX_TENSOR_BYTES = 8 * 2**30
TRAIN, VALIDATION, TEST = range(3)


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
    paths: tuple[str, ...] = ()
    """Of the files of all images, where there are files."""
    sizes: ImageSize | None = None
    """What a folder's pictures are, and what a person should know of them."""


def open_pool(config: DataConfig, *, default_root: Path, cache: DigestCache | None = None) -> Pool:
    """Open the data set that ``config`` names, downloading a published one that is not there.

    ``cache`` spares decoding all images of a folder where damaged ones are skipped.

    Raises ``ConfigError`` for data that cannot be used or fetched, ``DamagedArtifactError`` for a
    published file with the wrong checksum, ``StorageError`` when reading or writing fails.
    """
    data_set = data_sets.find(config.name)
    if data_set.read is None:
        return _folder(config, list_usable_images(config, default_root, cache=cache))
    root = data_root(config, default_root)
    is_users = config.root is not None
    files = official_files(data_set, root, is_users=is_users, default_root=default_root)
    arrays = _read_arrays(data_set, files)
    return _array_pool(config, data_set, arrays)


def _read_arrays(data_set: DataSet, files: Mapping[str, Path]) -> Arrays:
    assert data_set.read is not None
    try:
        arrays = data_set.read(files)
    except SystemExit as error:
        raise ConfigError(f"{data_set.name}: its reader exits with {error.code}") from error
    if not isinstance(arrays, Arrays):
        raise ConfigError(f"{data_set.name}: its reader returns {type(arrays).__name__}, no Arrays")
    names = arrays.class_names
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{data_set.name}: class names must be texts, not {names[:3]!r}")
    for what, values in (("images", arrays.images), ("labels", arrays.labels)):
        if not isinstance(values, np.ndarray):
            raise ConfigError(f"{data_set.name}: {what} are {type(values).__name__}, no array")
    _check_facts(data_set, arrays)
    return arrays


def _check_facts(data_set: DataSet, arrays: Arrays) -> None:
    """Raise ``ConfigError`` where arrays are not what their data set's record says."""
    size, num_classes = data_set.size or 0, data_set.num_classes or 0
    num = (data_set.num_train or 0) + (data_set.num_test or 0)
    shape = (num, size, size) if data_set.channels == 1 else (num, size, size, 3)
    labels = arrays.labels
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"{data_set.name}: labels are {labels.dtype}, not whole numbers")
    for fact, said, found in (
        ("shape of images", shape, arrays.images.shape),
        ("type of pixels", "uint8", str(arrays.images.dtype)),
        ("labels", (num,), labels.shape),
        ("classes", num_classes, len(set(arrays.class_names))),
    ):
        if said != found:
            raise ConfigError(f"{data_set.name}: {fact}: {found}, not {said} as its record says")
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise ConfigError(
            f"{data_set.name}: labels are {labels.min()} to {labels.max()}, "
            f"classes 0 to {num_classes - 1}"
        )


def _array_pool(config: DataConfig, data_set: DataSet, arrays: Arrays) -> Pool:
    images, own = arrays.images, (data_set.size or 0, data_set.channels or 1)
    size, channels = config.image_size or own[0], config.channels or own[1]
    labels = torch.from_numpy(arrays.labels.astype(np.int64))
    parts = torch.full_like(labels, TRAIN)
    parts[data_set.num_train :] = TEST
    digest = arrays_digest(data_set, arrays)

    def read(order: Tensor) -> tuple[Tensor, str]:
        chosen = images[order.numpy()]
        if (size, channels) != own or config.crop_fraction != 1.0:
            decoding = _decoding(config, size, channels)
            chosen = np.stack([fit_image(Image.fromarray(one), decoding) for one in chosen])
        return channels_first(chosen), digest

    return Pool(config.name, arrays.class_names, labels, parts, size, channels, read)


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
        read=lambda order: _read_folder(files, listing.content_names(), order),
        paths=files.paths,
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
    data_set = data_sets.find(config.name)
    if not data_set.is_folder or config.stream == "never":
        return False
    if config.stream == "always" or data_set.always_streams:
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


def _read_folder(
    files: ImageFiles, content_names: Sequence[str], order: Tensor
) -> tuple[Tensor, str]:
    images, hashes = read_files(files.root, files.select(order).paths, files.decoding)
    names = [content_names[index] for index in order.tolist()]
    return images, listing_digest(zip(names, hashes, strict=True))

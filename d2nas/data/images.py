"""Data sets in memory: split, measured and normalised.

Nothing here keeps a position or a generator: all is a function of (seed, purpose, step).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..config import DataConfig, build_config
from ..errors import ConfigError
from .duplicates import Compared, duplicate_lines
from .files import ImageFiles
from .folders import MIN_TRAIN_IMAGES
from .readers import TEST, TRAIN, Pool, check_fits, open_pool
from .sizes import ImageSize
from .sources import DigestCache, content_digest, content_hashes, data_folder, listing_digest
from .splits import Split, epoch_order, split_pool
from .torch_datasets import LabelledImages, collected, shape_of

MAX_IMBALANCE = 5
_MAX_CLASSES_LISTED = 20
_STATISTICS_CHUNK = 256
_STATISTICS_IMAGES = 4096
_STREAMED = (
    f"streamed from files: mean and deviation are those of up to {_STATISTICS_IMAGES} training "
    "images, and training and test images are compared by file, not by pixel"
)
_RESIZING = {
    "crop": "shorter side to round(image_size / crop_fraction), bilinear with antialiasing, then "
    "centre crop",
    "pad": "longer side down to image_size if it is larger, bilinear with antialiasing, then "
    "centred on black",
}


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images: uint8 ``N x channels x height x width`` and int64 ``N``."""

    images_NCHW: Tensor  # noqa: N815
    labels_N: Tensor  # noqa: N815
    paths: tuple[str, ...] = ()
    """Of the files that they were read from; empty where there are none."""

    def __post_init__(self) -> None:
        if self.images_NCHW.dtype != torch.uint8 or self.images_NCHW.ndim != 4:
            raise ValueError("images must be a uint8 tensor N x C x H x W")
        if self.labels_N.dtype != torch.int64 or self.labels_N.shape != (len(self.images_NCHW),):
            raise ValueError("labels must be an int64 tensor with one label per image")

    def __repr__(self) -> str:
        return f"ImageSet({' x '.join(map(str, self.images_NCHW.shape))})"

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set on ``device``; not copied if it is there already."""
        return ImageSet(self.images_NCHW.to(device), self.labels_N.to(device), self.paths)

    def pixels(self, part: slice) -> Tensor:
        """Return a part of the images, uint8 on their device."""
        return self.images_NCHW[part]

    def select(self, indices: Tensor) -> "ImageSet":
        """Return a copy of the images at ``indices`` (int64, any device)."""
        indices = indices.to(self.labels_N.device)
        paths = tuple(self.paths[index] for index in indices.tolist()) if self.paths else ()
        return ImageSet(self.images_NCHW[indices], self.labels_N[indices], paths)


Images = ImageSet | ImageFiles
"""Images in memory or on disk: both can be counted, moved, selected from, and read in parts."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """One data set, split and described.

    ``train`` is every image that is not test, or fewer where the data is reduced; ``weight_half``
    and ``arch_half`` are its two parts, which the weight step and the architecture step see (views
    of ``train``, which lists one after the other). ``test`` is what accuracy is measured on: the
    data set's test images, or held-out training images. ``mean`` and ``std`` are per channel, of
    ``train`` alone, for values 0 to 1. ``digest`` is that of ``sources.content_digest``: of
    the whole data set, whatever was left out.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    weight_half: Images
    arch_half: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    image_size: int
    channels: int
    evaluation: Literal["test", "held-out"] = "test"
    """What ``test`` is."""
    fit: Literal["crop", "pad"] = "crop"
    """How pictures came to ``image_size``."""
    crop_fraction: float = 1.0
    """Part of the shorter side that was kept."""
    sizes: ImageSize | None = None
    """What a folder's pictures are, and how they come to ``image_size``."""
    repeated: tuple[str, ...] | None = None
    """What is told of images that are there twice, by file; None: pixels are compared for it."""

    def __repr__(self) -> str:
        return (
            f"ImageData({self.name!r}: {len(self.class_names)} classes, {len(self.train)} training "
            f"and {len(self.test)} {self.evaluation} images, {self.channels} x {self.image_size} x "
            f"{self.image_size})"
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: LabelledImages,
        test: LabelledImages | None = None,
        *,
        class_names: Sequence[str] | None = None,
        config: DataConfig | None = None,
        seed: int = 0,
    ) -> "ImageData":
        """Return the images of a map-style ``torch.utils.data.Dataset`` as a data set.

        Its items are (image, label): uint8 pixels, a tensor channels x size x size or a picture of
        Pillow's, grey or RGB, all of one size and square; labels are 0 to classes - 1. ``test``
        holds the test images; without it ``config.test_fraction`` of each class are. Names of
        classes are ``class_names``, else ``dataset.classes``, else the numbers. Images are
        augmented and normalised by d2nas: leave both out of the data set's transforms. For a whole
        run, and for pictures of several sizes, see ``write_dataset``. Raises ``ConfigError``.
        """
        config = config or DataConfig()
        images, labels = collected(dataset)
        parts = torch.full((len(labels),), TRAIN)
        if test is not None:
            more, more_labels = collected(test)
            if more.shape[1:] != images.shape[1:]:
                raise ConfigError(
                    f"test images are {shape_of(more)}, training images {shape_of(images)}"
                )
            images, labels = torch.cat((images, more)), torch.cat((labels, more_labels))
            parts = torch.cat((parts, torch.full((len(more),), TEST)))
        given = class_names or getattr(dataset, "classes", None)
        least, most = int(labels.min()), int(labels.max())
        names = tuple(map(str, given or range(min(most + 1, len(labels)))))
        if least < 0 or most >= len(names):
            raise ConfigError(f"labels are {least} to {most}, classes 0 to {len(names) - 1}")
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                f"two classes or more of different names are needed, not {names!r:.200}"
            )
        trained = labels[parts == TRAIN].bincount(minlength=len(names))
        if int(trained.min()) < MIN_TRAIN_IMAGES:
            raise ConfigError(
                f"class {names[int(trained.argmin())]!r:.50} has {int(trained.min())} images, at "
                f"least {MIN_TRAIN_IMAGES} are needed"
            )
        if config.image_size not in (None, images.shape[-1]):
            raise ConfigError(
                f"data.image_size is {config.image_size}, the images have {images.shape[-1]}",
                hint="resize them in the data set's transforms",
            )
        digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        pool = Pool(
            type(dataset).__name__,
            names,
            labels,
            parts,
            images.shape[-1],
            images.shape[1],
            lambda order: (images[order], digest),
        )
        found = _split_and_measured(pool, config, seed)
        return replace(found, name=pool.name, digest=digest)

    def class_counts(self) -> dict[str, int]:
        """Return the number of training images per class, in label order."""
        return dict(zip(self.class_names, self._counts(self.train), strict=True))

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for whoever trusts a result on this data; one line each."""
        lines = [] if self.sizes is None else list(self.sizes.notes())
        counts = self.class_counts()
        smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[largest] > MAX_IMBALANCE * counts[smallest]:
            lines.append(
                f"imbalanced: class {largest} has {counts[largest]} training images, "
                f"class {smallest} {counts[smallest]}"
            )
        untested = [
            name
            for name, count in zip(self.class_names, self._counts(self.test), strict=True)
            if not count
        ]
        if untested:
            lines.append(
                f"classes without {self.evaluation} images: {len(untested)}, first {untested[0]}"
            )
        return (*lines, *(self._repeated_pixels() if self.repeated is None else self.repeated))

    def summary_lines(self) -> list[str]:
        """Describe the data for a person: sizes, splits, images per class; ``warnings`` apart."""
        counts = self.class_counts()
        size = self.image_size
        if len(counts) > _MAX_CLASSES_LISTED:
            per_class = f"{min(counts.values())} to {max(counts.values())}"
        else:
            per_class = ", ".join(f"{name} {count}" for name, count in counts.items())
        return [
            f"{self.name}: {len(counts)} classes, {self.channels} x {size} x {size} pixels",
            f"{len(self.train)} training images (in a search {len(self.weight_half)} for weights, "
            f"{len(self.arch_half)} for the architecture), "
            f"{len(self.test)} {self.evaluation} images",
            f"training images per class: {per_class}",
            *([line] if self.sizes and (line := self.sizes.line()) else []),
            *([_STREAMED] if isinstance(self.train, ImageFiles) else []),
        ]

    def _repeated_pixels(self) -> list[str]:
        if isinstance(self.train, ImageFiles) or isinstance(self.test, ImageFiles):
            return []  # to compare their pixels would be to read them all
        train, test = (
            Compared(_image_hashes(part), part.labels_N.tolist(), part.paths)
            for part in (self.train, self.test)
        )
        return duplicate_lines(
            train, test, self.class_names, evaluation=self.evaluation, by="pixel"
        )

    def _counts(self, images: Images) -> list[int]:
        counts: list[int] = torch.bincount(
            images.labels_N.cpu(), minlength=len(self.class_names)
        ).tolist()
        return counts


@dataclass(frozen=True)
class Normalizer:
    """Turns uint8 images into float32 network inputs: ``(value / 255 - mean) / std`` by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Return float32 images on the device of ``images_NCHW`` (uint8 N x C x H x W)."""
        if images_NCHW.dtype != torch.uint8 or images_NCHW.shape[1] != len(self.mean):
            raise ValueError(f"expected uint8 images of {len(self.mean)} channels")
        inputs_NCHW = images_NCHW.to(torch.float32).div_(255)
        # By number, not by tensor: nothing to copy to the device, so nothing to wait for.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            inputs_NCHW[:, channel].sub_(mean).div_(std)
        return inputs_NCHW


def load_data(
    config: DataConfig | str | None = None,
    *,
    seed: int = 0,
    default_root: Path | None = None,
    cache: DigestCache | None = None,
) -> ImageData:
    """Load, split and measure the data set that ``config`` names, or is named by it; by default
    the digits.

    A published data set without ``root`` is looked for, or put, into ``default_root``, else the
    folder that the command line uses.
    Test images are the published ones, the folder's test/ or, without test/, its val/; else
    ``test_fraction`` of each class. The architecture half is val/ where test/ is there too, else
    ``validation_fraction`` of each class. With ``evaluation="held-out"`` those test images are left
    out, and some of the others stand in for them; see ``splits.split_pool``, also
    for ``train_images``. ``split_seed``, else ``seed``, decides all these draws. Raises
    ``ConfigError`` for data that can't be used, ``DamagedArtifactError`` for a published file with
    a wrong checksum.
    """
    if isinstance(config, str):
        config = build_config({"data": {"name": config}}).data
    config = config or DataConfig()
    default_root = data_folder() if default_root is None else default_root
    pool = open_pool(config, default_root=default_root, cache=cache)
    found = _split_and_measured(pool, config, seed)
    if found.digest:
        return found
    if isinstance(found.train, ImageFiles):
        return _compared_by_file(found, config, default_root, cache)
    return replace(found, digest=content_digest(config, default_root=default_root, cache=cache))


def _compared_by_file(
    data: ImageData, config: DataConfig, default_root: Path, cache: DigestCache | None
) -> ImageData:
    """Return streamed images with their digest, and with what their files' hashes, which are known
    from it, say of images that are there twice.
    """
    listing, hashes = content_hashes(config, default_root=default_root, cache=cache)
    digest = listing_digest(zip(listing.content_names(), hashes, strict=True))
    known = {
        file.path: bytes.fromhex(file_hash)
        for file, file_hash in zip(listing.files, hashes, strict=True)
    }

    def compared(part: Images) -> Compared:
        assert isinstance(part, ImageFiles)
        if not known.keys() >= set(part.paths):
            raise ConfigError("the images changed while they were read", hint="run again")
        return Compared((known[path] for path in part.paths), part.labels_N.tolist(), part.paths)

    train, test = compared(data.train), compared(data.test)
    lines = duplicate_lines(train, test, data.class_names, evaluation=data.evaluation, by="file")
    return replace(data, digest=digest, repeated=tuple(lines))


def _split_and_measured(pool: Pool, config: DataConfig, seed: int) -> ImageData:
    """Return a pool's images as a data set; without a digest where not all of it was read."""
    parts = split_pool(pool, config, seed=seed if config.split_seed is None else config.split_seed)
    digest: str | None = None
    sets: _Sets
    if pool.files is None:
        sets, digest = _read_parts(pool, parts, config)
    else:
        train = pool.files.select(torch.cat(parts[:2]))
        sets = _Sets(train, *(pool.files.select(part) for part in parts))
    mean, std = channel_statistics(_sample(sets.train, seed))
    return ImageData(
        name=config.name,
        class_names=pool.class_names,
        train=sets.train,
        weight_half=sets.weight_half,
        arch_half=sets.arch_half,
        test=sets.test,
        mean=mean,
        std=std,
        digest=digest or "",
        image_size=pool.image_size,
        channels=pool.channels,
        evaluation=config.evaluation,
        fit=config.fit,
        crop_fraction=config.crop_fraction,
        sizes=pool.sizes,
    )


class _Sets(NamedTuple):
    train: Images
    weight_half: Images
    arch_half: Images
    test: Images


def _read_parts(pool: Pool, parts: Split, config: DataConfig) -> tuple[_Sets, str | None]:
    """Read what the split uses into memory; returns also the digest, if that was everything."""
    order = torch.cat(parts)
    check_fits(config.name, len(order), pool.channels, pool.image_size)
    images, digest = pool.read(order)
    paths = pool.paths
    if paths:
        paths = tuple(paths[index] for index in order.tolist())
    num_weight, num_arch, _ = (len(part) for part in parts)
    num_train = num_weight + num_arch
    labels = pool.labels[order]

    def part(start: int, stop: int) -> ImageSet:
        return ImageSet(images[start:stop], labels[start:stop], paths[start:stop])

    sets = _Sets(
        part(0, num_train),
        part(0, num_weight),
        part(num_weight, num_train),
        part(num_train, len(order)),
    )
    # A folder's reader knows the images it read; the digest is of the whole data set.
    return sets, digest if len(order) == len(pool.labels) else None


def _sample(images: Images, seed: int) -> Iterator[Tensor]:
    """Yield the pixels of all images in memory, or of some on disk, drawn by seed."""
    if isinstance(images, ImageFiles):
        order = epoch_order(len(images), seed=seed, purpose="statistics", epoch=0)
        images = images.select(order[:_STATISTICS_IMAGES])
    for start in range(0, len(images), _STATISTICS_CHUNK):
        yield images.pixels(slice(start, start + _STATISTICS_CHUNK))


def channel_statistics(
    parts: Iterable[Tensor],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation per channel of uint8 images, as 0 to 1.

    ``parts`` are tensors N x C x H x W. Computed from exact integer sums. A deviation below one
    level is given as one level (1/255): a constant channel then becomes zeros, not infinities.
    """
    counts_C256 = torch.stack([_levels(images_NCHW) for images_NCHW in parts]).sum(dim=0)
    means, deviations = [], []
    for counts in counts_C256.tolist():
        num_values = sum(counts)
        total = sum(level * count for level, count in enumerate(counts))
        squares = sum(level * level * count for level, count in enumerate(counts))
        variance = (num_values * squares - total * total) / num_values**2
        means.append(total / num_values / 255)
        deviations.append(max(variance**0.5, 1.0) / 255)
    return tuple(means), tuple(deviations)


def _levels(images_NCHW: Tensor) -> Tensor:
    """Return how often each value from 0 to 255 occurs, by channel."""
    return torch.stack(
        [torch.bincount(channel.reshape(-1), minlength=256) for channel in images_NCHW.unbind(1)]
    ).cpu()


def preprocessing(data: ImageData) -> dict[str, Any]:
    """Describe, as JSON values, how a picture becomes the model's input; travels with the model."""
    return {
        "layout": "NCHW",
        "dtype": "float32",
        "image_size": data.image_size,
        "channels": data.channels,
        "colour_order": "grey" if data.channels == 1 else "RGB",
        "fit": data.fit,
        "resize": _RESIZING[data.fit],
        "crop_fraction": data.crop_fraction,
        "transparency": "over black",
        "value_range": [0.0, 1.0],
        "mean": list(data.mean),
        "std": list(data.std),
        "formula": "(pixel / 255 - mean) / std, by channel",
    }


def _image_hashes(images: ImageSet) -> list[bytes]:
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for image in images.images_NCHW.cpu().numpy()
    ]

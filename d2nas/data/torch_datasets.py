"""Data sets of torch: their items checked, collected in memory, or written as files."""

import io
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError
from .image_writer import MANIFEST, written_images


class LabelledImages(Protocol):
    """A map-style data set, as ``torch.utils.data.Dataset``: items are (image, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


def write_dataset(
    dataset: LabelledImages,
    folder: str | Path,
    test: LabelledImages | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write a map-style ``torch.utils.data.Dataset`` as PNG files; return their manifest.

    That is a data set for ``run`` and the commands with ``--data-root``, in any process:
    ``run("small", data_root=write_dataset(dataset, "images"))``. Pixels stay as they are; what
    names the data set is the digest of the files. Items are as for ``ImageData.from_dataset``, but
    of any size; ``test`` and ``class_names`` as there. ``folder`` must not exist, and appears whole
    or not at all. Raises ``ConfigError``, ``StorageError``.
    """
    given = class_names or getattr(dataset, "classes", None)
    names = None if given is None else [str(name) for name in given]
    with written_images(Path(folder)) as writer:
        for part, items in (("train", dataset), ("test", test)):
            for index, (pixels, label) in enumerate(_items(items) if items is not None else ()):
                if label < 0 or (names is not None and label >= len(names)):
                    raise ConfigError(f"{part} item {index}: there is no class {label}")
                planes = pixels.numpy()
                file = io.BytesIO()
                picture = planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
                writer.write(part, str(label) if names is None else names[label], file.getvalue())
    return Path(folder) / MANIFEST


def collected(dataset: LabelledImages) -> tuple[Tensor, Tensor]:
    """Return a data set's images, uint8 N x C x size x size, and labels. Raises ``ConfigError``."""
    images: list[Tensor] = []
    labels: list[int] = []
    for index, (pixels, label) in enumerate(_items(dataset)):
        if pixels.shape[1] != pixels.shape[2]:
            raise _unfit(pixels, index)
        if images and pixels.shape != images[0].shape:
            raise ConfigError(
                f"image {index} is {shape_of(pixels[None])}, the first {shape_of(images[0][None])}"
            )
        images.append(pixels)
        labels.append(label)
    if not images:
        raise ConfigError("the data set has no images")
    return torch.stack(images), torch.tensor(labels)


def shape_of(images_NCHW: Tensor) -> str:
    """Return the shape of one image, for a person."""
    return " x ".join(map(str, images_NCHW.shape[1:]))


def _items(dataset: LabelledImages) -> Iterator[tuple[Tensor, int]]:
    """Yield each image's pixels, uint8 1 or 3 channels x height x width, and its label."""
    for index in range(len(dataset)):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ConfigError(f"item {index}: (image, label) is needed, not {type(item).__name__}")
        image, label = item
        pixels = torch.from_numpy(np.array(image)) if isinstance(image, Image.Image) else image
        if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8:
            kind = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ConfigError(
                f"image {index}: uint8 pixels are needed, not {kind}",
                hint="leave ToTensor and Normalize out of the transforms; PILToTensor is fine",
            )
        if pixels.ndim == 2:
            pixels = pixels[None]
        elif isinstance(image, Image.Image):
            pixels = pixels.permute(2, 0, 1)
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
            raise _unfit(pixels, index)
        yield pixels.cpu(), _class_number(label, index)


def _unfit(pixels: Tensor, index: int) -> ConfigError:
    return ConfigError(
        f"image {index}: 1 or 3 channels x size x size are needed, not "
        f"{' x '.join(map(str, pixels.shape))}",
        hint="add torchvision.transforms.Resize and CenterCrop to the transforms",
    )


def _class_number(label: Any, index: int) -> int:
    try:
        return operator.index(label)
    except (TypeError, RuntimeError, ValueError):
        raise ConfigError(
            f"item {index}: the label is a whole number, not {type(label).__name__} {label!r:.50}"
        ) from None

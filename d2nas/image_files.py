"""Image sets that stay on disk: listed and labelled, decoded when asked for."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .image_decoding import Decoding, read_image, strict_pillow
from .transfer import send


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled image files below ``root``; the counterpart on disk of ``data.ImageSet``.

    ``labels_N``: int64; decoded pixels go to their device.
    """

    root: Path
    paths: tuple[str, ...]
    labels_N: Tensor  # noqa: N815
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return the set with its labels and its future pixels on ``device``."""
        return replace(self, labels_N=self.labels_N.to(device))

    def select(self, indices: Tensor) -> "ImageFiles":
        """Return the part of the set at ``indices`` (int64, any device)."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels_N=self.labels_N[indices.to(self.labels_N.device)])

    def pixels(self, part: slice) -> Tensor:
        """Decode a part of the images: uint8 N x channels x size x size. Raises as
        ``read_files``.
        """
        images, _ = read_files([self.root / path for path in self.paths[part]], self.decoding)
        return send(images, self.labels_N.device)


def read_files(paths: Sequence[Path], decoding: Decoding) -> tuple[Tensor, list[str]]:
    """Return uint8 images N x channels x size x size and the files' SHA-256, in order.

    Raises ``ConfigError`` naming a damaged file, ``StorageError`` an unreadable one.
    """
    images = torch.empty(
        (len(paths), decoding.channels, decoding.size, decoding.size), dtype=torch.uint8
    )
    hashes = []
    with strict_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        decoded = threads.map(lambda path: read_image(path, decoding), paths)
        for position, (pixels, file_hash) in enumerate(decoded):
            images[position] = channels_first(pixels[None])[0]
            hashes.append(file_hash)
    return images, hashes


def channels_first(images: NDArray[np.uint8]) -> Tensor:
    """Turn N x H x W or N x H x W x 3 into a tensor N x C x H x W of its own memory."""
    first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(first.copy())

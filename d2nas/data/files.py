"""Image sets that stay on disk: listed and labelled, decoded when asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import send
from ..errors import ConfigError, StorageError
from .decoding import Decoding, read_each, read_image, strict_pillow
from .faults import Faults, shown


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled image files below ``root``; the counterpart on disk of ``images.ImageSet``.

    ``labels_N``: int64; decoded pixels go to their device.
    """

    root: Path
    paths: tuple[str, ...]
    labels_N: Tensor  # noqa: N815
    decoding: Decoding
    states: NDArray[np.int64] | None = None
    """What ``file_states`` says of each file; None: they may change."""

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return the set with its labels and its future pixels on ``device``."""
        return replace(self, labels_N=self.labels_N.to(device))

    def select(self, indices: Tensor) -> "ImageFiles":
        """Return the part of the set at ``indices`` (int64, any device)."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        labels_N = self.labels_N[indices.to(self.labels_N.device)]
        states = None if self.states is None else self.states[indices.cpu().numpy()]
        return replace(self, paths=paths, labels_N=labels_N, states=states)

    def state(self, index: int) -> tuple[int, ...] | None:
        """Return what ``check_unchanged`` compares a file with."""
        return None if self.states is None else tuple(self.states[index].tolist())

    def pixels(self, part: slice) -> Tensor:
        """Decode a part of the images: uint8 N x channels x size x size. Raises as
        ``read_files``.
        """
        images, _ = read_files(self.root, self.paths[part], self.decoding)
        return send(images, self.labels_N.device)


def file_states(root: Path, paths: Sequence[str]) -> NDArray[np.int64]:
    """Return the size and the times of change of files, int64 [N, 3]: of what was hashed before a
    training that reads them again and again. Raises ``StorageError``.
    """
    return np.array([_state(root / path) for path in paths], np.int64).reshape(len(paths), 3)


def check_unchanged(path: Path, state: tuple[int, ...] | None) -> None:
    """Raise ``StorageError`` for a file that is not the one whose state was taken."""
    if state is not None and _state(path) != state:
        raise StorageError(
            f"{shown(path)}: changed since this training began",
            hint="let the images be as they were, and start the command again",
        )


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        raise StorageError(
            f"{shown(path)}: {error.strerror or error}",
            hint="let the images be as they were, and start the command again",
        ) from error
    # The time of change too: it can't be set back, as the time of modification can.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_files(root: Path, paths: Sequence[str], decoding: Decoding) -> tuple[Tensor, list[str]]:
    """Return uint8 images N x channels x size x size and the SHA-256 of the files, in order.

    ``paths`` are below ``root``. Raises ``ConfigError`` naming all damaged files, ``StorageError``
    an unreadable one.
    """
    images = torch.empty(
        (len(paths), decoding.channels, decoding.size, decoding.size), dtype=torch.uint8
    )
    hashes: list[str] = []
    faults = Faults(root)
    with strict_pillow():
        results = read_each(root, paths, lambda path: read_image(path, decoding))
        for position, (path, result) in enumerate(zip(paths, results, strict=True)):
            if isinstance(result, ConfigError):
                faults.add_damaged(path, result)
            else:
                images[position] = channels_first(result[0][None])[0]
                hashes.append(result[1])
    faults.raise_any()
    return images, hashes


def channels_first(images: NDArray[np.uint8]) -> Tensor:
    """Turn N x H x W or N x H x W x 3 into a tensor N x C x H x W of its own memory."""
    first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(first.copy())

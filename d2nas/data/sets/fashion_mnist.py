"""Fashion-MNIST: grey pictures of clothes in IDX files, zipped or not."""

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import Arrays, DataSet, OfficialFile, register_data_set

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FOLDER = "FashionMNIST/raw"  # as torchvision lays it out


def _read(files: Mapping[str, Path]) -> Arrays:
    import numpy as np
    from torchvision.datasets import FashionMNIST

    def joined(kind: str) -> "NDArray[np.uint8]":
        parts = [f"{_FOLDER}/{part}-{kind}-ubyte.gz" for part in ("train", "t10k")]
        return np.concatenate([_idx_values(files[part]) for part in parts])

    return Arrays(tuple(FashionMNIST.classes), joined("images-idx3"), joined("labels-idx1"))


def _idx_values(path: Path) -> "NDArray[np.uint8]":
    """Return the bytes of an IDX file as an array: lengths are big-endian, their number byte 3."""
    import numpy as np

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    num_lengths = content[3]
    lengths = struct.unpack_from(f">{num_lengths}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_lengths).reshape(lengths)


def _download(root: Path) -> None:
    from torchvision import datasets

    datasets.FashionMNIST(root, download=True)


_SHA256 = {
    "train-images-idx3": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

register_data_set(
    DataSet(
        name="fashion-mnist",
        title="Fashion-MNIST",
        num_train=60_000,
        num_test=10_000,
        channels=1,
        size=28,
        num_classes=10,
        read=_read,
        files=tuple(
            OfficialFile(f"{_FOLDER}/{name}-ubyte.gz", f"sha256-unzipped:{checksum}")
            for name, checksum in _SHA256.items()
        ),
        download=_download,
        also_from="on Debian: package dataset-fashion-mnist, DIR /usr/share/datasets/fashion-mnist",
    )
)

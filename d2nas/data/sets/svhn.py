"""SVHN: house numbers, the images "train" and "test" without "extra"."""

from collections.abc import Mapping
from pathlib import Path

from . import Arrays, DataSet, OfficialFile, register_data_set

_TRAIN, _TEST = "train_32x32.mat", "test_32x32.mat"


def _read(files: Mapping[str, Path]) -> Arrays:
    import numpy as np
    from torchvision.datasets import SVHN

    root = files[_TRAIN].parent
    train, test = SVHN(root, "train"), SVHN(root, "test")
    return Arrays(
        class_names=tuple("0123456789"),
        images=np.concatenate([train.data, test.data]).transpose(0, 2, 3, 1),
        labels=np.concatenate([train.labels, test.labels]),
    )


def _download(root: Path) -> None:
    from torchvision import datasets

    for part in ("train", "test"):
        datasets.SVHN(root, part, download=True)


register_data_set(
    DataSet(
        name="svhn",
        title="Street View House Numbers",
        num_train=73_257,
        num_test=26_032,
        channels=3,
        size=32,
        num_classes=10,
        read=_read,
        files=(
            OfficialFile(_TRAIN, "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            OfficialFile(_TEST, "md5:eb5a983be6a315427106f1b164d9cef3"),
        ),
        download=_download,
    )
)

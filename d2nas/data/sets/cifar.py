"""CIFAR-10 and CIFAR-100: small photographs, read and downloaded with torchvision."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from . import Arrays, DataSet, OfficialFile, register_data_set


def _files(folder: str, checksums: Mapping[str, str]) -> tuple[OfficialFile, ...]:
    return tuple(OfficialFile(f"{folder}/{name}", f"md5:{md5}") for name, md5 in checksums.items())


def _read(reader: str, files: Mapping[str, Path]) -> Arrays:
    """Read with a class of torchvision's. The files are pickles, which run code when they are read:
    only after their checksums were found right.
    """
    import numpy as np
    from torchvision import datasets

    root = next(iter(files.values())).parents[1]
    train, test = (getattr(datasets, reader)(root, train=train) for train in (True, False))
    return Arrays(
        class_names=tuple(train.classes),
        images=np.concatenate([train.data, test.data]),
        labels=np.array([*train.targets, *test.targets]),
    )


def _download(reader: str, root: Path) -> None:
    from torchvision import datasets

    getattr(datasets, reader)(root, download=True)


register_data_set(
    DataSet(
        name="cifar10",
        title="CIFAR-10",
        num_train=50_000,
        num_test=10_000,
        channels=3,
        size=32,
        num_classes=10,
        read=partial(_read, "CIFAR10"),
        files=_files(
            "cifar-10-batches-py",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
        ),
        download=partial(_download, "CIFAR10"),
    )
)
register_data_set(
    DataSet(
        name="cifar100",
        title="CIFAR-100",
        num_train=50_000,
        num_test=10_000,
        channels=3,
        size=32,
        num_classes=100,
        read=partial(_read, "CIFAR100"),
        files=_files(
            "cifar-100-python",
            {
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "7973b15100ade9c7d40fb424638fde48",
            },
        ),
        download=partial(_download, "CIFAR100"),
    )
)

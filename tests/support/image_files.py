"""Small image folders and small published data sets in their official formats, for tests."""

import gzip
import hashlib
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2nas.config.registry import data_sets
from d2nas.data.sets import DataSet, OfficialFile


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB"):
    """Write a picture of noise; ``size`` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Image.fromarray(noise(seed, size[1], size[0], 3))
    pixels.convert(mode).save(path)
    return path


def write_classes(root: Path, counts: dict[str, int], *, seed: int = 0, mode: str = "RGB") -> Path:
    """Write ``counts[folder]`` different PNG pictures into each ``root/folder``."""
    for folder, count in counts.items():
        for index in range(count):
            seed += 1
            write_image(root / folder / f"{index:03}.png", seed=seed, mode=mode)
    return root


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, **facts: Any) -> None:
    """Have other facts of a data set taken for the published ones."""
    found = data_sets.find(name)
    monkeypatch.setitem(data_sets._known, name, replace(found, **facts))


def official() -> list[DataSet]:
    """The data sets of d2nas that have official files outside of the package."""
    found = [data_sets.find(name) for name in data_sets.names()]
    return [data_set for data_set in found if data_set.files and data_set.folder is None]


def _idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)


def write_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, *, num: int = 40):
    """Write tiny files as Fashion-MNIST's, and have their checksums taken for the published."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    table, arrays = [], {}
    for part, seed in (("train", 1), ("t10k", 2)):
        images, labels = noise(seed, num, 28, 28), np.arange(num, dtype=np.uint8) % 10
        arrays[part] = (images, labels)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = _idx(values) + values.tobytes()
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content, mtime=0))
            checksum = f"sha256-unzipped:{hashlib.sha256(content).hexdigest()}"
            table.append(OfficialFile(f"FashionMNIST/raw/{path.name}", checksum))
    publish(monkeypatch, "fashion-mnist", files=tuple(table), num_train=num, num_test=num)
    return arrays


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, *, num: int = 20):
    """Write tiny files as CIFAR-10's, and have their checksums taken for the published."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    arrays = {}
    for index in range(6):
        name = f"data_batch_{index + 1}" if index < 5 else "test_batch"
        pixels, labels = noise(index, num, 3072), [label % 10 for label in range(num)]
        arrays[name] = (pixels.reshape(num, 3, 32, 32), labels)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = [f"class{label}" for label in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    publish_cifar10(root, monkeypatch)
    publish(monkeypatch, "cifar10", num_train=5 * num, num_test=num)
    return arrays


def publish_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the files under ``root`` taken for the published CIFAR-10."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    sums = {path.name: md5(path) for path in folder.iterdir()}
    names = [f"data_batch_{index}" for index in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    table = [
        OfficialFile(f"{folder.name}/{name}", f"md5:{sums[name]}")
        for name in (*names, "test_batch", "batches.meta")
    ]
    publish(monkeypatch, "cifar10", files=tuple(table))


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, *, num: int = 20):
    """Write tiny files as SVHN's, and have their checksums taken for the published."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True, exist_ok=True)
    table, splits, arrays = [], {}, {}
    for seed, part in enumerate(("train", "test")):
        path = root / f"{part}_32x32.mat"
        images, digits = noise(seed, 32, 32, 3, num), np.arange(num)[:, None] % 10 + 1
        savemat(path, {"X": images, "y": digits.astype(np.uint8)})
        arrays[part] = (images.transpose(3, 2, 0, 1), digits.ravel() % 10)
        table.append(OfficialFile(path.name, f"md5:{md5(path)}"))
        splits[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", splits)
    publish(monkeypatch, "svhn", files=tuple(table), num_train=num, num_test=num)
    return arrays

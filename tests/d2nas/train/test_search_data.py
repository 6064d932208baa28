"""``d2nas search`` by its presets: every space on every data set, in small official files."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import (
    md5,
    noise,
    publish,
    write_cifar10,
    write_classes,
    write_fashion_mnist,
    write_image,
    write_svhn,
)
from torchvision.datasets import CIFAR100

from d2nas import SPACES, Genotype
from d2nas.data.sets import OfficialFile
from d2nas.nn.operations import ImageNetStem
from d2nas.spaces import CELL_TYPES, node_edges
from d2nas.train.search import Search
from pipeline.cli import run
from pipeline.store import Store

Write = Callable[[Path, pytest.MonkeyPatch], object]


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write tiny files as CIFAR-100's, and have their checksums taken for the published."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (part, num) in enumerate({"train": 200, "test": 100}.items()):
        labels = [label % 100 for label in range(num)]
        values = {"data": noise(seed, num, 3072), "fine_labels": labels, "coarse_labels": labels}
        (folder / part).write_bytes(pickle.dumps(values))
    names = {"fine_label_names": [f"class{label}" for label in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    sums = {path.name: md5(path) for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    table = [OfficialFile(f"{folder.name}/{name}", f"md5:{sums[name]}") for name in sums]
    publish(monkeypatch, "cifar100", files=tuple(table), num_train=200, num_test=100)


def write_folder(root: Path, _: pytest.MonkeyPatch) -> None:
    """Write three classes of anyone's pictures."""
    write_classes(root, {"cat": 9, "dog": 9, "newt": 9})


# Data set: its preset, classes, channels, pixels, training images, and what writes it.
DATA: dict[str, tuple[str, int, tuple[int, int], int, Write | None]] = {
    "digits": ("quickstart", 10, (1, 8), 1438, None),
    "fashion-mnist": ("fashion-mnist", 10, (1, 32), 40, write_fashion_mnist),
    "cifar10": ("cifar10", 10, (3, 32), 100, write_cifar10),
    "cifar100": ("cifar100", 100, (3, 32), 200, write_cifar100),
    "svhn": ("svhn", 10, (3, 32), 20, write_svhn),
    "folder": ("folder", 3, (3, 10), 21, write_folder),
}
SMALL = {
    "search.num_cells": 3,
    "search.init_channels": 2,
    "search.epochs": 1,
    "search.warmup_epochs": 0,
    "search.draws": 1,
    "search.device": "cpu",
}


def searched(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    preset: str,
    settings: dict[str, Any],
    *arguments: str,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Search through the command line: its data, its last row of metrics, and what it said."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    store = tmp_path / "store"
    capfd.readouterr()
    code = run(["search", preset, "--store", str(store), "--json", *words, *arguments])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    shown = json.loads(captured.out)
    version = Store(store).open(shown["versions"]["search"])
    (*_, row) = version.read("metrics.jsonl").splitlines()
    return shown, json.loads(row), captured.err


def assert_lies_in(genotype: Genotype, space: str) -> None:
    for cell_type in CELL_TYPES:
        for place, (operation, source) in enumerate(genotype.cell(cell_type)):
            row = node_edges(14)[place // 2].start + source
            assert operation in set(SPACES[space].candidates(cell_type)[row]) - {"none"}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", DATA)
def test_a_space_is_searched_on_a_data_set(
    name: str,
    space: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    preset, classes, (channels, pixels), images, write = DATA[name]
    arguments = []
    if write is not None:
        write(tmp_path / "data", monkeypatch)
        arguments = ["--data-root", str(tmp_path / "data")]
    batch = 360 if name == "digits" else 32
    settings = SMALL | {"search.space": space, "search.batch_size": batch}
    shown, row, talk = searched(capfd, tmp_path, preset, settings, *arguments)
    assert f"{classes} classes, {channels} x {pixels} x {pixels} pixels" in talk
    assert f"{images} training images" in talk
    assert shown["versions"] == {"search": f"{preset}/search@v1"}
    facts = shown["facts"]
    assert facts["searched_space"] == SPACES[space].to_dict()
    assert facts["steps"] == max(1, row["step"])
    assert facts["passes"] == 2 * facts["steps"]
    assert 0 <= row["arch_accuracy"] <= 1
    assert_lies_in(Genotype.from_dict(row["genotype"]), space)


def write_large_images(root: Path) -> None:
    """Write 40 training images of two classes, as large as ImageNet's are used, and four more."""
    for part, count in (("train", 20), ("val", 2)):
        for label in ("cat", "dog"):
            for index in range(count):
                path = root / part / label / f"{index:03}.png"
                write_image(path, seed=index, size=(232, 224))


def test_the_imagenet_setting_runs_on_a_tenth_and_a_tenth_of_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset's own stem, batch, K and share of the images; smaller are network and epochs."""
    seen: list[Search] = []

    class Watched(Search):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.append(self)

    monkeypatch.setattr("d2nas.train.search.Search", Watched)
    write_large_images(tmp_path / "data")
    small = {key: value for key, value in SMALL.items() if key != "search.draws"}
    where = ["--data-root", str(tmp_path / "data")]
    shown, row, talk = searched(capfd, tmp_path, "imagenet", small, *where)
    assert "2 classes, 3 x 224 x 224 pixels" in talk
    assert "40 training images (in a search 20 for weights, 20 for the architecture)," in talk
    (search,) = seen
    for batches in (search.weight_batches, search.arch_batches):
        assert batches.order.batch_size == 256
        assert torch.bincount(batches.images.labels_N).tolist() == [2, 2]
        assert batches.batch(0)[0].shape == (4, 3, 224, 224)
    assert isinstance(search.supernet.stem, ImageNetStem)
    assert shown["facts"]["steps"] == 1
    assert shown["facts"]["passes"] == 2 * 3
    assert_lies_in(Genotype.from_dict(row["genotype"]), "S0")

"""The library in one call each: search, retrain, data from a torch ``Dataset``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import d2nas
from d2nas import (
    ImageData,
    RetrainConfig,
    SearchConfig,
    load_data,
    retrain,
    search,
    write_dataset,
)
from d2nas.config import DataConfig
from d2nas.data.images import ImageSet
from d2nas.errors import ConfigError
from d2nas.spaces import SPACES
from d2nas.train.retrain import Retraining
from d2nas.train.search import Search

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"num_cells": 3, "init_channels": 4, "epochs": 2, "device": "cpu"}
SEARCH = SearchConfig(**SMALL, draws=1, warmup_epochs=0)
RETRAIN = RetrainConfig(**SMALL, auxiliary=False)


class Pictures(Dataset[tuple[Any, int]]):
    """Items made by a function of their index."""

    classes = ("cat", "dog")

    def __init__(self, size: int, make: Callable[[int], Any]) -> None:
        self.size, self.make = size, make

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.make(index), index % 2


def grey(index: int) -> torch.Tensor:
    return torch.full((1, 8, 8), index, dtype=torch.uint8)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig(train_images=128), seed=3)


def test_every_public_name_is_there() -> None:
    for name in d2nas.__all__:
        assert getattr(d2nas, name) is not None, name
    with pytest.raises(AttributeError, match="nothing"):
        d2nas.nothing  # noqa: B018


def test_search_is_the_loop(digits: ImageData) -> None:
    rows: list[Mapping[str, Any]] = []
    found = search(digits, SEARCH, seed=5, on_epoch=rows.append)
    loop = Search(SEARCH, SPACES["S0"], digits, seed=5, device=CPU, augmentation=DataConfig())
    for _ in loop.run():
        pass
    assert found == loop.method.derive()
    assert rows == loop.metrics
    assert [row["epoch"] for row in rows] == [0, 1]


def test_retrain_is_the_loop(digits: ImageData) -> None:
    genotype = d2nas.Genotype.published("DARTS_V2")
    rows: list[Mapping[str, Any]] = []
    network = retrain(genotype, digits, RETRAIN, seed=5, on_epoch=rows.append)
    loop = Retraining(RETRAIN, genotype, digits, seed=5, device=CPU, augmentation=DataConfig())
    for _ in loop.run():
        pass
    assert rows == loop.metrics
    assert not network.training
    for name, value in loop.deployed_weights().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_an_own_dataset_is_split_and_named() -> None:
    found = ImageData.from_dataset(Pictures(40, grey), config=DataConfig(test_fraction=0.25))
    assert (found.name, found.class_names, found.channels) == ("Pictures", ("cat", "dog"), 1)
    assert (len(found.train), len(found.test), found.image_size) == (30, 10, 8)
    kept = torch.cat((found.train.pixels(slice(0, 30)), found.test.pixels(slice(0, 10))))
    assert sorted(kept[:, 0, 0, 0].tolist()) == list(range(40))
    assert (found.train.labels_N == found.train.pixels(slice(0, 30))[:, 0, 0, 0] % 2).all()


def test_test_images_of_their_own_are_kept_apart() -> None:
    test = Pictures(6, lambda index: grey(200 + index))
    found = ImageData.from_dataset(Pictures(20, grey), test, class_names=["a", "b"])
    assert found.class_names == ("a", "b")
    assert sorted(found.test.pixels(slice(0, 6))[:, 0, 0, 0].tolist()) == list(range(200, 206))
    assert len(found.train) == 20


def test_pictures_of_pillow_are_taken_as_their_pixels() -> None:
    def picture(index: int) -> Image.Image:
        return Image.fromarray(np.full((8, 8, 3), (index, 1, 2), dtype=np.uint8))

    found = ImageData.from_dataset(Pictures(20, picture))
    assert found.channels == 3
    assert found.train.pixels(slice(0, 1))[0, 1:, 0, 0].tolist() == [1, 2]


def test_data_are_loaded_by_name_and_shown_in_one_line() -> None:
    found = load_data("digits")
    assert (
        repr(found)
        == "ImageData('digits': 10 classes, 1438 training and 359 test images, 1 x 8 x 8)"
    )
    assert repr(found.test) == "ImageSet(359 x 1 x 8 x 8)"
    with pytest.raises(ConfigError, match="nope"):
        load_data("nope")
    with pytest.raises(ConfigError, match=r"item 0: \(image, label\) is needed, not int"):
        ImageData.from_dataset([1, 2])  # type: ignore[arg-type]


def test_the_digest_is_of_the_content() -> None:
    def digest(shift: int) -> str:
        return ImageData.from_dataset(Pictures(20, lambda index: grey(index + shift))).digest

    assert digest(0) == digest(0) != digest(1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda index: torch.zeros(3, 8, 8), "uint8 pixels are needed, not torch.float32"),
        (lambda index: "cat.png", "uint8 pixels are needed, not str"),
        (lambda index: torch.zeros(3, 8, 9, dtype=torch.uint8), "not 3 x 8 x 9"),
        (lambda index: torch.zeros(2, 8, 8, dtype=torch.uint8), "not 2 x 8 x 8"),
        (lambda index: grey(0)[:, : 8 - index, : 8 - index], "image 1 is 1 x 7 x 7, the first"),
    ],
)
def test_pictures_that_cannot_be_used_are_told(make: Callable[[int], Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ImageData.from_dataset(Pictures(4, make))


def test_labels_without_a_class_and_empty_data_are_told() -> None:
    with pytest.raises(ConfigError, match="labels are 0 to 1, classes 0 to 0"):
        ImageData.from_dataset(Pictures(4, grey), class_names=["only"])
    with pytest.raises(ConfigError, match="different names"):
        ImageData.from_dataset(Pictures(20, grey), class_names=["a", "a"])
    with pytest.raises(ConfigError, match="class 'c' has 0 images"):
        ImageData.from_dataset(Pictures(20, grey), class_names=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"image_size is 16, the images have 8"):
        ImageData.from_dataset(Pictures(20, grey), config=DataConfig(image_size=16))
    for label, reason in (
        (0.5, "whole number"),
        ("cat", "whole number"),
        (10**9, "classes 0 to 7"),
    ):
        with pytest.raises(ConfigError, match=reason):
            ImageData.from_dataset([(grey(0), label)] * 8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no images"):
        ImageData.from_dataset(Pictures(0, grey))


# --- written as files ---------------------------------------------------------------------------


def colour(index: int) -> torch.Tensor:
    return torch.full((3, 9 + index % 3, 12), index, dtype=torch.uint8)


def test_a_written_data_set_is_the_one_in_memory(tmp_path: Path) -> None:
    whole, test = Pictures(20, grey), Pictures(6, lambda index: grey(100 + index))
    root = write_dataset(whole, tmp_path / "images", test)
    found = load_data(DataConfig(name="folder", root=str(root), image_size=8))
    wanted = ImageData.from_dataset(whole, test)
    assert found.class_names == wanted.class_names == ("cat", "dog")
    for one, other in ((found.train, wanted.train), (found.test, wanted.test)):
        assert isinstance(one, ImageSet)
        assert isinstance(other, ImageSet)
        for label in (0, 1):
            values = (part.images_NCHW[part.labels_N == label, 0, 0, 0] for part in (one, other))
            assert len({tuple(sorted(each.tolist())) for each in values}) == 1
    again = write_dataset(whole, tmp_path / "again", test)
    config = DataConfig(name="folder", root=str(again), image_size=8)
    assert load_data(config).digest == found.digest


def test_pictures_of_several_sizes_can_be_written(tmp_path: Path) -> None:
    root = write_dataset(Pictures(20, colour), tmp_path / "images", class_names=["a, b", "c/d"])
    found = load_data(DataConfig(name="folder", root=str(root)))
    assert (found.class_names, found.image_size, found.channels) == (("a, b", "c/d"), 10, 3)
    pictures = Pictures(8, lambda index: Image.fromarray(np.full((8, 9), index, np.uint8)))
    root = write_dataset(pictures, tmp_path / "pictures")
    assert load_data(DataConfig(name="folder", root=str(root), image_size=8)).channels == 1


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    for make, names, reason in (
        (grey, ["only"], "train item 1: there is no class 1"),
        (lambda index: torch.zeros(3, 8, 8), None, "uint8 pixels are needed"),
        (lambda index: torch.zeros(3, 0, 8, dtype=torch.uint8), None, "not 3 x 0 x 8"),
    ):
        with pytest.raises(ConfigError, match=reason):
            write_dataset(Pictures(8, make), tmp_path / "images", class_names=names)
    assert not list(tmp_path.iterdir())
    write_dataset(Pictures(8, grey), tmp_path / "images")
    with pytest.raises(ConfigError, match="is there already"):
        write_dataset(Pictures(8, grey), tmp_path / "images")

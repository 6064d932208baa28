"""Reading: published files are checked first, downloads are whole, folders are read exactly."""

import contextlib
import gzip
import os
import pickle
from pathlib import Path

import pytest
import torch
from image_files import (
    md5,
    publish_cifar10,
    write_cifar10,
    write_classes,
    write_fashion_mnist,
    write_image,
    write_svhn,
)
from PIL import Image
from torchvision import datasets

from d2nas.config import DataConfig
from d2nas.config.registry import data_sets
from d2nas.data import files as image_files
from d2nas.data import readers as data_readers
from d2nas.data import sizes as image_sizes
from d2nas.data import sources as data_sources
from d2nas.data.folders import find_images
from d2nas.data.readers import TEST, TRAIN, VALIDATION, open_pool
from d2nas.data.sources import content_digest
from d2nas.errors import ConfigError, D2NasError, DamagedArtifactError


def opened(name, place, **options):
    """Open a published set with ``place`` as the default root, a folder set at ``place``."""
    if name in ("folder", "imagenet"):
        options["root"] = str(place)
    return open_pool(DataConfig(name=name, **options), default_root=place)


def read_all(pool):
    return pool.read(torch.arange(len(pool.labels)))


# --- the published tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reader"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)]
)
def test_the_cifar_checksums_are_torchvisions(name, reader):
    lines = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    expected = {(f"{reader.base_folder}/{path}", f"md5:{checksum}") for path, checksum in lines}
    assert set(data_sets.find(name).files) == expected


def test_the_svhn_checksums_are_torchvisions():
    lines = [datasets.SVHN.split_list[part][1:] for part in ("train", "test")]
    assert set(data_sets.find("svhn").files) == {
        (path, f"md5:{checksum}") for path, checksum in lines
    }


def test_the_fashion_mnist_files_are_torchvisions():
    expected = {f"FashionMNIST/raw/{path}" for path, _ in datasets.FashionMNIST.resources}
    assert {file.path for file in data_sets.find("fashion-mnist").files} == expected


# --- published formats --------------------------------------------------------------------------


def test_fashion_mnist_is_read_exactly(tmp_path, monkeypatch):
    arrays = write_fashion_mnist(tmp_path, monkeypatch)
    pool = opened("fashion-mnist", tmp_path)
    images, digest = read_all(pool)
    assert (pool.image_size, pool.channels) == (28, 1)
    assert pool.class_names[9] == "Ankle boot"
    for part, start in (("train", 0), ("t10k", 40)):
        pixels, labels = arrays[part]
        assert images[start : start + 40, 0].numpy().tolist() == pixels.tolist()
        assert pool.labels[start : start + 40].tolist() == labels.tolist()
    assert pool.parts.tolist() == [TRAIN] * 40 + [TEST] * 40
    config = DataConfig(name="fashion-mnist")
    assert digest == content_digest(config, default_root=tmp_path / "elsewhere")


@pytest.mark.parametrize("unzip", ["repacked", "unzipped"])
def test_fashion_mnist_is_accepted_flat_and_however_it_is_packed(tmp_path, monkeypatch, unzip):
    write_fashion_mnist(tmp_path / "official", monkeypatch)
    expected, expected_digest = read_all(opened("fashion-mnist", tmp_path / "official"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "official" / "FashionMNIST" / "raw").iterdir():
        content = gzip.decompress(path.read_bytes())
        if unzip == "unzipped":
            (flat / path.stem).write_bytes(content)
        else:
            (flat / path.name).write_bytes(gzip.compress(content, 1, mtime=1))
            assert md5(flat / path.name) != md5(path)
    images, digest = read_all(opened("fashion-mnist", tmp_path, root=str(flat)))
    assert torch.equal(images, expected)
    assert digest == expected_digest


def test_cifar10_is_read_exactly(tmp_path, monkeypatch):
    arrays = write_cifar10(tmp_path, monkeypatch)
    pool = opened("cifar10", tmp_path)
    images, digest = read_all(pool)
    assert pool.class_names == tuple(f"class{label}" for label in range(10))
    for index, (pixels, labels) in enumerate(arrays.values()):
        part = slice(index * 20, index * 20 + 20)
        assert images[part].numpy().tolist() == pixels.tolist()
        assert pool.labels[part].tolist() == labels
    assert pool.parts.tolist() == [TRAIN] * 100 + [TEST] * 20
    assert digest == data_sources.arrays_digest(data_sets.find("cifar10"))


def test_svhn_is_read_exactly(tmp_path, monkeypatch):
    arrays = write_svhn(tmp_path, monkeypatch)
    pool = opened("svhn", tmp_path)
    images, _ = read_all(pool)
    assert pool.class_names == tuple("0123456789")
    assert pool.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    for index, (pixels, labels) in enumerate(arrays.values()):
        part = slice(index * 20, index * 20 + 20)
        assert images[part].numpy().tolist() == pixels.tolist()
        assert pool.labels[part].tolist() == labels.tolist()


def test_images_come_in_the_order_asked_for(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    pool = opened("svhn", tmp_path)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool.read(order)[0], read_all(pool)[0][order])


def test_size_and_channels_are_converted_when_asked_for(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    small = opened("cifar10", tmp_path, image_size=16, channels=1)
    images, _ = read_all(small)
    assert images.shape == (120, 1, 16, 16)
    colour, _ = read_all(opened("cifar10", tmp_path))
    first = Image.fromarray(colour[0].permute(1, 2, 0).numpy()).convert("L")
    expected = first.resize((16, 16), Image.Resampling.BILINEAR)
    assert images[0, 0].flatten().tolist() == list(expected.tobytes())
    write_fashion_mnist(tmp_path, monkeypatch)
    grey, _ = read_all(opened("fashion-mnist", tmp_path))
    tripled, _ = read_all(opened("fashion-mnist", tmp_path, channels=3))
    assert torch.equal(tripled, grey.expand(-1, 3, -1, -1))


# --- damaged and hostile files ------------------------------------------------------------------

WRITERS = {"fashion-mnist": write_fashion_mnist, "cifar10": write_cifar10, "svhn": write_svhn}


@pytest.mark.parametrize("name", WRITERS)
def test_every_damaged_file_is_named(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    for file in data_sets.find(name).files:
        path = tmp_path / file.path
        good = path.read_bytes()
        changed = bytearray(good)
        changed[len(good) // 2] ^= 1
        for content in (bytes(changed), good[:-10], b""):
            path.write_bytes(content)
            with pytest.raises(DamagedArtifactError, match=path.name) as raised:
                opened(name, tmp_path)
            assert raised.value.exit_code == 4
        path.write_bytes(good)
    opened(name, tmp_path)


class Payload:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def plant_payload(root: Path, file: str, mark: Path) -> None:
    (root / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Payload(mark)))


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_hostile_pickle_is_never_unpickled(tmp_path, monkeypatch, file):
    write_cifar10(tmp_path, monkeypatch)
    plant_payload(tmp_path, file, tmp_path / "mark")
    with pytest.raises(DamagedArtifactError, match=file):
        opened("cifar10", tmp_path)
    assert not (tmp_path / "mark").exists()


def test_without_the_checksum_a_hostile_pickle_would_run(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    plant_payload(tmp_path, "data_batch_1", tmp_path / "mark")
    publish_cifar10(tmp_path, monkeypatch)
    with pytest.raises(TypeError):
        opened("cifar10", tmp_path)
    assert (tmp_path / "mark").exists()


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_is_read_file_by_file_into_its_place(tmp_path):
    counts = {"train/a": 4, "train/b": 4, "val/a": 2, "test/b": 3}
    write_classes(tmp_path, counts)
    config = DataConfig(name="folder", root=str(tmp_path), image_size=10)
    pool = open_pool(config, default_root=tmp_path)
    assert pool.labels.tolist() == [0] * 4 + [1] * 4 + [0] * 2 + [1] * 3
    assert pool.parts.tolist() == [TRAIN] * 8 + [VALIDATION] * 2 + [TEST] * 3
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    images, digest = pool.read(order)
    assert digest == content_digest(config, default_root=tmp_path)
    paths = [file.path for file in find_images(tmp_path).files]
    for image, index in zip(images, order.tolist(), strict=True):
        original = Image.open(tmp_path / paths[index]).crop((1, 0, 11, 10))
        assert image.permute(1, 2, 0).flatten().tolist() == list(original.tobytes())


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("I;16", 1), ("RGB", 3), ("P", 3)])
def test_channels_follow_the_images_unless_named(tmp_path, mode, channels):
    write_classes(tmp_path, {"a": 4, "b": 4}, mode="L")
    assert opened("folder", tmp_path).channels == 1
    if mode == "I;16":
        Image.new("I;16", (9, 9), 70).save(tmp_path / "b" / "x.png")
    else:
        write_image(tmp_path / "b" / "x.png", mode=mode)
    pool = opened("folder", tmp_path)
    assert pool.channels == channels
    assert read_all(pool)[0].shape == (9, channels, 10, 10)
    for named in (1, 3):
        pool = opened("folder", tmp_path, channels=named)
        assert read_all(pool)[0].shape == (9, named, 10, 10)


def test_sizes_default_by_kind(tmp_path):
    write_classes(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1})
    for name, size in (("folder", 10), ("imagenet", 224)):  # the pictures have 12 x 10
        pool = opened(name, tmp_path, stream="never")
        assert read_all(pool)[0].shape[2:] == (size, size)
    with pytest.raises(ConfigError, match="imagenet needs train"):
        opened("imagenet", tmp_path / "train")


@pytest.mark.parametrize("channels", [None, 3])
def test_a_broken_image_is_named(tmp_path, channels):
    write_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "b" / "003.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"b/003\.png: cannot be read") as raised:
        read_all(opened("folder", tmp_path, channels=channels))
    assert raised.value.hint


def test_a_bomb_in_a_folder_is_refused_and_would_be_decoded_unguarded(tmp_path, monkeypatch):
    write_classes(tmp_path, {"a": 4, "b": 4})
    write_image(tmp_path / "b" / "bomb.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ConfigError, match=r"bomb\.png: .*exceeds"):
        read_all(opened("folder", tmp_path))
    for module in (data_readers, image_files, image_sizes):
        monkeypatch.setattr(module, "strict_pillow", contextlib.nullcontext)
    with pytest.warns(Image.DecompressionBombWarning):
        images, _ = read_all(opened("folder", tmp_path))
    assert len(images) == 9


def test_a_set_that_does_not_fit_is_refused_before_any_image_is_read(tmp_path, monkeypatch):
    write_classes(tmp_path, {"a": 4, "b": 4}, mode="L")
    (tmp_path / "b" / "003.png").write_bytes(b"not to be reached")
    monkeypatch.setattr(data_readers, "MAX_TENSOR_BYTES", 8 * 10 * 10 - 1)
    with pytest.raises(ConfigError, match="8 images of 1 x 10 x 10 are") as raised:
        opened("folder", tmp_path, stream="never")
    assert "image_size" in raised.value.hint
    assert "can be streamed" in raised.value.hint
    monkeypatch.setattr(data_readers, "MAX_TENSOR_BYTES", 8 * 10 * 10)
    with pytest.raises(D2NasError, match=r"003\.png"):
        opened("folder", tmp_path, stream="never")

"""Data: splits, statistics, batches and augmentation keep their promises exactly."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import noise, write_classes, write_fashion_mnist
from PIL import Image

from d2nas.config import DataConfig
from d2nas.config.registry import data_sets
from d2nas.data import readers as data_readers
from d2nas.data.images import (
    ImageData,
    ImageSet,
    Normalizer,
    channel_statistics,
    load_data,
    preprocessing,
)
from d2nas.data.sources import content_digest
from d2nas.data.splits import stratified_split
from d2nas.errors import ConfigError
from d2nas.files import strict_json


def load(root, *, seed=0, **options):
    return load_data(
        DataConfig(name="folder", root=str(root), **options), seed=seed, default_root=root
    )


def load_digits(*, seed=0, **options):
    return load_data(DataConfig(**options), seed=seed, default_root=Path("unused"))


def keys(images: ImageSet) -> list[bytes]:
    """One value per image that tells it from all others."""
    return [image.tobytes() for image in images.images_NCHW.numpy()]


# --- digits and splits --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_digits()


def test_digits_are_all_there_and_scaled_to_255(digits):
    packed = data_sets.find("digits").folder / "digits.csv.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines()
    rows = [[int(value) for value in line.split(",")] for line in lines]
    expected = {(bytes(round(pixel * 255 / 16) for pixel in row[:-1]), row[-1]) for row in rows}
    found = [
        pair
        for part in (digits.train, digits.test)
        for pair in zip(keys(part), part.labels_N.tolist(), strict=True)
    ]
    assert len(found) == 1797
    assert set(found) == expected
    assert digits.class_names == tuple("0123456789")
    assert (digits.name, digits.image_size, digits.channels) == ("digits", 8, 1)
    assert digits.train.images_NCHW.max() == 255


def test_the_parts_are_disjoint_and_the_halves_make_up_the_training_images(digits):
    weight, arch, test = keys(digits.weight_half), keys(digits.arch_half), keys(digits.test)
    assert not set(weight) & set(arch)
    assert not set(test) & set(weight + arch)
    assert weight + arch == keys(digits.train)
    labels = torch.cat((digits.weight_half.labels_N, digits.arch_half.labels_N))
    assert torch.equal(labels, digits.train.labels_N)


def test_the_halves_share_the_memory_of_the_training_images(digits):
    start = digits.train.images_NCHW.untyped_storage().data_ptr()
    for part in (digits.weight_half, digits.arch_half, digits.test):
        assert part.images_NCHW.untyped_storage().data_ptr() == start


@pytest.mark.parametrize(("test_fraction", "validation_fraction"), [(0.2, 0.5), (0.35, 0.1)])
def test_splits_keep_the_fractions_in_every_class(test_fraction, validation_fraction):
    data = load_digits(test_fraction=test_fraction, validation_fraction=validation_fraction)
    parts = (data.train, data.arch_half, data.test)
    train, arch, test = (torch.bincount(part.labels_N, minlength=10) for part in parts)
    assert ((test - (train + test) * test_fraction).abs() <= 0.5).all()
    assert ((arch - train * validation_fraction).abs() <= 0.5).all()


def test_the_seed_alone_decides_the_splits(digits):
    again, other = load_digits(), load_digits(seed=1)
    for part in ("train", "weight_half", "arch_half", "test"):
        assert keys(getattr(again, part)) == keys(getattr(digits, part))
        assert set(keys(getattr(other, part))) != set(keys(getattr(digits, part)))
    assert other.digest == digits.digest


def test_the_test_images_do_not_depend_on_the_validation_fraction(digits):
    assert keys(load_digits(validation_fraction=0.3).test) == keys(digits.test)


def test_stratified_split_leaves_what_must_stay():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, 2, 0, 0, 3])
    kept, held = stratified_split(labels, 0.01, keep=1, seed=0, purpose="p")
    assert torch.bincount(labels[held], minlength=4).tolist() == [1, 1, 1, 0]
    kept, held = stratified_split(labels, 0.99, keep=2, seed=0, purpose="p")
    assert torch.bincount(labels[kept], minlength=4).tolist() == [2, 2, 2, 1]
    assert sorted(torch.cat((kept, held)).tolist()) == list(range(11))
    empty = stratified_split(torch.zeros(0, dtype=torch.int64), 0.5, keep=1, seed=0, purpose="p")
    assert [len(part) for part in empty] == [0, 0]


def test_classes_are_drawn_independently():
    labels = torch.arange(5).repeat_interleave(40)
    _, held = stratified_split(labels, 0.5, keep=1, seed=0, purpose="p")
    chosen = {tuple((held[labels[held] == label] % 40).tolist()) for label in range(5)}
    assert len(chosen) == 5


def test_the_digest_is_the_one_that_was_promised(digits, tmp_path):
    assert digits.digest == content_digest(DataConfig(), default_root=tmp_path)
    write_classes(tmp_path, {"a": 6, "b": 6})
    config = DataConfig(name="folder", root=str(tmp_path))
    promised = content_digest(config, default_root=tmp_path)
    assert load(tmp_path).digest == load(tmp_path, seed=3).digest == promised


# --- folder layouts -----------------------------------------------------------------------------


def sources(root, part: ImageSet) -> set[str]:
    """Which top-level folders the images of ``part`` come from."""
    origin = {
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(): path.relative_to(root).parts[0]
        for path in root.rglob("*.png")
    }
    return {origin[key] for key in keys(part)}


def square_classes(root, counts):
    seed = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            seed += 1
            Image.fromarray(noise(seed, 8, 8, 3)).save(root / folder / f"{index}.png")
    return root


LAYOUTS = {
    "val and test": (("train", "val", "test"), {"train"}, {"val"}, {"test"}),
    "validation and test": (("train", "validation", "test"), {"train"}, {"validation"}, {"test"}),
    "val only": (("train", "val"), {"train"}, {"train"}, {"val"}),
    "test only": (("train", "test"), {"train"}, {"train"}, {"test"}),
    "train only": (("train",), {"train"}, {"train"}, {"train"}),
}


@pytest.mark.parametrize(("parts", "weight", "arch", "test"), LAYOUTS.values(), ids=LAYOUTS)
def test_each_split_folder_plays_its_role(tmp_path, parts, weight, arch, test):
    counts = {f"{part}/{name}": 6 for part in parts for name in ("a", "b")}
    data = load(square_classes(tmp_path, counts), image_size=8)
    assert sources(tmp_path, data.weight_half) == weight
    assert sources(tmp_path, data.arch_half) == arch
    assert sources(tmp_path, data.test) == test
    everything = keys(data.train) + keys(data.test)
    assert len(everything) == len(set(everything)) == 12 * len(parts)
    for part in (data.weight_half, data.arch_half, data.test):
        assert set(part.labels_N.tolist()) == {0, 1}


def test_the_smallest_allowed_class_reaches_every_part(tmp_path):
    data = load(square_classes(tmp_path, {"a": 4, "b": 40}), test_fraction=0.9)
    for part in (data.weight_half, data.arch_half, data.test):
        assert 0 in part.labels_N


def test_statistics_come_from_the_training_images_alone(tmp_path):
    for part, level in (("train", 100), ("val", 110), ("test", 250)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(4):
                picture = Image.new("L", (8, 8), level)
                picture.save(tmp_path / part / name / f"{index}.png")
    data = load(tmp_path, image_size=8)
    assert data.mean == (105 / 255,)
    assert data.std == (5 / 255,)
    assert int(data.test.images_NCHW.min()) == 250


def test_images_beyond_the_memory_limit_are_refused(tmp_path, monkeypatch):
    needed = 1797 * 3 * 64 * 64
    monkeypatch.setattr(data_readers, "MAX_TENSOR_BYTES", needed - 1)
    with pytest.raises(ConfigError, match="1797 images of 3 x 64 x 64"):
        load_digits(image_size=64, channels=3)
    monkeypatch.setattr(data_readers, "MAX_TENSOR_BYTES", needed)
    assert load_digits(image_size=64, channels=3).train.images_NCHW.shape[1:] == (3, 64, 64)


# --- values -------------------------------------------------------------------------------------


def test_statistics_are_exact():
    images = torch.from_numpy(noise(0, 700, 3, 5, 4))
    mean, std = channel_statistics([images])
    expected = images.numpy().astype(np.float64) / 255
    assert np.abs(np.array(mean) - expected.mean((0, 2, 3))).max() < 1e-14
    assert np.abs(np.array(std) - expected.std((0, 2, 3))).max() < 1e-14


def test_a_constant_channel_is_normalised_to_zeros():
    images = torch.full((5, 1, 4, 4), 9, dtype=torch.uint8)
    mean, std = channel_statistics([images])
    assert std == (1 / 255,)
    assert Normalizer(mean, std)(images).abs().max() < 1e-6


def test_normalised_training_images_have_mean_zero_and_deviation_one(digits):
    inputs = Normalizer(digits.mean, digits.std)(digits.train.images_NCHW)
    assert inputs.dtype == torch.float32
    assert abs(inputs.double().mean().item()) < 1e-6
    assert abs(inputs.double().std(unbiased=False).item() - 1) < 1e-6


def test_each_channel_is_normalised_by_its_own_numbers():
    images = torch.from_numpy(noise(1, 4, 3, 6, 6))
    before = images.clone()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    scaled = images.double() / 255
    expected = (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert (Normalizer(mean, std)(images) - expected).abs().max() < 1e-6
    assert torch.equal(images, before)
    for wrong in (images.float(), images[:, :1]):
        with pytest.raises(ValueError, match="expected uint8 images of 3 channels"):
            Normalizer(mean, std)(wrong)


def test_preprocessing_describes_the_input_in_json(digits):
    description = preprocessing(digits)
    assert json.loads(strict_json.canonical_json(description)) == description
    assert description["colour_order"] == "grey"
    assert description["layout"] == "NCHW"
    mean, std = description["mean"], description["std"]
    assert Normalizer(tuple(mean), tuple(std)) == Normalizer(digits.mean, digits.std)
    size = (description["channels"], description["image_size"], description["image_size"])
    assert digits.test.images_NCHW.shape[1:] == size
    assert preprocessing(dataclasses.replace(digits, channels=3))["colour_order"] == "RGB"
    # What a server must know to prepare pictures as the network's own were.
    cropped = preprocessing(dataclasses.replace(digits, crop_fraction=0.875))
    assert cropped["crop_fraction"] == 0.875
    assert "black" in preprocessing(dataclasses.replace(digits, fit="pad"))["resize"]


def test_an_image_set_refuses_what_it_cannot_be():
    images, labels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1])
    for wrong in ((images.float(), labels), (images[0], labels), (images, labels.int())):
        with pytest.raises(ValueError, match="must be"):
            ImageSet(*wrong)
    with pytest.raises(ValueError, match="one label per image"):
        ImageSet(images, torch.tensor([0]))
    chosen = ImageSet(images, labels).select(torch.tensor([1, 1, 0]))
    assert chosen.labels_N.tolist() == [1, 1, 0]
    assert len(chosen.to("cpu")) == 3


# --- what a person is told ----------------------------------------------------------------------


def test_the_summary_names_sizes_splits_and_classes(digits):
    lines = digits.summary_lines()
    assert lines[0] == "digits: 10 classes, 1 x 8 x 8 pixels"
    assert f"{len(digits.train)} training images" in lines[1]
    assert f"{len(digits.test)} test images" in lines[1]
    assert f"0 {digits.class_counts()['0']}, 1 " in lines[2]
    assert digits.warnings == ()
    assert sum(digits.class_counts().values()) == len(digits.train)


def test_many_classes_are_summed_up(digits):
    names = tuple(f"class{label}" for label in range(30))
    labels = torch.arange(len(digits.train)) % 30
    many = dataclasses.replace(
        digits, class_names=names, train=ImageSet(digits.train.images_NCHW, labels)
    )
    assert many.summary_lines()[2] == "training images per class: 47 to 48"


@pytest.mark.parametrize(("count", "warned"), [(20, False), (21, True)])
def test_imbalance_beyond_five_to_one_is_a_warning(tmp_path, count, warned):
    counts = {"train/a": 4, "train/b": count, "test/a": 1, "test/b": 1}
    data = load(square_classes(tmp_path, counts), image_size=8)
    expected = f"imbalanced: class b has {count} training images, class a 4"
    assert data.warnings == ((expected,) if warned else ())


def test_test_images_among_the_training_images_are_a_warning(tmp_path):
    root = square_classes(tmp_path, {"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    assert load(root, image_size=8).warnings == ()
    (root / "test" / "a" / "1.png").write_bytes((root / "train" / "b" / "0.png").read_bytes())
    assert load(root, image_size=8).warnings == (
        "test images that are training images too, by pixel: 1 (test/a/1.png is train/b/0.png)",
    )


def test_a_class_without_test_images_is_a_warning(tmp_path):
    data = load(square_classes(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2}), image_size=8)
    assert data.warnings == ("classes without test images: 1, first b",)


def test_published_sets_keep_their_own_test_images(tmp_path, monkeypatch):
    arrays = write_fashion_mnist(tmp_path, monkeypatch)
    data = load_data(DataConfig(name="fashion-mnist"), seed=0, default_root=tmp_path)
    assert keys(data.test) == [image.tobytes() for image in arrays["t10k"][0]]
    assert sorted(keys(data.train)) == sorted(image.tobytes() for image in arrays["train"][0])
    assert len(data.weight_half) == len(data.arch_half) == 20

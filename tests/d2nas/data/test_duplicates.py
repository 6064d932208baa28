"""Images that are there twice: counted and named, by pixel in memory, by file where streamed."""

import shutil
from pathlib import Path

import pytest
from image_files import write_classes, write_image
from PIL import Image

from d2nas.config import build_config
from d2nas.data import sources as data_sources
from d2nas.data.duplicates import Compared, duplicate_lines
from d2nas.data.images import ImageData, load_data

COUNTS = {f"{part}/{name}": 6 for part in ("train", "test") for name in "ab"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path, COUNTS)


def loaded(root: Path, *, stream: str, cache=None) -> ImageData:
    values = {"name": "folder", "root": str(root), "stream": stream, "image_size": 9}
    return load_data(build_config({"data": values}).data, default_root=root, cache=cache)


LEAK = "test images that are training images too, by {}: {}"
TWO_LABELS = "training images that are there under another label too, by {}: {}"


@pytest.mark.parametrize(("stream", "by"), [("never", "pixel"), ("always", "file")])
def test_test_images_and_labels_that_contradict_are_counted_and_named(
    folder: Path, stream: str, by: str
) -> None:
    assert loaded(folder, stream=stream).warnings == ()
    for index in range(5):
        shutil.copy(folder / "train/b/000.png", folder / f"test/a/00{index}.png")
    shutil.copy(folder / "train/a/000.png", folder / "train/b/a copy\n.png")
    leaked = "; ".join(f"test/a/00{index}.png is train/b/000.png" for index in range(3))
    twice = r"train/a/000.png as a and train/b/a copy\n.png as b"
    assert loaded(folder, stream=stream).warnings == (
        f"{LEAK.format(by, 5)} ({leaked})",
        f"{TWO_LABELS.format(by, 1)} ({twice})",
    )


def test_the_same_picture_in_another_file_is_found_by_its_pixels(folder: Path) -> None:
    picture = Image.open(folder / "train/b/000.png")
    picture.save(folder / "test/a/000.bmp")
    assert "test/a/000.bmp is train/b/000.png" in loaded(folder, stream="never").warnings[0]
    assert loaded(folder, stream="always").warnings == ()


def test_a_copy_under_the_same_label_is_no_contradiction(folder: Path) -> None:
    shutil.copy(folder / "train/a/000.png", folder / "train/a/copy.png")
    for stream in ("never", "always"):
        assert loaded(folder, stream=stream).warnings == ()


def test_a_stream_is_compared_without_reading_a_file_again(folder: Path, monkeypatch) -> None:
    class Cache(dict[str, str]):
        set = dict.__setitem__

    cache = Cache()
    expected = loaded(folder, stream="always", cache=cache)
    monkeypatch.setattr(data_sources, "hash_file", None)
    again = loaded(folder, stream="always", cache=cache)
    assert (again.digest, again.warnings) == (expected.digest, expected.warnings)


def test_images_without_files_are_counted() -> None:
    train = Compared([b"1", b"2", b"1"], [0, 1, 1], ())
    lines = duplicate_lines(
        train, Compared([b"2", b"3"], [0, 0], ()), ("cat", "dog"), evaluation="held-out", by="pixel"
    )
    assert lines == [
        "held-out images that are training images too, by pixel: 1",
        "training images that are there under another label too, by pixel: 1 (cat and dog)",
    ]


def test_images_drawn_for_the_test_are_compared_too(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 4, "b": 4})
    for index in range(20):
        write_image(root / "a" / f"same{index:02}.png", seed=1000)
    assert "test images that are training images too, by pixel: " in "".join(
        loaded(root, stream="never").warnings
    )

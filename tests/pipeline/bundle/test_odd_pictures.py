"""Pictures of every kind in a real folder: one preparation for training and for serving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import write_classes
from odd_pictures import FRAMES, GREY, NOT_PICTURES, SIZE, cut_off, tiff, write_all

from d2nas.config import DataConfig
from d2nas.data import preprocess
from d2nas.data.decoding import Decoding, read_header, strict_pillow
from d2nas.data.files import read_files
from d2nas.data.images import load_data
from d2nas.errors import ConfigError
from pipeline.bundle.prediction import read_pictures
from pipeline.onnx_io.preparation import prepare_content

SETTINGS: dict[str, Any] = {
    "channels": 3,
    "image_size": SIZE,
    "fit": "crop",
    "crop_fraction": 1.0,
    "dtype": "uint8",
}


def test_every_kind_becomes_the_pixels_that_it_means(tmp_path: Path) -> None:
    odd = write_all(tmp_path)
    assert len(odd) > 70
    images, _ = read_files(tmp_path, [one.name for one in odd], Decoding(SIZE, 3))
    for one, image in zip(odd, images.permute(0, 2, 3, 1).numpy(), strict=True):
        difference = np.abs(image.astype(int) - one.pixels.astype(int)).max()
        assert difference <= one.tolerance, one.name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_training_and_serving_prepare_the_same_pixels(
    tmp_path: Path, channels: int, fit: str
) -> None:
    odd = write_all(tmp_path)
    settings = {**SETTINGS, "channels": channels, "fit": fit, "image_size": 13}
    paths = [tmp_path / one.name for one in odd]
    decoding = Decoding(13, channels, fit)
    trained, _ = read_files(tmp_path, [one.name for one in odd], decoding)
    wanted = trained.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(preprocess.prepare(paths, settings), wanted)
    predicted = read_pictures(paths, settings)
    assert np.array_equal(predicted, wanted)
    for one, image in zip(odd, wanted, strict=True):
        served = prepare_content(one.content, settings, what="request")
        assert np.array_equal(served[0], image), one.name


def test_what_is_no_picture_is_refused_wherever_it_is_read(tmp_path: Path) -> None:
    bad = NOT_PICTURES | cut_off()
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="request: cannot be read"):
            prepare_content(content, SETTINGS, what="request")
        with pytest.raises(preprocess.DECODE_ERRORS):
            preprocess.prepare([tmp_path / name], SETTINGS)
    with pytest.raises(ConfigError) as raised:
        read_files(tmp_path, sorted(bad), Decoding(8, 3))
    assert [line.partition(": ")[0] for line in raised.value.details] == sorted(bad)


def test_further_frames_are_told(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 4, "b": 4})
    odd = write_all(root / "a")
    with strict_pillow():
        told = [one.name for one in odd if read_header(root / "a" / one.name).has_frames]
    assert set(told) == {one.name for one in odd} & set(FRAMES)
    data = load_data(DataConfig(name="folder", root=str(root)), default_root=root)
    note = f"{len(told)} of {len(odd) + 8} pictures have several frames or pages: the first is used"
    assert note in data.warnings


def test_further_frames_that_are_damaged_cost_nothing(tmp_path: Path) -> None:
    odd = next(one for one in write_all(tmp_path) if one.name == "frames.gif")
    (tmp_path / "cut.gif").write_bytes(odd.content[:-30])
    with strict_pillow():
        assert read_header(tmp_path / "cut.gif").has_frames
    images, _ = read_files(tmp_path, ["cut.gif"], Decoding(SIZE, 3))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), odd.pixels)


def test_deep_grey_whose_zero_is_white_is_told(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 4, "b": 4}, mode="L")
    deep = GREY.astype("<u2") * 257
    (root / "a" / "white.tif").write_bytes(tiff(65535 - deep, 16, 0))
    (root / "a" / "black.tif").write_bytes(tiff(deep, 16, 1))
    data = load_data(DataConfig(name="folder", root=str(root)), default_root=root)
    assert any(
        line.startswith("1 of 10 pictures are 16-bit TIFF whose 0") for line in data.warnings
    )


def test_what_systems_leave_in_folders_is_no_picture(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {"a": 4, "b": 4})
    before = load_data(DataConfig(name="folder", root=str(root)), default_root=root)
    for name in (
        *("__MACOSX/a/._x.jpg", "a/.DS_Store", "a/._000.png", "b/Thumbs.db", "b/desktop.ini"),
        *(".ipynb_checkpoints/x.png", "a/.ipynb_checkpoints/000-checkpoint.png", "a/@eaDir/x.jpg"),
        *("$RECYCLE.BIN/$R1.jpg", "System Volume Information/x.png", ".git/x.png"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"none")
    after = load_data(DataConfig(name="folder", root=str(root)), default_root=root)
    assert (after.digest, after.class_names) == (before.digest, ("a", "b"))
    assert after.warnings == before.warnings

"""Decoding: every kind of picture becomes the promised pixels, every bad file a named error."""

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
from image_files import noise, write_image
from PIL import Image, features

from d2nas.data import decoding as image_decoding
from d2nas.data.decoding import Decoding, fit_image, is_grey, read_image, strict_pillow
from d2nas.errors import ConfigError, StorageError

OPTIONAL = [
    *(["avif"] if features.check("avif") else []),
    *(["jp2"] if features.check("jpg_2000") else []),
]
"""Suffixes of formats that not every Pillow reads."""


def pixels_of(path, decoding):
    with strict_pillow():
        return read_image(path, decoding)[0].astype(int)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


# --- colour and depth ---------------------------------------------------------------------------


def test_colour_and_grey_pixels_arrive_unchanged(tmp_path):
    colour, grey = noise(1, 9, 9, 3), noise(2, 9, 9)
    path = save(tmp_path / "a.png", colour)
    assert np.array_equal(pixels_of(path, Decoding(9, 3)), colour)
    path = save(tmp_path / "b.png", grey)
    assert np.array_equal(pixels_of(path, Decoding(9, 1)), grey)
    assert np.array_equal(pixels_of(path, Decoding(9, 3)), np.stack([grey] * 3, axis=2))


def test_colour_becomes_grey_by_luma(tmp_path):
    primaries = np.eye(3, dtype=np.uint8)[None] * 255
    path = save(tmp_path / "a.png", np.repeat(primaries, 3, axis=0))
    assert pixels_of(path, Decoding(3, 1))[0].tolist() == [76, 150, 29]


def test_transparency_is_laid_over_black(tmp_path):
    pixels = np.full((4, 4, 4), 200, dtype=np.uint8)
    pixels[..., 3] = [0, 51, 102, 255]
    path = save(tmp_path / "a.png", pixels)
    assert pixels_of(path, Decoding(4, 3))[0, :, 0].tolist() == [0, 40, 80, 200]
    assert pixels_of(path, Decoding(4, 1))[0].tolist() == [0, 40, 80, 200]
    Image.fromarray(pixels).convert("LA").save(path)
    assert pixels_of(path, Decoding(4, 1))[0].tolist() == [0, 40, 80, 200]


def test_palettes_are_looked_up_and_their_transparent_entry_is_black(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert pixels_of(tmp_path / "a.png", Decoding(2, 3)).tolist() == expected
    image.save(tmp_path / "b.png", transparency=1)
    expected[0][1] = expected[1][1] = [0, 0, 0]
    assert pixels_of(tmp_path / "b.png", Decoding(2, 3)).tolist() == expected


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path, suffix):
    values = np.array([[0, 128, 129], [256, 32768, 40000], [65406, 65407, 65535]])
    path = save(tmp_path / f"a.{suffix}", values.astype(np.uint16))
    expected = [[0, 0, 1], [1, 128, 156], [254, 255, 255]]
    assert pixels_of(path, Decoding(3, 1)).tolist() == expected
    assert is_grey(path)


def test_black_and_white_spans_the_whole_range(tmp_path):
    path = save(tmp_path / "a.png", np.array([[True, False], [False, True]]))
    assert pixels_of(path, Decoding(2, 1)).tolist() == [[255, 0], [0, 255]]
    assert is_grey(path)


def test_print_colours_are_converted(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(path)
    assert pixels_of(path, Decoding(4, 3))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "values",
    [np.ones((4, 4), np.float32), np.full((4, 4), 70000, np.int32), -np.eye(4, dtype="i4")],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, values):
    path = save(tmp_path / "a.tif", values)
    with pytest.raises(ConfigError, match=r"a\.tif: cannot be read as an image"):
        pixels_of(path, Decoding(4, 1))


@pytest.mark.parametrize(
    ("mode", "grey"), [("L", True), ("LA", True), ("1", True), ("RGB", False), ("P", False)]
)
def test_is_grey_goes_by_the_header(tmp_path, mode, grey):
    assert is_grey(write_image(tmp_path / "a.png", mode=mode)) is grey


def test_the_orientation_in_the_exif_data_is_applied(tmp_path):
    pixels = noise(3, 8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", pixels, exif=exif)
    assert np.array_equal(pixels_of(path, Decoding(8, 3)), np.rot90(pixels, -1))


def test_damaged_exif_data_do_not_cost_the_picture(tmp_path):
    pixels = noise(3, 8, 8, 3)
    path = save(tmp_path / "a.png", pixels, exif=b"Exif\0\0MM\0*\xff\xff")
    assert np.array_equal(pixels_of(path, Decoding(8, 3)), pixels)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels_of(tmp_path / "a.gif", Decoding(8, 3))[0, 0].tolist() == [255, 0, 0]


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(64, 48), (48, 64), (33, 100), (32, 32), (20, 31), (101, 33), (7, 5)]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_shorter_side_is_resized_and_the_centre_cut_out(size, mode):
    from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

    image = Image.fromarray(noise(4, size[1], size[0], 3)).convert(mode)
    usual = Compose([Resize(32, InterpolationMode.BILINEAR), CenterCrop(32)])
    got = fit_image(image, Decoding(32, len(image.getbands())))
    difference = np.abs(got.astype(int) - np.asarray(usual(image)).astype(int))
    assert got.shape[:2] == (32, 32)
    assert difference.max() <= 1  # the usual way rounds once more between resizing and cutting


@pytest.mark.parametrize("size", [(28, 28), (5, 9), (64, 32), (31, 100), (32, 32), (500, 1)])
def test_padding_keeps_small_images_as_they_are_and_shrinks_large_ones(size):
    image = Image.fromarray(noise(4, size[1], size[0], 3))
    got = fit_image(image, Decoding(32, 3, fit="pad"))
    assert got.shape == (32, 32, 3)
    scale = min(1.0, 32 / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = (32 - width) // 2, (32 - height) // 2
    wanted = image.resize((width, height), Image.Resampling.BILINEAR)
    assert (got[top : top + height, left : left + width] == np.asarray(wanted)).all()
    outside = np.ones((32, 32), bool)
    outside[top : top + height, left : left + width] = False
    assert (got[outside] == 0).all()


def test_resizing_is_antialiased():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    got = fit_image(Image.fromarray(board.astype(np.uint8)), Decoding(8, 1))
    assert got.min() > 100
    assert got.max() < 155


def test_a_very_long_picture_costs_no_more_than_its_own_pixels(tmp_path, monkeypatch):
    # Resizing first and cutting later would make it 32 x 1,600,000.
    made = []
    resize = Image.Image.resize

    def watched(self, size, *arguments, **options):
        made.append(size)
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    path = save(tmp_path / "a.png", np.full((1, 50_000), 77, dtype=np.uint8))
    assert pixels_of(path, Decoding(32, 1)).tolist() == [[77] * 32] * 32
    assert made == [(32, 32)]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("avif", {"quality": 100, "subsampling": "4:4:4"}),
        ("jp2", {"irreversible": False}),
    ],
)
def test_formats_that_not_every_pillow_reads_are_read_where_it_does(tmp_path, suffix, options):
    if suffix not in OPTIONAL:
        pytest.skip("this Pillow does not read it")
    colour = np.repeat(np.repeat(noise(1, 4, 4, 3), 8, axis=0), 8, axis=1)
    path = save(tmp_path / f"a.{suffix}", colour, **options)
    assert not is_grey(path)
    assert np.abs(pixels_of(path, Decoding(32, 3)) - colour).max() <= (3 if suffix == "avif" else 0)


def test_of_several_pictures_in_a_jpeg_the_first_counts(tmp_path):
    first, second = (Image.fromarray(noise(seed, 16, 16, 3)) for seed in (1, 2))
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second])
    first.save(tmp_path / "a.jpg")
    expected = pixels_of(tmp_path / "a.jpg", Decoding(16, 3))
    assert np.array_equal(pixels_of(tmp_path / "a.mpo", Decoding(16, 3)), expected)


def test_a_decoder_that_is_missing_is_not_asked_for(tmp_path):
    """Pillow's ``Image.open`` raises ``KeyError`` for a format that it does not know."""
    program = (
        "from PIL import features\n"
        "features.modules.pop('avif', None)\n"
        "features.codecs['jpg_2000'] = ('absent', None)\n"
        "from d2nas.data.preprocess import FORMATS\n"
        "print(*FORMATS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"]


# --- bad files ----------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_file(tmp_path):
    path = write_image(tmp_path / "a.png")
    _, found = read_image(path, Decoding(8, 3))
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no picture", b"%!PS-Adobe-3.0 EPSF"])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (is_grey, lambda path: pixels_of(path, Decoding(8, 3))):
        with pytest.raises(ConfigError, match=r"bad\.png: cannot be read as an image") as raised:
            read(path)
        assert "0x" not in str(raised.value)
        assert raised.value.hint


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif", "ppm", *OPTIONAL])
def test_a_cut_off_file_is_named(tmp_path, suffix):
    path = write_image(tmp_path / f"bad.{suffix}", size=(40, 40))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ConfigError, match=rf"bad\.{suffix}: "):
        pixels_of(path, Decoding(8, 3))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "ppm", *OPTIONAL])
def test_damaged_bytes_give_pixels_or_a_named_error(tmp_path, suffix):
    path = write_image(tmp_path / f"bad.{suffix}", size=(20, 20))
    good, draw, refusals = path.read_bytes(), random.Random(5), []
    for _ in range(100):
        content = bytearray(good)
        for _ in range(draw.choice((1, 3, 10))):
            content[draw.randrange(min(len(content), 300))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            assert pixels_of(path, Decoding(8, 3)).shape == (8, 8, 3)
        except ConfigError as error:
            refusals.append(str(error))
    assert refusals
    assert all(f"bad.{suffix}: " in line and "\n" not in line for line in refusals)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", np.zeros((40, 40), dtype=np.uint8))
    for limit in (1599, 700):  # Pillow itself only warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ConfigError, match=r"bomb\.png: .*exceeds limit"):
            pixels_of(path, Decoding(8, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1600)
    assert pixels_of(path, Decoding(8, 1)).shape == (8, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_outside_strict_pillow_a_bomb_would_be_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", np.zeros((40, 40), dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1599)
    assert read_image(path, Decoding(8, 1))[0].shape == (8, 8)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png")
    monkeypatch.setattr(image_decoding, "MAX_FILE_BYTES", path.stat().st_size)
    read_image(path, Decoding(8, 3))
    monkeypatch.setattr(image_decoding, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(ConfigError, match=r"a\.png: \d+ bytes, at most"):
        read_image(path, Decoding(8, 3))


def test_an_unreadable_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png", Decoding(8, 3))

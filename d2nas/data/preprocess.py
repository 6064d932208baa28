"""Prepare pictures for the model as in its training. Needs Pillow (10.1 or newer) and numpy.

    import preprocess

    images = preprocess.prepare(["cat.jpg"])  # as model.onnx takes them

A bundle holds this file as it is, beside the ``preprocess.json`` that it reads: the settings, and
the arithmetic in words. d2nas itself prepares pictures with these functions.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

# Some builds of Pillow lack these decoders, and older ones do not know the first.
_OPTIONAL_FORMATS = (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
FORMATS = (
    *("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"),
    *(
        name
        for name, feature in _OPTIONAL_FORMATS
        if feature in (*features.modules, *features.codecs) and features.check(feature)
    ),
)
SIXTEEN_BIT_MODES = frozenset(("I", "I;16", "I;16L", "I;16B", "I;16N"))
# What Pillow's decoders raise, in one version or another, for damaged files.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def prepare(
    pictures: Iterable[str | Path | BinaryIO], settings: Mapping[str, Any] | None = None
) -> NDArray[Any]:
    """Return pictures (paths or opened files) as the model takes them: one batch.

    float32 [N, channels, size, size], or uint8 [N, size, size, channels] for a model that takes
    pixels. ``settings`` is the content of ``preprocess.json``; by default it is read beside this
    file. Raises one of ``DECODE_ERRORS`` for a picture that cannot be read.
    """
    known = read_settings() if settings is None else settings
    return normalise(np.stack([decode(picture, known) for picture in pictures]), known)


def read_settings(path: str | Path | None = None) -> dict[str, Any]:
    """Return the content of ``preprocess.json``: the one at ``path``, or beside this file."""
    where = Path(__file__).with_name("preprocess.json") if path is None else Path(path)
    settings: dict[str, Any] = json.loads(where.read_text(encoding="utf-8"))
    return settings


def decode(picture: str | Path | BinaryIO, settings: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a picture's pixels, uint8 [size, size, channels]. Its first frame counts."""
    with Image.open(picture, formats=FORMATS) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")
        image.load()
        whole = eight_bit_colours(upright(image), settings["channels"])
    pixels = fit(whole, settings["image_size"], settings["fit"], settings["crop_fraction"])
    return pixels.reshape(*pixels.shape[:2], settings["channels"])


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image  # damaged EXIF data beside good pixels: common, and says nothing


def eight_bit_colours(image: Image.Image, channels: int) -> Image.Image:
    """Return an image as 8-bit grey (1 channel) or RGB (3).

    Raises ``ValueError`` for pixels whose range is not known.
    """
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, size: int, how: str, crop_fraction: float) -> NDArray[np.uint8]:
    """Return the pixels of an image made ``size`` x ``size``: cropped, or padded with black."""
    if how == "pad":
        image = _padded(image, size)
    elif image.size != (size, size) or crop_fraction < 1:
        # Both at once, so that a very long image costs no more than a square one.
        box = centre_box(image.width, image.height, size, crop_fraction)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


def centre_box(
    width: int, height: int, size: int, crop_fraction: float
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the part that becomes the square, in source pixels."""
    resized, shorter = round(size / crop_fraction), min(width, height)
    starts, ends = [], []
    for side in (width, height):
        scaled = resized * side // shorter
        start, factor = round((scaled - size) / 2), side / scaled
        starts.append(start * factor)
        ends.append(min((start + size) * factor, side))
    return starts[0], starts[1], ends[0], ends[1]


def normalise(pixels: NDArray[np.uint8], settings: Mapping[str, Any]) -> NDArray[Any]:
    """Return pixels [N, size, size, channels] as the model takes them."""
    if settings["dtype"] == "uint8":
        return pixels  # the model itself does what follows
    planes = np.ascontiguousarray(np.moveaxis(pixels, 3, 1)).astype(np.float32)
    planes /= np.float32(255)
    for channel, (mean, std) in enumerate(zip(settings["mean"], settings["std"], strict=True)):
        planes[:, channel] -= np.float32(mean)
        planes[:, channel] /= np.float32(std)
    return planes


def _padded(image: Image.Image, size: int) -> Image.Image:
    longer = max(image.size)
    if longer > size:
        # No side may vanish, however thin the image is.
        width, height = (max(1, round(side * size / longer)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    whole = Image.new(image.mode, (size, size))
    whole.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return whole

"""Random crops and colours of training images that are decoded as they are read."""

import io
import math
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .decoding import Decoding, _content, _problems_of
from .preprocess import FORMATS, eight_bit_colours, upright


def read_random_crop(
    path: Path, decoding: Decoding, *, color_jitter: float, seed: int
) -> NDArray[np.uint8]:
    """Return a random part of an image, resized to the square wanted, its colours changed.

    8 to 100 % of the area with sides of 3:4 to 4:3 (Szegedy et al., 2015, as torchvision draws
    it), then brightness, contrast and saturation by a factor of up to 1 +- ``color_jitter`` and hue
    by up to half of it, in random order. A function of the file and ``seed``. Raises as
    ``read_image``.
    """
    draws = random.Random(seed)
    with _problems_of(path), Image.open(io.BytesIO(_content(path)), formats=FORMATS) as image:
        image.load()
        picture = eight_bit_colours(upright(image), decoding.channels)
        box = _random_box(picture.size, draws)
        picture = picture.resize((decoding.size, decoding.size), Image.Resampling.BILINEAR, box=box)
        if color_jitter:
            picture = _jittered(picture, color_jitter, draws)
    return np.asarray(picture)


def _random_box(
    image_size: tuple[int, int], draws: random.Random
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a random part; the centre where ten draws fail."""
    width, height = image_size
    for _ in range(10):
        area = width * height * draws.uniform(0.08, 1.0)
        ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = draws.randint(0, width - wide), draws.randint(0, height - high)
            return left, top, left + wide, top + high
    wide = min(width, max(1, round(height * 4 / 3)))
    high = min(height, max(1, round(width * 4 / 3)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _jittered(picture: Image.Image, amount: float, draws: random.Random) -> Image.Image:
    from torchvision.transforms import functional

    changes = [
        (functional.adjust_brightness, draws.uniform(1 - amount, 1 + amount)),
        (functional.adjust_contrast, draws.uniform(1 - amount, 1 + amount)),
        (functional.adjust_saturation, draws.uniform(1 - amount, 1 + amount)),
        (functional.adjust_hue, draws.uniform(-amount / 2, amount / 2)),
    ]
    draws.shuffle(changes)
    for change, strength in changes:
        picture = change(picture, strength)
    return picture

"""The golden picture: a file with odd sides that shows how pictures are prepared."""

import io

import numpy as np
from PIL import Image

PICTURE_FILE = "golden.png"
_ORIENTATION, _QUARTER_TURN = 0x0112, 6
_LARGEST = 224


def golden_picture(image_size: int) -> bytes:
    """Return a PNG that a preparation gets right only if all of it is right.

    It is neither square nor even nor opaque, and its EXIF data say that it lies on its side. Drawn
    by integer arithmetic, it needs no data set: those of arrays have no pictures.
    """
    base = min(image_size, _LARGEST)
    width, height = 3 * base + 1 - base % 2, 2 * base - 1
    y, x = np.indices((height, width))
    ramps = (x * 255 // max(1, width - 1), y * 255 // max(1, height - 1))
    board = (x // 3 + y // 5) % 2 * 255
    opacity = 255 - x * y * 200 // (width * height)
    pixels = np.stack([*ramps, board, opacity], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[_ORIENTATION] = _QUARTER_TURN
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()

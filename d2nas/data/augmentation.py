"""Augmentation of training images: shifts, flips, cutout and erasing of batches, random crops and
colours of images that are decoded as they are read.
"""

import io
import math
import random
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..devices import send
from .decoding import Decoding, decode_problems, read_content
from .preprocess import FORMATS, eight_bit_colours, upright

_ERASED, _ASPECTS = (0.02, 1 / 3), (0.3, 3.3)
"""Of an erased rectangle: its part of the image's area, and its height over its width."""


def shift_pixels(crop_padding: int | Literal["auto"], image_size: int) -> int:
    """Return how far images are shifted at most: ``data.crop_padding`` with auto resolved."""
    return min(4, image_size // 8) if crop_padding == "auto" else crop_padding


def cutout_pixels(cutout: int | Literal["auto"], image_size: int) -> int:
    """Return the side of the square that is hidden: ``retrain.cutout`` with auto resolved."""
    return min(16, image_size // 2) if cutout == "auto" else cutout


def strong_augmentation(
    image_size: int, crop_padding: int | Literal["auto"], cutout: int | Literal["auto"]
) -> list[str]:
    """Say in printable lines where shift or cutout leave little of images of this size."""
    lines = []
    shift, hidden = shift_pixels(crop_padding, image_size), cutout_pixels(cutout, image_size)
    if shift > image_size / 4:
        lines.append(
            f"data.crop_padding={crop_padding} shifts images of {image_size} pixels by up to "
            f"{shift / image_size:.0%} of their side: auto shifts by an eighth"
        )
    if hidden > 0.75 * image_size:
        lines.append(
            f"retrain.cutout={cutout} hides most of images of {image_size} pixels, or all: auto "
            "hides a square of half the side"
        )
    return lines


class Part(NamedTuple):
    """Some images of a whole batch: how many that has, and which they are."""

    num_whole: int
    own: slice


def augment_pixels(
    images_NCHW: Tensor,
    *,
    crop_padding: int,
    flip_probability: float,
    generator: torch.Generator,
    part: Part | None = None,
) -> Tensor:
    """Shift each image by up to ``crop_padding`` pixels in each direction, and flip some.

    uint8 in, uint8 out, on the images' device. Pixels that come from outside are 0, as when
    padding before normalisation (DARTS). The flip is horizontal, after the shift. Random numbers
    come from the CPU ``generator``, one shift and one flip per image of the whole batch, of which
    the images may be a ``part``.
    """
    num_images, num_channels, height, width = images_NCHW.shape
    part = part or Part(num_images, slice(None))
    shape = (2, part.num_whole)
    shifts_2N = torch.randint(-crop_padding, crop_padding + 1, shape, generator=generator)
    flips_N = torch.rand(part.num_whole, generator=generator) < flip_probability
    shifts_2N, flips_N = shifts_2N[:, part.own], flips_N[part.own]
    columns = torch.arange(width)
    rows_NH = torch.arange(height) + shifts_2N[0][:, None]
    columns_NW = torch.where(flips_N[:, None], width - 1 - columns, columns) + shifts_2N[1][:, None]
    device = images_NCHW.device
    rows_NH, columns_NW = send(rows_NH, device), send(columns_NW, device)
    inside_NH = (rows_NH >= 0) & (rows_NH < height)
    inside_NW = (columns_NW >= 0) & (columns_NW < width)
    moved_NCHW = images_NCHW[
        torch.arange(num_images, device=device)[:, None, None, None],
        torch.arange(num_channels, device=device)[None, :, None, None],
        rows_NH.clamp(0, height - 1)[:, None, :, None],
        columns_NW.clamp(0, width - 1)[:, None, None, :],
    ]
    return moved_NCHW * (inside_NH[:, None, :, None] & inside_NW[:, None, None, :])


def cutout(
    inputs_NCHW: Tensor, *, size: int, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Set a square of ``size`` pixels per image to 0: the mean, after normalisation.

    Its centre is uniform over the image; what lies outside is cut off (DeVries and Taylor, 2017).
    Returns new float images on the same device; random numbers come from the CPU ``generator``, as
    for ``augment_pixels``.
    """
    num_images, _, height, width = inputs_NCHW.shape
    part = part or Part(num_images, slice(None))
    shape = (part.num_whole,)
    tops_N = torch.randint(0, height, shape, generator=generator)[part.own] - size // 2
    lefts_N = torch.randint(0, width, shape, generator=generator)[part.own] - size // 2
    rows_NH = torch.arange(height) - tops_N[:, None]
    columns_NW = torch.arange(width) - lefts_N[:, None]
    hidden_NH = send((rows_NH >= 0) & (rows_NH < size), inputs_NCHW.device)
    hidden_NW = send((columns_NW >= 0) & (columns_NW < size), inputs_NCHW.device)
    return inputs_NCHW.masked_fill(hidden_NH[:, None, :, None] & hidden_NW[:, None, None, :], 0.0)


def random_erasing(
    inputs_NCHW: Tensor, *, probability: float, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Set a rectangle of some images to 0, the mean after normalisation (arXiv 1708.04896).

    Its area is 2 to 33 % of the image's, its sides 0.3 to 3.3 of each other, both before rounding
    to pixels. Returns new images.
    """
    num_images, _, height, width = inputs_NCHW.shape
    part = part or Part(num_images, slice(None))
    chosen_N = torch.rand(part.num_whole, generator=generator) < probability
    areas_N = torch.empty(part.num_whole).uniform_(*_ERASED, generator=generator) * height * width
    low, high = map(math.log, _ASPECTS)
    aspects_N = torch.empty(part.num_whole).uniform_(low, high, generator=generator).exp()
    places_2N = torch.rand((2, part.num_whole), generator=generator)
    heights_N = (areas_N * aspects_N).sqrt().round().clamp(1, height)
    widths_N = (areas_N / aspects_N).sqrt().round().clamp(1, width)
    tops_N = (places_2N[0] * (height - heights_N + 1)).floor()
    lefts_N = (places_2N[1] * (width - widths_N + 1)).floor()
    rows_NH = torch.arange(height) - tops_N[:, None]
    columns_NW = torch.arange(width) - lefts_N[:, None]
    hidden_NH = (rows_NH >= 0) & (rows_NH < heights_N[:, None]) & chosen_N[:, None]
    hidden_NW = (columns_NW >= 0) & (columns_NW < widths_N[:, None])
    own_NH, own_NW = (send(one[part.own], inputs_NCHW.device) for one in (hidden_NH, hidden_NW))
    return inputs_NCHW.masked_fill(own_NH[:, None, :, None] & own_NW[:, None, None, :], 0.0)


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
    with (
        decode_problems(path),
        Image.open(io.BytesIO(read_content(path)), formats=FORMATS) as image,
    ):
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

"""Decode one image file into uint8 pixels of the wanted size and channels, or say why not."""

import contextlib
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import ConfigError, StorageError
from .faults import shown
from .preprocess import DECODE_ERRORS, FORMATS, SIXTEEN_BIT_MODES, eight_bit_colours, fit, upright

MAX_FILE_BYTES = 2**30

Result = TypeVar("Result")
_PHOTOMETRIC = 262
"""TIFF's tag of how values become shades; 0: the lowest is white."""
_GREY_MODES = SIXTEEN_BIT_MODES | {"1", "L", "LA"}


@dataclass(frozen=True, slots=True)
class Decoding:
    """Settings by which pictures become pixels: ``size`` x ``size``, grey (1 channel) or RGB (3).

    With ``fit="crop"`` the shorter side is resized to ``size / crop_fraction`` (bilinear,
    antialiased), then the centre is cut out. With ``"pad"`` an image whose longer side is above
    ``size`` is shrunk to it, and what is smaller stands in the middle of black.
    """

    size: int
    channels: int
    fit: str = "crop"
    crop_fraction: float = 1.0


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Make Pillow refuse images beyond its size guard, and keep its other warnings quiet.

    Hold it around all decoding, in the main thread: filters of warnings belong to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class Header(NamedTuple):
    """Start of an image file: pixels of its sides, whichever way up, and colours."""

    shorter: int
    longer: int
    mode: str
    """Pillow's name for what a pixel holds."""
    has_frames: bool = False
    """Whether there are further frames or pages, of which none is used."""
    is_inverted: bool = False
    """Whether it is 16-bit grey whose 0 is white, which Pillow reads as black."""

    @property
    def is_grey(self) -> bool:
        """Whether the image has no colour."""
        return self.mode in _GREY_MODES

    @property
    def has_sixteen_bits(self) -> bool:
        """Whether its levels of grey are more than the 256 that are used."""
        return self.mode in SIXTEEN_BIT_MODES


def read_header(path: Path) -> Header:
    """Read an image file's header. Raises ``ConfigError`` if unreadable."""
    with decode_problems(path), Image.open(path, formats=FORMATS) as image:
        tags = getattr(image, "tag_v2", {})
        inverted = image.mode in SIXTEEN_BIT_MODES and tags.get(_PHOTOMETRIC, 1) == 0
        size, mode = image.size, image.mode
        return Header(min(size), max(size), mode, _has_frames(image), inverted)


def _has_frames(image: Image.Image) -> bool:
    """Whether a file holds further pictures of the same rank: a camera's MPO holds previews."""
    if image.format == "MPO":
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except DECODE_ERRORS:
        return True  # what follows the first is damaged, and not used


def is_grey(path: Path) -> bool:
    """Tell by its header whether an image has no colour. Raises ``ConfigError`` if unreadable."""
    with decode_problems(path), Image.open(path, formats=FORMATS) as image:
        return image.mode in _GREY_MODES


def read_each(
    root: Path, paths: Sequence[str], read: Callable[[Path], Result]
) -> Iterator[Result | ConfigError]:
    """Yield what ``read`` returns for each of ``paths`` below ``root``, in order, or the
    ``ConfigError`` that it raises. Several are read at once; hold ``strict_pillow``.
    """

    def attempt(path: str) -> Result | ConfigError:
        try:
            return read(root / path)
        except ConfigError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield from threads.map(attempt, paths)


def check_decodes(path: Path) -> None:
    """Decode an image as ``read_image`` does, for its errors alone."""
    read_image(path, Decoding(8, 3))


def read_image(path: Path, decoding: Decoding) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels of ``fit_image`` and the SHA-256 of the file, from the same bytes.

    The first frame counts; the orientation in the EXIF data is applied. Raises ``ConfigError``
    naming a file that is damaged, too large or of another kind, ``StorageError`` if unreadable.
    """
    content = read_content(path)
    return decode_image(content, decoding, what=path), hashlib.sha256(content).hexdigest()


def decode_image(
    content: bytes,
    decoding: Decoding,
    *,
    what: Path | str,
    formats: Sequence[str] = FORMATS,
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Return the pixels of ``fit_image`` out of a file's bytes; ``what`` names it in errors.

    Raises ``ConfigError`` as ``read_image`` does, and for a picture of more than ``max_pixels``,
    which is not decoded. What a format's parts take is not limited by that: of TIFF a tile may be
    larger than the picture.
    """
    with (
        decode_problems(what, formats),
        Image.open(io.BytesIO(content), formats=[*formats]) as image,
    ):
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ConfigError(
                f"{shown(what)}: {image.width} x {image.height} pixels, at most {max_pixels:,} in "
                "all are supported here"
            )
        image.load()
        return fit_image(upright(image), decoding)


def fit_image(image: Image.Image, decoding: Decoding) -> NDArray[np.uint8]:
    """Convert a decoded image to uint8 ``size`` x ``size`` (x 3 for three channels).

    16-bit grey is divided by 257; transparency is laid over black; colour becomes grey by luma
    (ITU-R 601). Raises ``ValueError`` for floating-point pixels, whose range is unknown.
    """
    image = eight_bit_colours(image, decoding.channels)
    return fit(image, decoding.size, decoding.fit, decoding.crop_fraction)


def read_content(path: Path) -> bytes:
    """Return a regular file's bytes; raises ``ConfigError`` for others and too large ones."""
    try:
        # Non-blocking, because a named pipe would make the reader wait for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{shown(path)}: not a file")
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_FILE_BYTES:
                raise ConfigError(
                    f"{shown(path)}: {num_bytes} bytes, at most {MAX_FILE_BYTES} for one image"
                )
            return file.read()
    except OSError as error:
        raise StorageError(f"{shown(path)}: {error.strerror or error}") from error


@contextlib.contextmanager
def decode_problems(path: Path | str, formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """Raise what a decoder raises as ``ConfigError`` that names the image."""
    try:
        yield
    except DECODE_ERRORS as error:
        reason = shown(str(error) or type(error).__name__)
        if isinstance(error, UnidentifiedImageError):
            reason = f"none of {', '.join(formats)}"
        raise ConfigError(
            f"{shown(path)}: cannot be read as an image ({reason})", hint="repair or remove it"
        ) from error

"""Sizes of pictures, and the size that they are used at (headers only).

The rule, where ``data.image_size`` is not set for a folder: the largest size of ``SIZES`` to which
the median picture need not be enlarged. What is smaller than all of them keeps its own size.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from ..config import DataConfig
from ..config.registry import data_sets
from ..errors import ConfigError
from .decoding import Header, read_header, strict_pillow
from .folders import FolderListing
from .sources import list_config
from .subsample import spread_sample

SIZES: tuple[int, ...] = (*range(8, 32), 32, 64, 96, 128, 160, 224)
"""Sizes that are chosen: above 32 those in use, up to ImageNet's. The cost grows with the square,
so that whoever wants more says so.
"""
LOOKED_AT = 500
"""Pictures whose headers are read at most, spread over all. Half of the looked at are at least as
large as their median; of all pictures, 45 to 55 % are, 19 times in 20.
"""
RULE = (
    "by its pictures: the largest of 8 to 32, "
    f"{', '.join(str(size) for size in SIZES if size > 32)} that enlarges at most half of them"
)

_MUCH_LOST = 0.4
"""Part of the median picture's area; a photograph of 16:9 loses 0.44, one of 3:2 0.33."""
_OFTEN = 0.05
"""Part of the pictures that may lose more than half of their area and not be told."""


def stem_for(stem: str, image_size: int) -> str:
    """Resolve ``stem="auto"``: the ImageNet stem from 96 pixels on."""
    if stem != "auto":
        return stem
    return "imagenet" if image_size >= 96 else "cifar"


@dataclass(frozen=True)
class Pictures:
    """Headers of a data folder's pictures: all, or some spread over all."""

    count: int
    headers: tuple[Header, ...]
    problem: ConfigError | None = None
    """What is wrong with the first that could not be read; it is not among them."""

    @property
    def shorter(self) -> int:
        """The median of the shorter sides: at least half of the pictures are no smaller."""
        return median_low([header.shorter for header in self.headers])

    @property
    def longer(self) -> int:
        """The median of the longer sides."""
        return median_low([header.longer for header in self.headers])

    @property
    def most_elongated(self) -> Header:
        """The picture whose sides differ most."""
        return min(self.headers, key=lambda header: header.shorter / header.longer)

    @property
    def grey(self) -> int:
        """Number of pictures without colour."""
        return sum(header.is_grey for header in self.headers)

    def looked_at(self) -> str:
        """Return how many, for a person."""
        known, count = len(self.headers), self.count
        return f"{count:,} pictures" if known == count else f"{known:,} of {count:,} pictures"


@dataclass(frozen=True)
class ImageSize:
    """The size that images are used at, why, and what that does to the pictures."""

    size: int
    why: str
    config: DataConfig
    pictures: Pictures | None = None
    """Those of a folder."""
    listed: tuple[str, ...] = ()
    """What the listing of the folder tells, left-out files among it."""

    def lost(self, header: Header) -> float:
        """Return the part of a picture's area that the centre crop leaves out."""
        if self.config.fit == "pad":
            return 0.0
        return 1 - self.config.crop_fraction**2 * header.shorter / header.longer

    def enlarges(self, header: Header) -> bool:
        """Whether a picture must be enlarged."""
        return _enlarges(self.config, self.size, header.shorter)

    def line(self) -> str | None:
        """Say what the pictures are and what is made of them; None for a published set."""
        pictures = self.pictures
        if pictures is None:
            return None
        told = f"{pictures.looked_at()} have {pictures.shorter} x {pictures.longer} pixels (medians"
        told += f" of the sides), used at {self.size} x {self.size}"
        if self.config.fit == "pad":
            return f"{told}, padded with black"
        worst = pictures.most_elongated
        if self.lost(worst) < 0.01:
            return told
        return (
            f"{told}; the centre crop leaves out {self._median_lost(pictures):.0%} of the area "
            f"(median), {self.lost(worst):.0%} at {worst.shorter} x {worst.longer}"
        )

    def notes(self) -> tuple[str, ...]:
        """Return what a person should act on, one printable line each."""
        notes = list(self.listed)
        if self.pictures is not None:
            notes += [*self._size_notes(self.pictures), *_content_notes(self.config, self.pictures)]
        return tuple(notes)

    def facts(self) -> dict[str, Any] | None:
        """Return what ``line`` says as JSON data; None for a published set."""
        pictures = self.pictures
        if pictures is None:
            return None
        return {
            "count": pictures.count,
            "looked_at": len(pictures.headers),
            "median_shorter": pictures.shorter,
            "median_longer": pictures.longer,
            "lost_median": self._median_lost(pictures),
            "lost_worst": self.lost(pictures.most_elongated),
            "enlarged": sum(map(self.enlarges, pictures.headers)),
            "line": self.line(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the size, why it is that, and all that is told, as JSON data."""
        return {
            "image_size": self.size,
            "image_size_from": self.why,
            "pictures": self.facts(),
            "notes": list(self.notes()),
        }

    def _median_lost(self, pictures: Pictures) -> float:
        return median_low([self.lost(header) for header in pictures.headers])

    def _size_notes(self, pictures: Pictures) -> list[str]:
        notes = []
        known, size = len(pictures.headers), self.size
        enlarged = sum(map(self.enlarges, pictures.headers))
        if 2 * enlarged > known:
            own = choose_size(self.config, pictures)
            keys = f"data.image_size={own} or " if own < size else ""
            notes.append(
                f"pictures of {pictures.shorter} pixels (median shorter side) are enlarged to "
                f"{size}, which adds cost and no detail: {keys}data.fit=pad keeps theirs"
            )
        losses = [self.lost(header) for header in pictures.headers]
        halved = sum(lost > 0.5 for lost in losses)
        if median_low(losses) > _MUCH_LOST or halved > _OFTEN * known:
            worst = pictures.most_elongated
            notes.append(
                f"the centre crop leaves out more than half of {halved:,} of {known:,} pictures "
                f"({median_low(losses):.0%} of the median one's area, {self.lost(worst):.0%} at "
                f"{worst.shorter} x {worst.longer} pixels): data.fit=pad keeps all of it"
            )
        return notes


def image_size(config: DataConfig, default_root: Path) -> ImageSize:
    """Return the size at which the configured data set is used.

    Raises ``ConfigError`` for a folder that cannot be used.
    """
    if data_sets.find(config.name).is_folder:
        return folder_image_size(config, list_config(config, default_root))
    return _decided(config, None)


def folder_image_size(config: DataConfig, listing: FolderListing) -> ImageSize:
    """Return the size at which a folder's pictures are used, and what they are.

    Raises ``ConfigError`` if no picture that was looked at can be read.
    """
    return _decided(config, look_at(listing), tuple(listing.notes()))


def look_at(listing: FolderListing) -> Pictures:
    """Read the headers of at most ``LOOKED_AT`` pictures, whichever are readable.

    The sample depends on the listing alone: what it decides must not change with a run's seed.
    Raises ``ConfigError`` if none is readable.
    """
    files = listing.files
    headers, problem = [], None
    with strict_pillow():
        for index in sorted(spread_sample(len(files), LOOKED_AT, purpose="image size")):
            try:
                headers.append(read_header(listing.root / files[index].path))
            except ConfigError as error:
                problem = problem or error
    if not headers:
        raise problem or ConfigError(f"{listing.root}: no images")
    return Pictures(len(files), tuple(headers), problem)


def choose_size(config: DataConfig, pictures: Pictures) -> int:
    """Return the size that the rule chooses for these pictures."""
    side = pictures.longer if config.fit == "pad" else pictures.shorter
    fitting = [size for size in SIZES if not _needs_more(config, size, side)]
    return fitting[-1] if fitting else SIZES[0]


def _content_notes(config: DataConfig, pictures: Pictures) -> list[str]:
    known, grey = len(pictures.headers), pictures.grey
    deep = sum(header.has_sixteen_bits for header in pictures.headers)
    notes = []
    if config.channels == 1 and grey < known:
        notes.append(
            f"the colours of {known - grey:,} of {known:,} pictures are dropped (data.channels=1)"
        )
    if config.channels is None and 0 < grey < known:
        notes.append(
            f"{grey:,} of {known:,} pictures are grey and used as colour, as others have colour "
            "(classes may differ by that alone): data.channels=1 makes all grey"
        )
    if deep:
        notes.append(
            f"{deep:,} of {known:,} pictures have 16 bits a pixel, used as 8 (value / 257): levels "
            "are lost, and pictures of 10 or 12 bits come out nearly black"
        )
    if inverted := sum(header.is_inverted for header in pictures.headers):
        notes.append(
            f"{inverted:,} of {known:,} pictures are 16-bit TIFF whose 0 is white (photometric "
            "interpretation 0): they are used with black and white exchanged"
        )
    if frames := sum(header.has_frames for header in pictures.headers):
        notes.append(
            f"{frames:,} of {known:,} pictures have several frames or pages: the first is used"
        )
    return notes


def _decided(
    config: DataConfig, pictures: Pictures | None, listed: tuple[str, ...] = ()
) -> ImageSize:
    data_set = data_sets.find(config.name)
    if config.image_size is not None:
        size, why = config.image_size, "set by data.image_size"
    elif data_set.size is not None:
        size = data_set.size
        why = f"{data_set.title}'s usual" if data_set.is_folder else "the data set's own"
    else:
        assert pictures is not None
        size = choose_size(config, pictures)
        sides = f"{pictures.shorter} x {pictures.longer}"
        why = f"chosen from {pictures.looked_at()}: median {sides}"
    return ImageSize(size, why, config, pictures, listed)


def _enlarges(config: DataConfig, size: int, shorter: int) -> bool:
    return config.fit == "crop" and _needs_more(config, size, shorter)


def _needs_more(config: DataConfig, size: int, side: int) -> bool:
    """Whether a side has fewer pixels than are made of it."""
    fraction = 1.0 if config.fit == "pad" else config.crop_fraction
    return round(size / fraction) > side

"""Data sets, one record each: facts, official files, and how files become arrays.

Each module of this folder registers its own; so may any other code, before the name is used:

    register_data_set(DataSet(name="mine", title="Mine", ..., read=read))

An installed package says by an entry point ``d2nas.datasets`` which of its modules does so; the
entry's name is the data set's. Modules here load neither torch nor numpy: a run that has nothing to
do asks for facts alone. A reader loads what it needs when it is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...config.registry import data_sets
from ...errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OfficialFile(NamedTuple):
    """One official file: its place under the data root, and its checksum.

    ``checksum`` is ``md5:`` or ``sha256:`` of the file, or ``sha256-unzipped:`` of its content,
    which holds whatever program wrote the gzip container.
    """

    path: str
    checksum: str


class Arrays(NamedTuple):
    """What a reader returns: all images, training images first, then test images."""

    class_names: tuple[str, ...]
    images: "NDArray[np.uint8]"
    """N x size x size, or N x size x size x 3."""
    labels: "NDArray[np.integer[Any]]"
    """N numbers of classes."""


Reader = Callable[[Mapping[str, Path]], Arrays]
"""From the official files, by their ``OfficialFile.path``, to arrays; their checksums are right."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Facts of one data set: images in arrays, or pictures in folders where ``read`` is None."""

    name: str
    """As in ``data.name``."""
    title: str
    num_train: int | None = None
    """Training images; None: whatever a folder of the user's holds."""
    num_test: int | None = None
    """Test images of its own; 0: ``data.test_fraction`` takes some of the others; None: what a
    folder of the user's holds."""
    channels: int | None = None
    size: int | None = None
    """Height and width in pixels at which it is used; None: decided by its pictures."""
    num_classes: int | None = None
    read: Reader | None = None
    files: tuple[OfficialFile, ...] = ()
    """Empty for a set that is computed, and for folders."""
    download: Callable[[Path], object] | None = None
    """Writes the official files below a folder."""
    also_from: str | None = None
    """Another way to get the files: one line."""
    folder: Path | None = None
    """Folder of the files that come with the package; None: they lie below the data root."""
    revision: int = 1
    """Grows when ``read`` gives other images, so that old results are not used again."""
    digest: str | None = None
    """SHA-256 that stands for the content; None: it follows from the checksums, or the images."""
    needs_splits: bool = False
    """Whether a folder needs ``train`` and ``val`` (or ``test``)."""
    always_streams: bool = False
    """Whether pictures are streamed by default, however few they are."""

    @property
    def is_folder(self) -> bool:
        """Whether it is files of pictures, which are listed and may be streamed."""
        return self.read is None

    @property
    def is_any_folder(self) -> bool:
        """Whether it is no certain data set, but pictures of the user's own."""
        return self.is_folder and self.num_train is None

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of the configuration that change nothing."""
        keys: list[str] = []
        if not self.is_folder:
            keys += ["data.on_error", "data.stream", "data.workers"]
            keys += [] if self.files and self.folder is None else ["data.root"]
        return (*keys, "data.test_fraction") if self.num_test else tuple(keys)


def register_data_set(data_set: DataSet) -> DataSet:
    """Register a data set under its name.

    Raises ``ConfigError`` for a name that is invalid or taken, and for missing facts.
    """
    if not isinstance(data_set, DataSet):
        raise ConfigError(f"{data_set!r} is no DataSet")
    needed = ("size", "channels", "num_classes", "num_train")
    if data_set.read is not None:
        for fact in needed:
            value = getattr(data_set, fact)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"the data set {data_set.name}: invalid {fact}: {value!r}")
    return data_sets.add(data_set.name, data_set)

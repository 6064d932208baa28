"""The product as a library: a whole run, and a bundle that answers pictures.

    from d2nas import load_bundle, run

    bundle = run("quickstart", {"retrain.epochs": 2})
    bundle.predict(["picture.png"])

``load_bundle("exported/quickstart").report["accuracy"]`` asks a bundle that is there.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2nas.data.decoding import Decoding, fit_image
from d2nas.data.preprocess import upright
from d2nas.errors import ConfigError, D2NasError

from .bundle.pictures import Picture, pictures_at
from .bundle.prediction import TOP, Prediction, check_golden, open_model, predictions
from .bundle.reader import Bundle, open_bundle
from .onnx_io.providers import runtime_device

if TYPE_CHECKING:
    from .onnx_io.session import OnnxSession

_ONE_AT_A_TIME = threading.Lock()
"""Decoding changes the process's filters of warnings while it lasts: no two threads at once."""

PictureLike = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that was checked when it was loaded, and its model on a device."""

    bundle: Bundle
    device: str

    def __repr__(self) -> str:
        return (
            f"LoadedBundle({str(self.folder)!r}, device={self.device!r}, "
            f"classes={len(self.labels)})"
        )

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        return self.bundle.folder

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.bundle.labels

    @property
    def report(self) -> Mapping[str, Any]:
        """Findings of the validation: ``report.json``."""
        return self.bundle.report

    @cached_property
    def session(self) -> "OnnxSession":
        """The model on its device; it has answered its golden inputs."""
        session = open_model(self.bundle, self.device)
        check_golden(self.bundle, session)
        return session

    def predict(
        self, images: PictureLike | Iterable[PictureLike], *, top: int = TOP
    ) -> list[Prediction]:
        """Return the ``top`` most probable classes of each picture, in order; of one, a list too.

        A picture is a path (of a folder: all in it, sorted), one of Pillow's, or its uint8 pixels,
        height x width (x 3); all are prepared as in training. Raises ``ConfigError`` or
        ``StorageError`` for the first that cannot be read, ``ValidationFailedError`` where the
        model does not answer as validated.
        """

        def refuse(error: D2NasError) -> None:
            raise error

        given: Iterable[Any] = (
            [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
        )
        pictures = (found for index, image in enumerate(given) for found in _found(image, index))
        with _ONE_AT_A_TIME:
            parts = predictions(self.bundle, self.session, pictures, refuse, top)
            return [prediction for part in parts for prediction in part]


def load_bundle(
    folder: str | Path, *, device: str = "cpu", digest: str | None = None
) -> LoadedBundle:
    """Check every file of a bundle and return it, to answer on ``device``.

    ``digest`` is what its digest must be, if it is known. Raises ``ConfigError`` where there is no
    bundle or no such device, ``DamagedArtifactError`` naming the file that is wrong,
    ``StorageError``.
    """
    loaded = LoadedBundle(open_bundle(Path(folder), digest), runtime_device(device))
    _ = loaded.session  # a device that is not there is told now
    return loaded


def run(
    preset: str | Path = "quickstart",
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    name: str | None = None,
    data_root: str | Path | None = None,
    store: str | Path | None = None,
    exported: str | Path = "exported",
    max_p99_ms: float | None = None,
    batch: int | None = None,
    time: str | None = None,
    fresh: bool = False,
) -> LoadedBundle:
    """Search, derive, retrain, export and validate; return the bundle.

    As ``d2nas run``: what is up to date does not run again, an interrupted run continues.
    ``settings`` are keys of the configuration with their values, or ``SECTION.FIELD=VALUE``;
    ``max_p99_ms`` is the longest p99 in milliseconds of ``batch`` images (default: 1), by which the
    search is limited and the network's size chosen, unless a setting gives that; ``time`` (90s,
    30m, 2h) is the wall time into which the whole run should fit: its epochs are chosen by it.
    Messages go to stderr. Raises a class of ``d2nas.errors`` for each of the command's exit codes.
    """
    from .bundle.writing import check_place, write_bundle
    from .commands.configuration import configure
    from .commands.options import DEFAULT_STORE, STORE_VARIABLE, with_options
    from .commands.run import bring_up_to_date, budget_of, gives_size
    from .presets import run_name

    given = (
        [f"{key}={_in_toml(value)}" for key, value in settings.items()]
        if isinstance(settings, Mapping)
        else list(settings)
    )
    given = with_options(given, {"validate.max_p99_ms": max_p99_ms, "validate.gate_batch": batch})
    budget = budget_of(time, given)
    fits = max_p99_ms is not None and not gives_size(given)
    named = str(preset)
    config = configure(named, given, None if data_root is None else str(data_root))
    title = name or run_name(named)
    check_place(Path(exported), title)
    folder = Path(store or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)
    result = bring_up_to_date(title, config, folder, fresh=fresh, fits=fits, budget=budget)
    return load_bundle(write_bundle(Path(exported), result.run, result.versions))


def _in_toml(value: Any) -> str:
    """Return a setting's value as ``--set`` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(json.dumps(item) for item in value)}]"
    return str(value)


@dataclass(frozen=True)
class _PictureInMemory(Picture):
    """A picture of Pillow's; its name is its place among those that were given."""

    image: Image.Image
    index: int

    @property
    def name(self) -> str:
        return str(self.index)

    def pixels(self, decoding: Decoding) -> NDArray[np.uint8]:
        try:
            return fit_image(upright(self.image), decoding)
        except (ArithmeticError, OSError, TypeError, ValueError) as error:
            raise ConfigError(f"picture {self.index}: {error}") from error


def _found(image: Any, index: int) -> Iterator[Picture | D2NasError]:
    """Yield a picture, or those of a folder, or what is wrong with it."""
    if isinstance(image, str | Path):
        yield from pictures_at(str(image), lambda _: None)
        return
    if isinstance(image, np.ndarray):
        is_grey, is_colour = image.ndim == 2, image.ndim == 3 and image.shape[2:] == (3,)
        if image.dtype != np.uint8 or not (is_grey or is_colour) or not image.size:
            raise ConfigError(
                f"picture {index}: uint8 pixels, height x width (x 3), are needed, not "
                f"{image.dtype} {' x '.join(map(str, image.shape))}"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ConfigError(
            f"picture {index}: a path, a picture of Pillow's or uint8 pixels are needed, not "
            f"{type(image).__name__}"
        )
    yield _PictureInMemory(None, image, index)

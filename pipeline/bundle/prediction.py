"""Prediction from a bundle: answers to its golden inputs and to pictures.

A picture is prepared as training did it: the same decoding, and the same float32 operations in
the same order.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from d2nas.data.decoding import strict_pillow
from d2nas.data.faults import shown
from d2nas.errors import ConfigError, D2NasError, DamagedArtifactError, ValidationFailedError
from d2nas.measure.scores import softmax

from ..gate.comparison import PRECISION_LIMITS, Limits, ParityResult, compare, judge_parity
from ..onnx_io.preparation import decoding_of, prepare_content, prepare_pixels
from ..onnx_io.session import PLAIN, OnnxSession, open_session
from .checksums import HINT
from .pictures import Picture
from .reader import Bundle

TOP = 5
BATCH = 64
"""Pictures that are in memory at a time, at most."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, best first."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    """Of all classes, in the order of ``labels.txt``."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        named = zip(self.classes, self.probabilities, strict=True)
        return {
            "image": self.image,
            "predictions": [{"class": name, "probability": value} for name, value in named],
            "logits": list(self.logits),
        }


def open_model(bundle: Bundle, device: str) -> OnnxSession:
    """Open a bundle's model on ``cpu``, ``cuda`` or ``cuda:N``, in the mode that serves there.

    Raises as ``open_session`` does.
    """
    return open_session(
        bundle.model,
        device=device,
        what=f"{bundle.folder}: {bundle.number}/model.onnx",
        mode=serving_mode(bundle.report, device),
    )


def serving_mode(report: Mapping[str, Any], device: str) -> str:
    """Return the mode in which a GPU serves, as ``config.pbtxt`` has it: the best one validated.

    Never with CUDA graphs, which hold for one batch size each and answer one thread at a time.
    """
    is_nhwc = report.get("best_mode") == "nhwc"
    return "nhwc" if is_nhwc and device.startswith("cuda") else PLAIN


def check_golden(bundle: Bundle, session: OnnxSession) -> ParityResult:
    """Run the golden inputs and return how far the answers are from those of the validation.

    Raises ``ValidationFailedError`` beyond the limits of the validation, or those of the model's
    precision where they are stricter.
    """
    golden = bundle.golden
    images, logits = [golden["images"]], [golden["logits"]]
    if "picture" in golden:
        images, logits = [*images, golden["picture"]], [*logits, golden["picture_logits"]]
    found = compare(np.concatenate(logits), session.run(np.concatenate(images)))
    verdict, reasons = judge_parity(found, _limits(bundle.report), is_part=True)
    if verdict == "failed":
        raise ValidationFailedError(
            f"the golden inputs are answered otherwise on {session.device.label}: "
            f"{'; '.join(reasons)}"
        )
    return found


def check_preparation(bundle: Bundle) -> bool:
    """Prepare the golden picture again; return whether there is one, as in bundles of today.

    Raises ``ValidationFailedError`` where it becomes anything else than it was: another Pillow
    would have the model see other pictures.
    """
    if bundle.golden_png is None:
        return False
    try:
        found = prepare_content(bundle.golden_png, bundle.preprocess, what="golden.png")
    except ConfigError as error:
        raise DamagedArtifactError(f"{bundle.folder}: {error}", hint=HINT) from error
    wanted = bundle.golden["picture"]
    if not np.array_equal(found, wanted):
        apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
        raise ValidationFailedError(
            f"{bundle.folder}: golden.png is prepared otherwise here, by up to {apart:.3g}",
            hint=f"use the Pillow of its training; this one is {PIL.__version__}",
        )
    return True


def predict(
    bundle: Bundle, session: OnnxSession, paths: Sequence[Path], top: int = TOP
) -> list[Prediction]:
    """Return the ``top`` classes of every picture. Raises for the first that has no answer."""

    def refuse(error: D2NasError) -> None:
        raise error

    if not paths:
        raise ConfigError("there is no picture to answer")
    pictures = (Picture(path) for path in paths)
    found = predictions(bundle, session, pictures, refuse, top)
    return [prediction for part in found for prediction in part]


def predictions(
    bundle: Bundle,
    session: OnnxSession,
    pictures: Iterable[Picture | D2NasError],
    failed: Callable[[D2NasError], None],
    top: int = TOP,
) -> Iterator[list[Prediction]]:
    """Answer pictures in order, a batch at a time; those without an answer go to ``failed``."""
    if top < 1:
        raise ConfigError(f"{top} classes cannot be shown")
    for part, logits in answers(bundle, session, pictures, failed):
        rows = zip(part, logits, strict=True)
        yield [_prediction(bundle, picture.name, row, top) for picture, row in rows]


def answers(
    bundle: Bundle,
    session: OnnxSession,
    pictures: Iterable[Picture | D2NasError],
    failed: Callable[[D2NasError], None],
) -> Iterator[tuple[list[Picture], NDArray[np.float32]]]:
    """Yield pictures with their logits, [N, classes], a batch of the readable ones at a time.

    One that cannot be read, or whose answer is not finite, is handed to ``failed`` as an error.
    """
    left = iter(pictures)
    while given := list(itertools.islice(left, min(bundle.max_batch, BATCH))):
        part, pixels = [], []
        for picture, found in zip(given, _pixels_of(given, bundle.preprocess), strict=True):
            if isinstance(found, D2NasError):
                failed(found)
            elif not isinstance(picture, D2NasError):
                part.append(picture)
                pixels.append(found)
        if not part:
            continue
        logits = session.run(prepare_pixels(np.stack(pixels), bundle.preprocess))
        answered = []
        for index, picture in enumerate(part):
            if np.isfinite(logits[index]).all():
                answered.append(index)
            else:
                what = f"{shown(picture.name)}: the model's answer is not finite"
                failed(ValidationFailedError(what))
        yield [part[index] for index in answered], logits[answered]


def read_pictures(paths: Sequence[Path], settings: Mapping[str, Any]) -> NDArray[Any]:
    """Return the pictures in files as a model with these settings takes them.

    Raises ``ConfigError`` or ``StorageError`` naming one that cannot be read.
    """
    pixels = []
    for found in _pixels_of([Picture(path) for path in paths], settings):
        if isinstance(found, D2NasError):
            raise found
        pixels.append(found)
    return prepare_pixels(np.stack(pixels), settings)


def _pixels_of(
    pictures: Sequence[Picture | D2NasError], settings: Mapping[str, Any]
) -> list[NDArray[np.uint8] | D2NasError]:
    """Return the pixels of each picture, or why there are none."""
    decoding = decoding_of(settings)

    def pixels_of(picture: Picture | D2NasError) -> NDArray[np.uint8] | D2NasError:
        if isinstance(picture, D2NasError):
            return picture
        try:
            return picture.pixels(decoding)
        except D2NasError as error:
            return error

    with strict_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(pixels_of, pictures))


def _prediction(bundle: Bundle, name: str, logits: NDArray[np.float32], top: int) -> Prediction:
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return Prediction(
        image=name,
        classes=tuple(bundle.labels[index] for index in order),
        probabilities=tuple(float(probabilities[index]) for index in order),
        logits=tuple(float(value) for value in logits),
    )


def _limits(report: Mapping[str, Any]) -> Limits:
    """Return the validation's limits, where they are not looser than the precision's own."""
    precision = report["model"].get("precision", "fp32")
    default = PRECISION_LIMITS.get(precision, PRECISION_LIMITS["fp32"])
    used = report["parity"]["limits"]
    return Limits(
        min(float(used["relative_l2"]), default.relative_l2),
        max(float(used["top1_agreement"]), default.top1_agreement),
    )

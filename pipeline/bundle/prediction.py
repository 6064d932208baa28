"""Prediction from a bundle: answers to its golden inputs and to pictures (no torch).

A picture is prepared as training did it: the same decoding, and the same float32 operations in
the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from d2nas.errors import ConfigError, DamagedArtifactError, ValidationFailedError
from d2nas.image_decoding import read_image, strict_pillow

from ..onnx_io.comparison import ParityResult, compare
from ..onnx_io.parity import PRECISION_LIMITS, Limits, gate
from ..onnx_io.session import PLAIN, OnnxSession, open_session
from ..preprocess import decoding_of, prepare_content, prepare_pixels
from .checksums import HINT
from .reader import Bundle

TOP = 5


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
    verdict, reasons = gate(found, _limits(bundle.report), is_part=True)
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
    """Return the ``top`` classes of every picture.

    All pictures are read before any is answered, so there is never half a result. Raises
    ``ConfigError`` for one that cannot be read.
    """
    if top < 1:
        raise ConfigError(f"{top} classes cannot be shown")
    images = prepare(bundle, paths)
    batches = [
        session.run(images[start : start + bundle.max_batch])
        for start in range(0, len(images), bundle.max_batch)
    ]
    return [
        _prediction(bundle, path, logits, top)
        for path, logits in zip(paths, np.concatenate(batches), strict=True)
    ]


def prepare(bundle: Bundle, paths: Sequence[Path]) -> NDArray[Any]:
    """Return pictures as the model takes them. Raises ``ConfigError`` without any, or for one that
    cannot be read.
    """
    if not paths:
        raise ConfigError("there is no picture to answer")
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file")
    return read_pictures(paths, bundle.preprocess)


def read_pictures(paths: Sequence[Path], settings: Mapping[str, Any]) -> NDArray[Any]:
    """Return the pictures in files as a model with these settings takes them.

    Raises ``ConfigError`` naming one that cannot be read.
    """
    decoding = decoding_of(settings)
    with strict_pillow():
        pixels = np.stack([read_image(path, decoding)[0] for path in paths])
    return prepare_pixels(pixels, settings)


def _prediction(bundle: Bundle, path: Path, logits: NDArray[np.float32], top: int) -> Prediction:
    if not np.isfinite(logits).all():
        raise ValidationFailedError(f"{path}: the model's answer is not finite")
    shifted = logits.astype(np.float64) - float(logits.max())
    probabilities = np.exp(shifted) / np.exp(shifted).sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return Prediction(
        image=str(path),
        classes=tuple(bundle.labels[index] for index in order),
        probabilities=tuple(float(probabilities[index]) for index in order),
        logits=tuple(float(value) for value in logits),
    )


def _limits(report: Mapping[str, Any]) -> Limits:
    """Return the validation's limits, where they are not looser than the precision's own."""
    precision = report["model"].get("precision", "fp32")
    default, _ = PRECISION_LIMITS.get(precision, PRECISION_LIMITS["fp32"])
    used = report["parity"]["limits"]
    return Limits(
        min(float(used["relative_l2"]), default.relative_l2),
        max(float(used["top1_agreement"]), default.top1_agreement),
    )

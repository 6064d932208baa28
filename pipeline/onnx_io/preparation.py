"""Preparation of pictures for a model: in words for ``preprocess.json``, and done."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from d2nas.data import preprocess
from d2nas.data.decoding import Decoding, decode_image, strict_pillow
from d2nas.files.strict_json import parse_json

from ..store import Version
from ..store.forms import Form, Number, parse_form

PREPROCESS_KEY = "d2nas.preprocess"
"""Under which a model's metadata say how its pictures are prepared."""

_RESIZE = {
    "crop": "one resize to image_size x image_size of the centred part that a resize of the "
    "shorter side to round(image_size / crop_fraction) and a centre crop would keep; see steps",
    "pad": "longer side down to image_size if it is larger, then centred on black; see steps",
}
_FIT = {
    "crop": "w x h pixels become S x S, S = image_size, in one resize of a part of them: "
    "m = min(w, h), R = round(S / crop_fraction), w' = floor(R * w / m), h' = floor(R * h / m), "
    "x = round((w' - S) / 2), y = round((h' - S) / 2); left = x * w / w', top = y * h / h', "
    "right = min((x + S) * w / w', w), bottom = min((y + S) * h / h', h), all fractions of source "
    "pixels; Image.resize((S, S), BILINEAR, box=(left, top, right, bottom)). Unchanged where "
    "w = h = S and crop_fraction = 1.",
    "pad": "w x h pixels become S x S, S = image_size: where m = max(w, h) is larger than S, "
    "Image.resize((max(1, round(w * S / m)), max(1, round(h * S / m))), BILINEAR), else unchanged; "
    "then put on black with left = floor((S - w) / 2), top = floor((S - h) / 2).",
}
_COLOURS = {
    1: "Colour becomes grey: floor((19595 * R + 38470 * G + 7471 * B + 32768) / 65536), ITU-R 601.",
    3: "Grey becomes colour: R = G = B.",
}

_Size = Annotated[int, Field(ge=1, le=4096)]


class Preprocess(Form):
    """Preparation of a picture, ``preprocess.json``."""

    channels: _Size
    image_size: _Size
    mean: list[Number]
    std: list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]]
    class_names: list[str]

    @model_validator(mode="after")
    def _fits_its_channels(self) -> "Preprocess":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std must have a number for each channel")
        return self


class Prepared(Preprocess):
    """Preparation of a model's input: the model's own ``d2nas.preprocess``."""

    fit: Literal["crop", "pad"]
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    dtype: Literal["float32", "uint8"]


def preprocess_for(input_type: str, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preparation that a model with ``input_type`` asks for, out of the training's.

    A model that takes pixels (``uint8``) normalises them itself.
    """
    prepared = {**trained, "resize": _RESIZE[trained.get("fit", "crop")]}
    if input_type == "uint8":
        prepared |= {
            "layout": "NHWC",
            "dtype": "uint8",
            "formula": f"none: the model itself computes {trained['formula']}",
            "value_range": [0, 255],
        }
    return prepared | {"steps": _steps(prepared)}


def _steps(settings: Mapping[str, Any]) -> list[str]:
    """Return what is done to a picture, in order, for every kind of picture that is read."""
    last = (
        "The pixels as they are, uint8 in the order [picture, row, column, channel]."
        if settings["dtype"] == "uint8"
        else "float32(pixel), divided by float32(255), minus float32(mean), divided by "
        "float32(std), each operation in float32, by channel; order [picture, channel, row, "
        "column]."
    )
    return [
        "Read with Pillow: the first frame or page of a file; colour profiles and gamma are "
        "ignored.",
        "Turned and mirrored as the EXIF orientation says; unreadable EXIF data are ignored.",
        "To 8 bits: 16-bit grey v becomes floor((v + 128) / 257), its transparency is ignored; "
        "16-bit colour keeps its upper 8 bits; black and white become 0 and 255; palettes are "
        "looked up; floating-point pixels and grey beyond 0 to 65535 are refused.",
        "Transparency, where a picture has it (alpha, or a transparent colour or palette entry): "
        "over black, each colour c with opacity a becomes floor((2 * c * a + 255) / 510).",
        "CMYK becomes RGB: R = floor((2 * (255 - K) * (255 - C) + 255) / 510), G and B likewise "
        "from M and Y; other colour spaces by Pillow's Image.convert.",
        _COLOURS[settings["channels"]],
        _FIT[settings.get("fit", "crop")],
        "Every resize is Pillow's BILINEAR: a triangle filter as wide as the reduction "
        "(antialiased), first along rows, then along columns, each time rounded to 8 bits. round() "
        "takes the even neighbour of a half, as in Python.",
        last,
    ]


def decoding_of(settings: Mapping[str, Any]) -> Decoding:
    """Return how pictures become pixels, out of ``preprocess.json``."""
    return Decoding(
        settings["image_size"], settings["channels"], settings["fit"], settings["crop_fraction"]
    )


def prepare_pixels(pixels: NDArray[np.uint8], settings: Mapping[str, Any]) -> NDArray[Any]:
    """Return decoded pictures, [N, size, size] if grey, else with channels behind, as the model
    takes them.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., None]  # grey pictures come without an axis of channels
    return preprocess.normalise(pixels, settings)


def prepare_content(content: bytes, settings: Mapping[str, Any], *, what: str) -> NDArray[Any]:
    """Return the picture in the bytes of a file as a batch of one.

    Raises ``ConfigError``, in which ``what`` names it, where it cannot be read.
    """
    with strict_pillow():
        pixels = decode_image(content, decoding_of(settings), what=what)
    return prepare_pixels(pixels[None], settings)


def read_prepared(version: Version, name: str) -> dict[str, Any]:
    """Return how pictures are prepared for the model in the file ``name`` of an exported version.

    Raises ``DamagedArtifactError`` where the model does not say so.
    """
    # Here, because onnx loads slowly and most commands need no model.
    from .model_file import check_model, lineage

    model = check_model(version.read(name), what=f"{version.path}: {name}")
    text = lineage(model).get(PREPROCESS_KEY, "null")
    values: dict[str, Any] = parse_json(text, what=f"{version.path}: {name}: {PREPROCESS_KEY}")
    parse_form(Prepared, values, version, f"{name}: {PREPROCESS_KEY}")
    return values

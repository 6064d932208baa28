"""``MODEL_CARD.md``: what a person needs who has the bundle and nothing else."""

import json
import re
import textwrap
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2nas.measure.scores import softmax

from ..gate.golden import PICTURE_FILE
from ..onnx_io import MODEL_FILE
from ..report.classes import class_table
from ..report.facts import Facts, is_stable
from ..report.templates import read_template
from ..report.words import Marked, Value, Word, count, milliseconds, percent, writable
from .checksums import CHECKSUMS
from .front_matter import front_matter

if TYPE_CHECKING:
    from jinja2 import Template

_MARKUP = re.compile(r"([\\`*\[\]<>#|~&@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.)")
"""Characters with a meaning for Markdown (a ``_`` at an end of a word), or that make a link."""
_SPACE = re.compile(r"\s+")
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of all that follows them."""


def model_card(
    name: str,
    number: int,
    report: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    golden: Mapping[str, NDArray[Any]],
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the card as Markdown; ``golden`` is the content of ``golden.safetensors``, the others
    are as for ``report_page``.
    """
    names = preprocess["class_names"]
    best = None
    if "picture" in golden:
        (shares,) = softmax(golden["picture_logits"])
        best = [
            f"{names[index]} {percent(shares[index])}"
            for index in np.argsort(-shares, kind="stable")[:3]
        ]
    facts = Facts(name, number, report, preprocess, manifests or {})
    classes, more = class_table(report, f"the {facts.images}")
    return front_matter(name, report, _quoted) + card_template().render(
        facts=facts,
        classes=classes,
        more_classes=more is not None,
        model=MODEL_FILE,
        picture="picture.jpg" if best is None else PICTURE_FILE,
        best=best,
        answers=[names[index] for index in golden["logits"].argmax(axis=1)],
        settings=_settings(preprocess),
        steps=_steps(preprocess),
        latency=[_latency_row(record) for record in report["latency"]],
        checksums=CHECKSUMS,
    )


@cache
def card_template() -> "Template":
    """Return the card's template; every value in it is text, unless it says ``safe``."""
    folder = resources.files(__package__)
    return read_template(folder / "MODEL_CARD.md.j2", lambda value: _Markdown(markdown(value)))


class _Markdown(str):
    __slots__ = ()

    def __html__(self) -> str:
        return self


def markdown(value: Value | int) -> str:
    """Return any text as Markdown that shows it: one line, nothing in it is markup."""
    if isinstance(value, list | tuple):
        return "; ".join(markdown(one) for one in value)
    if not isinstance(value, Marked):
        return _MARKUP.sub(r"\\\1", _line(value))
    if value.kind in ("code", "digest"):
        text = f"`{_line(value.text).replace('`', chr(39))}`"
    else:
        text = markdown(value.text)
        text = f"**{text}**" if value.kind in ("strong", "warn", "bad") else text
    return text + markdown(value.rest)


def _line(value: object) -> str:
    return _TURNS.sub("\N{REPLACEMENT CHARACTER}", writable(_SPACE.sub(" ", str(value))))


def _quoted(text: str) -> str:
    """Return any text as a scalar of YAML in which nothing is markup of Markdown, either: some
    programs show the head of a card as text.
    """
    parts = [
        f"\\u{ord(part):04x}" if index % 2 else json.dumps(part, ensure_ascii=False)[1:-1]
        for index, part in enumerate(_MARKUP.split(_line(text)))
    ]
    return f'"{"".join(parts)}"'


def _settings(preprocess: Mapping[str, Any]) -> Marked:
    keys = ["image_size", "crop_fraction"]
    if preprocess["dtype"] != "uint8":  # else the model itself applies them
        keys += ["mean", "std"]
    return Marked(", ".join(f"{key} = {preprocess[key]}" for key in keys), "code")


def _steps(preprocess: Mapping[str, Any]) -> str:
    # A model that was exported earlier says less.
    steps = preprocess.get("steps", [preprocess["resize"], preprocess["formula"]])
    lines = []
    for number, step in enumerate(steps, start=1):
        lines += textwrap.wrap(
            _line(step).replace("`", "'"),
            96,
            initial_indent=f"{number}. ",
            subsequent_indent="   ",
            break_long_words=False,
        )
    return "\n".join(lines)


def _latency_row(record: Mapping[str, Any]) -> list[Word]:
    return [
        count(record["batch"]),
        str(record["device"]),
        str(record["provider"]),
        *(milliseconds(record[key]) for key in ("p50_ms", "p90_ms", "p99_ms")),
        count(record["samples"]),
        "stable" if is_stable(record) else Marked("unstable"),
    ]

"""Documents of a bundle that are written from its other files alone, so that they can be compared
with what they were written from.

``manifests.json`` holds the manifests of the versions behind a bundle. The id of each is in
``report.json``, and each lists the SHA-256 of its files; so the page's facts and drawings can be
told from forged ones without a store.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from d2nas._version import __version__
from d2nas.files.arrays import decode_arrays
from d2nas.files.strict_json import parse_json

from ..report.baselines import BASELINES_FILE
from ..report.page import report_page
from .card import model_card
from .triton import triton_config

CARD = "MODEL_CARD.md"
CONFIG = "config.pbtxt"
STAGE_DRAWINGS = {
    "search": "curves.svg",
    "derive": "front.svg",
    "retrain": "curves.svg",
    "validate": "mistakes.svg",
}
"""Drawings of the stages that the page shows, where their versions have them."""
DRAWING = "genotype.svg"
MANIFESTS = "manifests.json"
PAGE = "report.html"


def write_card(name: str, number: int, files: Mapping[str, bytes]) -> bytes:
    """Return the model card of version ``number``, of a bundle's other files."""
    golden = decode_arrays(files["golden.safetensors"], what="golden.safetensors")
    report, preprocess = (_parsed(files, path) for path in ("report.json", "preprocess.json"))
    manifests = _parsed(files, MANIFESTS) if MANIFESTS in files else {}
    return model_card(name, number, report, preprocess, golden, manifests).encode()


def write_config(name: str, number: int, files: Mapping[str, bytes]) -> bytes:
    """Return Triton's configuration of version ``number``, of a bundle's report."""
    return triton_config(name, number, _parsed(files, "report.json")).encode()


def write_page(
    name: str, number: int, files: Mapping[str, bytes], drawings: Mapping[str, bytes]
) -> bytes:
    """Return the report for people: of a bundle's other files and drawings of its stages."""
    return report_page(
        name,
        number,
        _parsed(files, "report.json"),
        _parsed(files, "preprocess.json"),
        files.get(DRAWING),
        drawings,
        manifests=_parsed(files, MANIFESTS),
        files=files,
        baselines=_parsed(files, BASELINES_FILE) if BASELINES_FILE in files else (),
    )


@cache
def writer() -> dict[str, str]:
    """Return which code writes the documents: the version of d2nas, and the SHA-256 of the modules'
    and templates' text, since between two releases the words change and the version does not.
    """
    package = resources.files("pipeline")
    names = ("MODEL_CARD.md.j2", "card.py", "documents.py", "front_matter.py", "triton.py")
    own = [package / "bundle" / name for name in names]
    page = sorted(package.joinpath("report").iterdir(), key=lambda path: path.name)
    kinds = (".py", ".j2", ".css")
    text = b"".join(path.read_bytes() for path in [*own, *page] if path.name.endswith(kinds))
    return {"d2nas": __version__, "documents": hashlib.sha256(text).hexdigest()}


def _parsed(files: Mapping[str, bytes], path: str) -> Any:
    return parse_json(files[path], what=path)

"""``report.html``: everything a person needs to decide on deployment, in one page.

A function of stored data: no clock, host or path. It needs no network and no script; every text is
escaped by ``html.tag``, and stored drawings are embedded as images, which cannot run anything. A
content security policy forbids the rest.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .architecture import architecture_section, training_section
from .data import data_section, preprocessing_section
from .evidence import accuracy_section, parity_section
from .facts import Content
from .html import Html, join, tag
from .latency import latency_section
from .lineage import configuration_section, files_section, lineage_section
from .style import STYLE
from .verdict import header

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
_SECTIONS: tuple[tuple[str, str, Callable[[Content], Html]], ...] = (
    ("accuracy", "Accuracy", accuracy_section),
    ("parity", "Parity", parity_section),
    ("latency", "Latency", latency_section),
    ("architecture", "Architecture", architecture_section),
    ("training", "Training", training_section),
    ("data", "Data", data_section),
    ("preprocessing", "Preprocessing", preprocessing_section),
    ("lineage", "Lineage", lineage_section),
    ("configuration", "Configuration", configuration_section),
    ("files", "Files", files_section),
)


def report_page(
    name: str,
    number: int,
    report: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    genotype_svg: bytes | None,
    curves: Mapping[str, bytes],
    *,
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return the page of version ``number`` of the bundle ``name`` as UTF-8.

    ``report`` and ``preprocess`` are the bundle's JSON files; ``curves`` the drawings of the
    stages ``search`` and ``retrain``, ``manifests`` the manifests by stage, ``files`` the bundle's
    other files by path. What is missing from any of them is not shown; equal arguments give equal
    bytes.
    """
    content = Content(
        name, number, report, preprocess, genotype_svg, curves, manifests or {}, files or {}
    )
    sections = [
        tag(
            "section",
            tag("h2", title, id=key),
            tag("div", body),
            class_="part",
            aria_labelledby=key,
        )
        for key, title, section in _SECTIONS
        if (body := section(content))
    ]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}" />'),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"{name}, version {number}: model report"),
            tag("style", Html(STYLE)),
        ),
        tag("body", tag("main", header(content), *sections)),
        lang="en",
    )
    return join((Html("<!DOCTYPE html>\n"), page, "\n")).encode()

"""``report.html``: everything a person needs to decide on deployment, in one page.

A function of stored data: no clock, host or path. It needs no network and no script; the template
escapes every text, and stored drawings are embedded as images, which cannot run anything. A
content security policy forbids the rest.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from . import sections
from .baselines import baseline_row, comparison, comparison_notes
from .class_drawings import MOST_DRAWN, draw_confusion, draw_reliability
from .classes import class_table, confused_table
from .facts import Facts
from .latency import latency_section
from .templates import read_template
from .words import writable

if TYPE_CHECKING:
    from jinja2 import Template

_FOLDER = resources.files(__package__)


def report_page(
    name: str,
    number: int,
    report: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    genotype_svg: bytes | None,
    drawings: Mapping[str, bytes],
    *,
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
    files: Mapping[str, bytes] | None = None,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """Return the page of version ``number`` of the bundle ``name`` as UTF-8.

    ``report`` and ``preprocess`` are the bundle's JSON files; ``drawings`` those of the stages
    ``search``, ``derive``, ``retrain`` and ``validate``, ``manifests`` the manifests by stage,
    ``files`` the bundle's other files by path, ``baselines`` rows of other runs (``baselines.py``).
    What is missing from any of them is not shown; equal
    arguments give equal bytes.
    """
    facts = Facts(name, number, report, preprocess, manifests or {})
    page = page_template().render(
        css=style_sheet(),
        facts=facts,
        figures=sections.figures(facts),
        accuracy=sections.accuracy_table(facts),
        answers=_answers(facts, drawings),
        baselines=_baselines(facts, baselines),
        parity=sections.parity_section(facts),
        latency=latency_section(facts),
        network=sections.network_section(facts),
        genotype=_embedded(genotype_svg),
        curves=[
            (_embedded(drawings[stage]), title, sections.last_epoch(facts, stage))
            for stage, title in (("search", "Search"), ("retrain", "Final training"))
            if stage in drawings
        ],
        front=_embedded(drawings.get("derive")),
        classes=sections.class_counts(facts),
        preprocessing=sections.preprocessing(facts),
        configuration=sections.configuration(facts),
        files=sections.files_section(files or {}),
    )
    return page.encode()


def _baselines(facts: Facts, others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the model beside other runs'; None without any."""
    own = baseline_row(facts.name, facts.report, str(facts.get("lineage", "validate")))
    table = comparison([own, *others])
    return None if table is None else {"table": table, "notes": comparison_notes([own, *others])}


def _answers(facts: Facts, drawings: Mapping[str, bytes]) -> Mapping[str, Any] | None:
    """Return the tables and drawings of the classes; None for a report without them."""
    found = facts.report
    if not found.get("per_class"):
        return None
    names = [str(row["class"]) for row in found["per_class"]]
    matrix, bins = found.get("confusion"), found.get("reliability")
    table, more = class_table(found, f"the {facts.images}")
    confusion = None
    if matrix is not None and len(names) <= MOST_DRAWN:
        confusion = _embedded(draw_confusion(matrix, names).encode())
    return {
        "table": table,
        "more": more,
        "confusion": confusion,
        "confused": confused_table(found) if confusion is None else None,
        "reliability": _embedded(draw_reliability(bins).encode()) if bins else None,
        "mistakes": _embedded(drawings.get("validate")),
        "mistaken": "; ".join(
            f"{names[one['label']]} taken for {names[one['answer']]}"
            for one in found.get("mistakes") or []
        ),
    }


def style_sheet() -> str:
    """Return the page's style sheet, which is written into it."""
    return (_FOLDER / "page.css").read_text("utf-8")


def _embedded(svg: bytes | None) -> str | None:
    """Return the address of an SVG as an image: as such it runs no script, and loads nothing."""
    return None if svg is None else "data:image/svg+xml;base64," + b64encode(svg).decode()


@cache
def page_template() -> "Template":
    """Return the page's template; every value in it is escaped, unless it says ``safe``."""
    return read_template(_FOLDER / "page.html.j2", lambda value: writable(str(value)))

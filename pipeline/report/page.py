"""``report.html``: everything a person needs to decide on deployment, in one page.

A function of stored data: no clock, host or path. It needs no network and no script; every text is
escaped by the template, and stored drawings are embedded as images, which cannot run anything. A
content security policy forbids the rest.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from .architecture import architecture_section, training_section
from .data import data_section, preprocessing_section
from .evidence import accuracy_section, parity_section
from .facts import Content
from .html import Html, writable
from .latency import latency_section
from .lineage import configuration_section, files_section, lineage_section
from .verdict import header

if TYPE_CHECKING:
    from jinja2 import Template

_FOLDER = resources.files(__package__)
STYLE = _FOLDER.joinpath("page.css").read_text("utf-8")
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
        (key, title, body) for key, title, section in _SECTIONS if (body := section(content))
    ]
    return (
        _template()
        .render(name=name, number=number, css=STYLE, header=header(content), sections=sections)
        .encode()
    )


@cache
def _template() -> "Template":
    # Here, because commands that write no page start without it.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=lambda value: writable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(_FOLDER.joinpath("page.html.j2").read_text("utf-8"))

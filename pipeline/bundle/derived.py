"""Checks of what was derived: a bundle's documents are written again, its files are looked up in
the manifests of the versions that they come from.

Whatever could not be checked is told, with the reason: who can write a bundle can write its list
of checksums, too.
"""

import hashlib
import re
from base64 import b64decode
from binascii import Error as NotBase64Error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from d2nas.files.strict_json import canonical_json, digest
from d2nas.genotype import Genotype

from ..gate.golden import PICTURE_FILE
from ..onnx_io import LIBRARY_FILE, MODEL_FILE
from ..report.baselines import BASELINES_FILE
from ..report.genotype_drawing import draw_genotype
from ..stages import KINDS
from ..store.forms import damage_of
from ..store.manifest import Manifest, parse_manifest
from .checksums import CHECKSUMS, FILES, HINT, OF_CELLS, damaged
from .documents import (
    CARD,
    CONFIG,
    DRAWING,
    MANIFESTS,
    PAGE,
    STAGE_DRAWINGS,
    write_card,
    write_config,
    write_page,
    writer,
)
from .preprocess_file import CODE_FILE
from .reader import Bundle, read_object

_SOURCES = {
    # file of the bundle: the stage whose version has it
    LIBRARY_FILE: "derive",
    "genotype.json": "derive",
    DRAWING: "derive",
    MODEL_FILE: "export",
    "golden.safetensors": "validate",
    PICTURE_FILE: "validate",
}
_READER = ("labels.txt", "preprocess.json", CODE_FILE)
"""What opening a bundle compares with the model as a whole."""

_OWN = {*FILES, *OF_CELLS, LIBRARY_FILE, BASELINES_FILE, CODE_FILE, MANIFESTS, PAGE, PICTURE_FILE}
_EMBEDDED = re.compile(rb'src="data:image/svg\+xml;base64,([A-Za-z0-9+/=]*)"')


@dataclass
class Checks:
    """Files of a bundle that were compared with what they come from, and reasons for the others."""

    checked: list[str] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    """Path in the bundle to the reason."""


def check_derived(bundle: Bundle, *, published: bool) -> Checks:
    """Compare a bundle's files with what they were derived from.

    ``published``: the bundle's digest was compared with one that is known. What this very code
    wrote must be what it writes again; the words of another version are told as not checked.
    Raises ``DamagedArtifactError`` for a file that contradicts what it was derived from.
    """
    checks = Checks()
    for path in bundle.files.keys() - _OWN:
        if _is_ours(bundle):
            raise damaged(bundle.folder, path, f"is listed in {CHECKSUMS}, but d2nas writes none")
        checks.not_checked[path] = f"is a file that this d2nas does not write; {_written(bundle)}"
    manifests = _manifests(bundle)
    _check_files(bundle, manifests, checks)
    if BASELINES_FILE in bundle.files:
        checks.not_checked[BASELINES_FILE] = "is of other runs, whose versions are not here"
    _check_report(bundle, manifests, checks)
    _check_drawing(bundle, manifests, checks)
    _check_documents(bundle, manifests, checks)
    for number, left_out in bundle.other_versions.items():
        checks.not_checked[f"{number}/"] = f"is not served; {left_out}"
    if published:
        checks.checked.append(CHECKSUMS)
    else:
        checks.not_checked[CHECKSUMS] = "who wrote it, without the digest to expect: --digest"
    checks.checked.sort()
    return checks


def _is_ours(bundle: Bundle) -> bool:
    """Whether the bundle says that this very code wrote its documents."""
    return bool(bundle.report.get("written_by") == writer())


def _written(bundle: Bundle) -> str:
    """Say which d2nas wrote the bundle."""
    said = bundle.report.get("written_by")
    if not isinstance(said, dict):
        return "the bundle was written by an earlier d2nas"
    version, code = (str(said.get(key))[:16] for key in ("d2nas", "documents"))
    if not version.isprintable() or not code.isprintable():
        version = code = "unknown"
    return f"the bundle was written by d2nas {version} (documents {code})"


def _manifests(bundle: Bundle) -> dict[str, Manifest]:
    """Return the manifests of the versions behind the bundle; each must have the id that the report
    names, and the parents.
    """
    if MANIFESTS not in bundle.files:
        if _is_ours(bundle):
            raise damaged(bundle.folder, MANIFESTS, "is missing")
        return {}
    values = read_object(bundle.folder, bundle.files, MANIFESTS)
    if "validate" not in values:
        raise damaged(bundle.folder, MANIFESTS, "does not hold the validation's manifest")
    lineage = bundle.report["lineage"]
    found = {}
    for stage, manifest in values.items():
        if digest(manifest) != lineage.get(stage):
            raise damaged(bundle.folder, MANIFESTS, f"has another {stage[:80]!r} than report.json")
        what = f"{bundle.folder}: {MANIFESTS}: {stage}"
        found[stage] = parse_manifest(manifest, KINDS, what=what, hint=HINT)
        if found[stage].kind != stage or found[stage].parents.items() - lineage.items():
            raise damaged(bundle.folder, MANIFESTS, f"has a {stage} that is none, or of others")
    return found


def _check_files(bundle: Bundle, manifests: Mapping[str, Manifest], checks: Checks) -> None:
    """Look files up in the manifests of the versions that they were copied from."""
    checks.checked += [path for path in _READER if path in bundle.files]
    for name, stage in _SOURCES.items():
        path = f"{bundle.number}/{name}" if name == MODEL_FILE else name
        data = bundle.model if name == MODEL_FILE else bundle.files.get(name)
        if data is None or name == DRAWING:
            continue
        if stage in manifests:
            if not _is_listed(data, manifests[stage], name):
                raise damaged(bundle.folder, path, f"is not the one of its {stage} version")
            checks.checked.append(path)
        elif name in (LIBRARY_FILE, "genotype.json", MODEL_FILE):
            checks.checked.append(path)  # by each other, and by the golden answers
        else:
            checks.not_checked[path] = (
                f"only its answers, not where its images come from: {MANIFESTS} is missing"
            )


def _is_listed(data: bytes, manifest: Manifest, name: str) -> bool:
    entry = manifest.files.get(name)
    return entry is not None and entry.sha256 == hashlib.sha256(data).hexdigest()


def _check_report(bundle: Bundle, manifests: Mapping[str, Manifest], checks: Checks) -> None:
    """Compare the report with that of the validation, to which a bundle adds where it lies."""
    if "validate" not in manifests:
        checks.not_checked["report.json"] = (
            f"its form and what the model says were, its figures not: {MANIFESTS} is missing"
        )
        return
    report = dict(bundle.report)
    for key in ("bundle_version", "written_by"):
        report.pop(key, None)
    report["lineage"] = {k: v for k, v in report["lineage"].items() if k != "validate"}
    if not _is_listed(canonical_json(report), manifests["validate"], "report.json"):
        raise damaged(bundle.folder, "report.json", "is not the one of its validate version")
    checks.checked += ["report.json", MANIFESTS]


def _check_drawing(bundle: Bundle, manifests: Mapping[str, Manifest], checks: Checks) -> None:
    data = bundle.files.get(DRAWING)
    if data is None:
        return
    genotype = Genotype.from_dict(bundle.report["genotype"])
    if data == draw_genotype(genotype).encode():
        checks.checked.append(DRAWING)
    elif "derive" in manifests and not _is_listed(data, manifests["derive"], DRAWING):
        raise damaged(bundle.folder, DRAWING, "is not the one of its derive version")
    else:
        checks.not_checked[DRAWING] = "was drawn by another d2nas, or by somebody else"


def _check_documents(bundle: Bundle, manifests: Mapping[str, Manifest], checks: Checks) -> None:
    """Write the documents again and compare them with those that are there."""
    name, number, files = bundle.name, bundle.number, bundle.files
    writers: dict[str, Callable[[], bytes]] = {
        CONFIG: lambda: write_config(name, number, files),
        CARD: lambda: write_card(name, number, files),
        PAGE: lambda: write_page(
            name,
            number,
            {
                f"{number}/{MODEL_FILE}": bundle.model,
                **{path: data for path, data in files.items() if path != PAGE},
            },
            _drawings(bundle, manifests),
        ),
    }
    for path, write in writers.items():
        if path not in files:
            if _is_ours(bundle):
                raise damaged(bundle.folder, path, "is missing")
            continue
        if path == PAGE and not manifests:
            checks.not_checked[path] = f"{MANIFESTS} is missing, from which it was written"
            continue
        with damage_of(f"{bundle.folder}: report.json", HINT):
            written = write()
        if files[path] == written:
            checks.checked.append(path)
        elif _is_ours(bundle):
            raise damaged(bundle.folder, path, "is not what the other files say")
        else:
            fits = "its fields fit the model, but " if path == CONFIG else ""
            checks.not_checked[path] = f"{fits}this d2nas writes it otherwise; {_written(bundle)}"


def _drawings(bundle: Bundle, manifests: Mapping[str, Manifest]) -> dict[str, bytes]:
    """Return the stages' drawings that the page shows, as the manifests list them."""
    shown = {}
    for match in _EMBEDDED.finditer(bundle.files[PAGE]):
        try:
            drawing = b64decode(match[1], validate=True)
        except NotBase64Error:
            continue
        shown[hashlib.sha256(drawing).hexdigest()] = drawing
    # With none in their place, a page that shows others is another page.
    return {
        stage: shown.get(manifests[stage].files[drawing].sha256, b"")
        for stage, drawing in STAGE_DRAWINGS.items()
        if stage in manifests and drawing in manifests[stage].files
    }

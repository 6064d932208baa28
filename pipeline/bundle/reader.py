"""Reading a bundle that may come from anywhere: whole and consistent, or an error.

A bundle proves itself by ``SHA256SUMS`` alone, needs no store and no images. Nothing in it is
trusted: no links, no files besides the listed ones, no path that leads out, limits on every size,
no format that can run code.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from d2nas.errors import ConfigError, DamagedArtifactError, one_line
from d2nas.files.arrays import decode_arrays
from d2nas.files.strict_json import canonical_json, parse_json
from d2nas.files.verified_folder import read_plain_file
from d2nas.genotype import Genotype

from ..gate.golden import PICTURE_FILE
from ..gate.report import REPORT_SCHEMA, Report
from ..identity.check import GENOTYPE_KEY, GRAPH_KEY, LIBRARY_KEY
from ..onnx_io import LIBRARY_FILE, MODEL_FILE
from ..onnx_io.model_file import MAX_MODEL_BYTES, ModelDescription, check_model, describe, lineage
from ..onnx_io.preparation import PREPROCESS_KEY
from ..onnx_io.served_model import SERVED_VERSION
from ..store.fsio import storage_error
from ..store.manifest import problem_of
from .checksums import (
    CHECKSUMS,
    HINT,
    MAX_CHECKSUM_BYTES,
    VERSION_FILES,
    check_listing,
    damaged,
    parse_sums,
    version_file,
)
from .nearby import is_bundle, no_bundle
from .preprocess_file import is_known

# fmt: off
_CONFIG_FIELDS = frozenset((
    "name", "backend", "max_batch_size", "input", "output", "data_type", "dims",
    "label_filename", "instance_group", "count", "kind", "dynamic_batching", "version_policy",
    "specific", "versions", "model_warmup", "batch_size", "inputs", "key", "value", "zero_data",
    "optimization", "execution_accelerators", "gpu_execution_accelerator", "parameters",
))
# fmt: on
_GOLDEN_PAIRS = (("images", "logits"), ("picture", "picture_logits"))
_MAX_FILE_BYTES = 64 * 2**20
_MAX_BUNDLE_BYTES = 4 * 2**30


@dataclass(frozen=True, repr=False)
class Bundle:
    """A bundle that was whole and consistent when it was opened."""

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, version={self.number}, digest={self.digest!r})"

    folder: Path
    name: str
    number: int
    """The version that ``config.pbtxt`` serves."""
    model: bytes
    description: ModelDescription
    labels: tuple[str, ...]
    preprocess: Mapping[str, Any]
    report: Mapping[str, Any]
    golden: Mapping[str, NDArray[Any]]
    """A few ``images`` as the model takes them, with their ``logits`` and ``labels``; with a
    ``golden_png`` also that, prepared, as ``picture`` [1, ...] with its ``picture_logits``."""
    max_batch: int
    digest: str
    """SHA-256 of ``SHA256SUMS``, and so of everything."""
    golden_png: bytes | None = None
    """The golden picture; bundles that were written earlier have none."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """All that lies beside the versions' folders, but for ``SHA256SUMS``."""
    other_versions: Mapping[int, str] = field(default_factory=dict)
    """Versions that are not served, and what of each could not be checked."""


def open_bundle(folder: Path, digest: str | None = None) -> Bundle:
    """Check every file of a bundle and return what it holds.

    ``digest`` is what its digest must be, if it is known. Raises ``ConfigError`` where there is no
    bundle, ``DamagedArtifactError`` naming the file that is wrong, ``StorageError``.
    """
    if not is_bundle(folder):
        raise no_bundle(folder)
    folder = Path(os.path.abspath(folder))
    content = read_plain_file(
        folder / CHECKSUMS, max_bytes=MAX_CHECKSUM_BYTES, hint=HINT, max_links=1
    )
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and digest.lower() != found:
        raise damaged(folder, CHECKSUMS, f"its digest is {found}, not the one that was published")
    sums = parse_sums(folder, content)
    try:
        check_listing(folder, sums)
        _check_size(folder, sums)
    except OSError as error:
        raise storage_error(error, "read", folder) from error
    of_versions = {path: own for path in sums if (own := version_file(path)) is not None}
    numbers = {number for number, _ in of_versions.values()}
    files = {path: _read(folder, path, sums[path]) for path in sums.keys() - of_versions.keys()}
    number = _number(folder, _text(folder, files, "config.pbtxt"), SERVED_VERSION)
    served = f"{number}/{MODEL_FILE}"
    if served not in sums:
        raise damaged(folder, "config.pbtxt", f"serves version {number}, which is not there")
    for path, (version, name) in of_versions.items():
        if version != number or name == MODEL_FILE:
            continue
        _read(folder, path, sums[path])
        if sums[path] != sums.get(name):
            raise damaged(folder, path, f"is not the {name} of the bundle, which serves {version}")
    # One at a time: of a bundle's versions only the served one stays in memory.
    others = {other: _check_other(folder, sums, other) for other in sorted(numbers - {number})}
    model = _read(folder, served, sums[served])
    return _assemble(folder, files, model, number, others, found)


def bundle_contents(bundle: Bundle) -> dict[str, bytes]:
    """Return every file of an opened bundle by its path, ``SHA256SUMS`` among them.

    Raises ``DamagedArtifactError`` for one that is not what it was then, ``StorageError``.
    """
    folder = bundle.folder
    content = read_plain_file(
        folder / CHECKSUMS, max_bytes=MAX_CHECKSUM_BYTES, hint=HINT, max_links=1
    )
    if hashlib.sha256(content).hexdigest() != bundle.digest:
        raise damaged(folder, CHECKSUMS, "changed after it was verified")
    sums = parse_sums(folder, content)
    return {CHECKSUMS: content, **{path: _read(folder, path, sums[path]) for path in sums}}


def _check_other(folder: Path, sums: Mapping[str, str], number: int) -> str:
    """Check a version that is not served: its model, and that its other files are the model's;
    return what could not be checked. Versions that were written earlier have no other files.
    """
    where = folder / str(number)
    files = {
        name: _read(folder, path, sums[path])
        for path, name in ((f"{number}/{name}", name) for name in (MODEL_FILE, *VERSION_FILES))
        if path in sums
    }
    if MODEL_FILE not in files:
        raise damaged(folder, f"{number}/{MODEL_FILE}", "is missing")
    model = check_model(files[MODEL_FILE], what=str(where / MODEL_FILE))
    said, described = lineage(model), describe(model)
    has_report = "report.json" in files
    # Each version keeps the report that it was validated with, by whichever d2nas.
    is_foreign = has_report and not _has_our_schema(read_object(where, files, "report.json"))
    agreements: dict[str, Callable[[], bool]] = {
        "preprocess.json": lambda: _is_said(read_object(where, files, "preprocess.json"), said),
        "preprocess.py": lambda: is_known(files["preprocess.py"]),
        "labels.txt": lambda: _labels_fit(
            _text(where, files, "labels.txt").splitlines(),
            read_object(
                where, {PREPROCESS_KEY: said.get(PREPROCESS_KEY, "{}").encode()}, PREPROCESS_KEY
            ),
            described,
        ),
        "genotype.json": lambda: (
            said.get(GENOTYPE_KEY, "").encode() == files["genotype.json"].strip()
        ),
        LIBRARY_FILE: lambda: _is_named(read_object(where, files, LIBRARY_FILE), said),
        "golden.safetensors": lambda: _golden_fits(
            _golden(where, files["golden.safetensors"]), files.get(PICTURE_FILE), described
        ),
        "report.json": lambda: (
            is_foreign
            or _reports(
                _report(where, files),
                number,
                said,
                described,
                where / MODEL_FILE,
            )
        ),
    }
    for name in files.keys() & agreements.keys():
        if not agreements[name]():
            raise damaged(folder, f"{number}/{name}", f"contradicts {number}/{MODEL_FILE}")
    if is_foreign or not has_report:
        return f"its report: {'it has another schema' if is_foreign else 'it has none'}"
    return "its golden inputs, which it was not asked to answer"


def _check_size(folder: Path, sums: Mapping[str, str]) -> None:
    try:
        size = sum(os.lstat(folder / path).st_size for path in sums)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise damaged(folder, CHECKSUMS, f"lists what cannot be read: {error.strerror}") from None
    if size > _MAX_BUNDLE_BYTES:
        raise damaged(
            folder, CHECKSUMS, f"lists {size} bytes in all, at most {_MAX_BUNDLE_BYTES} are read"
        )


def _read(folder: Path, path: str, wanted: str) -> bytes:
    limit = MAX_MODEL_BYTES if path.endswith(MODEL_FILE) else _MAX_FILE_BYTES
    data = read_plain_file(folder / path, max_bytes=limit, hint=HINT, max_links=1)
    if hashlib.sha256(data).hexdigest() != wanted:
        raise damaged(folder, path, f"its SHA-256 is not the one in {CHECKSUMS}")
    return data


def _assemble(
    folder: Path,
    files: Mapping[str, bytes],
    content: bytes,
    number: int,
    others: Mapping[int, str],
    digest: str,
) -> Bundle:
    config = _text(folder, files, "config.pbtxt")
    _check_fields(folder, config)
    max_batch = _number(folder, config, r"^max_batch_size: ([1-9][0-9]{0,5})$")
    model = check_model(content, what=str(folder / str(number) / MODEL_FILE))
    description = describe(model)
    report = _report(folder, files)
    preprocess = read_object(folder, files, "preprocess.json")
    labels = tuple(_text(folder, files, "labels.txt").splitlines())
    bundle = Bundle(
        folder=folder,
        name=_name(folder, config),
        number=number,
        model=content,
        description=description,
        labels=labels,
        preprocess=preprocess,
        report=report,
        golden=_golden(folder, files["golden.safetensors"]),
        max_batch=max_batch,
        digest=digest,
        golden_png=files.get(PICTURE_FILE),
        files=files,
        other_versions=others,
    )
    if "preprocess.py" in files and not is_known(files["preprocess.py"]):
        raise damaged(folder, "preprocess.py", "is not the one that d2nas writes")
    _check_agreement(bundle, config, lineage(model))
    return bundle


def _check_agreement(bundle: Bundle, config: str, named: Mapping[str, str]) -> None:
    """Raise ``DamagedArtifactError`` where the files contradict the model that is served."""
    description, preprocess, folder = bundle.description, bundle.preprocess, bundle.folder
    channels, height, width = description.input_shape
    layout = "NHWC" if description.input_type == "uint8" else "NCHW"
    kind = "TYPE_UINT8" if description.input_type == "uint8" else "TYPE_FP32"
    dims = ", ".join(map(str, description.array_shape))
    device = bundle.report["device"]["kind"]
    agreements = {
        "labels.txt": _labels_fit(bundle.labels, preprocess, description),
        "preprocess.json": _is_said(preprocess, named)
        and preprocess.get("channels") == channels
        and preprocess.get("image_size") == height == width
        and preprocess.get("dtype") == description.input_type
        and preprocess.get("layout") == layout
        and preprocess.get("fit") in ("crop", "pad")
        and _is_fraction(preprocess.get("crop_fraction"))
        and all(_are_numbers(preprocess.get(key), channels) for key in ("mean", "std"))
        and 0 not in preprocess["std"],
        "config.pbtxt": f"data_type: {kind} dims: [ {dims} ]" in config
        and f"dims: [ {description.num_classes} ]" in config
        and f"kind: KIND_{'GPU' if device == 'cuda' else 'CPU'}" in config
        and bundle.max_batch == max(row["batch"] for row in bundle.report["parity"]["batches"]),
        "report.json": _reports(
            bundle.report, bundle.number, named, description, folder / str(bundle.number)
        ),
        **_architecture(bundle, named),
        "golden.safetensors": _golden_fits(bundle.golden, bundle.golden_png, description),
    }
    for name, agrees in agreements.items():
        if not agrees:
            raise damaged(folder, name, f"contradicts {bundle.number}/{MODEL_FILE}")


def _reports(
    report: Mapping[str, Any],
    number: int,
    named: Mapping[str, str],
    description: ModelDescription,
    model: Path,
) -> bool:
    """Whether a report is that of version ``number`` and of its ``model``."""
    claimed, roles = report["lineage"], ["derive", "retrain"]
    return (
        all(
            claimed.get(role) == named.get(f"d2nas.{role}")
            for role in (*roles, *(["search"] if "d2nas.search" in named else []))
        )
        and report.get("bundle_version") == number
        and _identified(report, named, model)
        and description.to_dict().items() <= report["model"].items()
        and {row["kind"] for row in report["latency"]} == {report["device"]["kind"]}
    )


def _architecture(bundle: Bundle, named: Mapping[str, str]) -> dict[str, bool]:
    """Return whether the file that says what the network is agrees with the model."""
    files, folder = bundle.files, bundle.folder
    if LIBRARY_FILE in files:
        return {LIBRARY_FILE: _is_named(read_object(folder, files, LIBRARY_FILE), named)}
    try:
        genotype = Genotype.from_json(files["genotype.json"], what="its content")
    except ConfigError as error:
        raise damaged(folder, "genotype.json", str(error)) from error
    return {"genotype.json": named.get(GENOTYPE_KEY) == genotype.to_json().strip()}


def _is_named(said: Mapping[str, Any], named: Mapping[str, str]) -> bool:
    """Whether ``architecture.json`` names the library's network that the model is said to be."""
    return said == {"model": named.get(LIBRARY_KEY)}


def _identified(report: Mapping[str, Any], named: Mapping[str, str], model: Path) -> bool:
    """Whether a report is of the architecture that the model is said to be."""
    identity = report.get("identity")
    if not isinstance(identity, dict):
        return False
    if (LIBRARY_KEY in named) == (GENOTYPE_KEY in named):
        return False
    if LIBRARY_KEY in named:
        return (
            report.get("architecture") == named[LIBRARY_KEY]
            and identity.get("graph_sha256") == named.get(GRAPH_KEY)
            and "genotype" not in report
        )
    genotype = Genotype.from_json(named[GENOTYPE_KEY], what=str(model))
    return (
        report.get("genotype_digest") == genotype.digest == identity.get("genotype_digest")
        and report.get("genotype") == genotype.to_dict()
    )


def _is_said(preprocess: Mapping[str, Any], said: Mapping[str, str]) -> bool:
    return canonical_json(preprocess).decode().strip() == said.get(PREPROCESS_KEY)


def _labels_fit(
    labels: Sequence[str], preprocess: Mapping[str, Any], description: ModelDescription
) -> bool:
    names = preprocess.get("class_names")
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and list(labels) == [one_line(name) for name in names]
        and len(labels) == description.num_classes
        and all(label.isprintable() for label in labels)
    )


def _golden_fits(
    golden: Mapping[str, NDArray[Any]], picture: bytes | None, description: ModelDescription
) -> bool:
    pairs = [("images", "logits")] if picture is None else [*_GOLDEN_PAIRS]
    return (
        golden.keys() == {"labels", *(name for pair in pairs for name in pair)}
        and golden["labels"].shape == (len(golden["images"]),)
        and ("picture" not in golden or len(golden["picture"]) == 1)
        and all(
            len(golden[images]) >= 1
            and golden[images].shape[1:] == description.array_shape
            and golden[images].dtype == description.dtype
            and golden[logits].shape == (len(golden[images]), description.num_classes)
            and golden[logits].dtype == np.float32
            for images, logits in pairs
        )
    )


def _golden(folder: Path, data: bytes) -> dict[str, NDArray[Any]]:
    found = decode_arrays(data, what=str(folder / "golden.safetensors"))
    picture = set(_GOLDEN_PAIRS[1])
    if found.keys() - picture != {"images", "logits", "labels"}:
        raise damaged(folder, "golden.safetensors", "does not hold images, logits and labels")
    return found


def _text(folder: Path, files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError:
        raise damaged(folder, name, "is not UTF-8 text") from None


def read_object(folder: Path, files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return the JSON object in a file of a bundle. Raises ``DamagedArtifactError``."""
    value = parse_json(files[name], what=str(folder / name))
    if not isinstance(value, dict):
        raise damaged(folder, name, "is no JSON object")
    try:
        canonical_json(value)
    except ValueError:
        raise damaged(folder, name, "has half of a character pair, which no text has") from None
    return value


def _check_fields(folder: Path, config: str) -> None:
    """Refuse what no bundle needs: a server would load other files or libraries by some fields."""
    text = re.sub(r'"[^"\n]*"', '""', config)
    for key in re.findall(r"([A-Za-z_][A-Za-z0-9_]*)\s*[:{\[<]", text):
        if key not in _CONFIG_FIELDS:
            raise damaged(folder, "config.pbtxt", f"has the field {key}, which d2nas never writes")
    if re.search(r"[^A-Za-z0-9_:\[\]{},\s\".-]", text):
        raise damaged(folder, "config.pbtxt", "has characters that d2nas never writes")


def _report(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the report, with the parts that are relied on in the form that they have."""
    report = read_object(folder, files, "report.json")
    if not _has_our_schema(report):
        raise DamagedArtifactError(
            f"{folder}: report.json has schema {str(report.get('schema'))[:80]}, "
            f"this d2nas reads schema {REPORT_SCHEMA}",
            hint="use the d2nas that wrote it, or validate the run again",
        )
    try:
        Report.model_validate(report)
    except ValidationError as error:
        problem = f"is no report that d2nas writes: {problem_of(error)}"
        raise damaged(folder, "report.json", problem) from None
    return report


def _has_our_schema(report: Mapping[str, Any]) -> bool:
    schema = report.get("schema")
    return type(schema) is int and schema == REPORT_SCHEMA


def _number(folder: Path, config: str, pattern: str) -> int:
    found = re.findall(pattern, config, flags=re.MULTILINE)
    if len(found) != 1:
        raise damaged(folder, "config.pbtxt", "does not say which version it serves, or how")
    return int(found[0])


def _name(folder: Path, config: str) -> str:
    found = re.findall(r'^name: "([A-Za-z0-9][A-Za-z0-9._-]{0,63})"$', config, flags=re.MULTILINE)
    if len(found) != 1:
        raise damaged(folder, "config.pbtxt", "does not say the model's name")
    return str(found[0])


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and 0.0 < value <= 1.0


def _are_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) for value in values)
    )

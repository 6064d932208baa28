"""The bundle: ``exported/`` is a Triton model repository, with what a person needs beside it.

``<name>/config.pbtxt``, ``labels.txt`` and ``<n>/model.onnx`` are what a server reads. The other
files describe the version that ``config.pbtxt`` serves. Everything is a function of stored
versions, so a missing or damaged bundle is written again without running a stage.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2nas.errors import DamagedArtifactError
from d2nas.strict_json import parse_json

from ..preprocess import preprocess_for
from ..report_page import report_page
from ..report_page.content import (
    Content,
    chance_caveat,
    gate_result,
    origin_of,
    searched_here,
)
from ..stages.forms import Preprocess, Report, read_form
from ..store import FileSystem, Version, safe_run_name
from ..store.fsio import TEMPORARY_PREFIX, is_there, storage_error
from ..store.layout import names_in
from ..store.locks import bundle_lock
from .checksums import CHECKSUMS, check_listing
from .triton import triton_config

CURVES = "curves.svg"
_PRECISIONS = {"fp32": "float32", "fp16": "float16"}


def write_bundle(
    exported: Path, name: str, versions: dict[str, Version], file_system: FileSystem | None = None
) -> Path:
    """Write or repair ``exported/name`` from a validated run's versions; returns its folder.

    The same model keeps its number, a new one gets the next. Files that are right already are not
    touched. Raises ``BusyError`` where another process keeps writing it, ``StorageError``, and
    ``DamagedArtifactError`` where a reader would refuse the bundle for what else lies there.
    """
    disk = file_system or FileSystem()
    exported = exported.absolute()
    disk.make_folder(exported)
    with bundle_lock(exported, safe_run_name(name)):
        return _write(exported / name, name, versions, disk)


def _write(folder: Path, name: str, versions: dict[str, Version], disk: FileSystem) -> Path:
    model = versions["export"].read("model.onnx")
    _remove_half_written(disk, folder)
    number = _number_of(folder, hashlib.sha256(model).hexdigest())
    disk.make_folder(folder / str(number))
    files = {f"{number}/model.onnx": model, **_documents(name, number, versions)}
    files["report.html"] = _page(name, number, versions, files)
    sums = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    for path, data in files.items():
        _put(disk, folder / path, data)
    # Older models stay listed as they were when they were written.
    sums = {**_known_models(folder), **sums}
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))
    _put(disk, folder / CHECKSUMS, lines.encode())
    _check_older_models(folder, sums)
    check_listing(folder, sums, own=True)
    return folder


def _check_older_models(folder: Path, sums: Mapping[str, str]) -> None:
    """Raise ``DamagedArtifactError`` for a model of an earlier version that is not what is listed.

    It would have every reader refuse the bundle, and nothing here says what it was made from.
    """
    for path, digest in sums.items():
        if path.endswith("/model.onnx") and _digest_of(folder / path) != digest:
            raise DamagedArtifactError(
                f"{folder}: {path}: its SHA-256 is not the one in {CHECKSUMS}",
                hint=f"remove {folder / path.split('/')[0]}, then write the bundle again",
            )


def _digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise storage_error(error, "read", path) from error


def _number_of(folder: Path, digest: str) -> int:
    # Listed is also a model whose folder somebody removed: its number may be known elsewhere.
    known = {**_listed_models(folder), **_known_models(folder)}
    for path, listed in known.items():
        if listed == digest:
            return int(path.split("/")[0])
    taken = [int(path.split("/")[0]) for path in known]
    # Listed strictly: what is not seen for a moment would be written over.
    taken += [
        int(name) for name in names_in(folder) if name.isdecimal() and _holds_a_model(folder / name)
    ]
    return max(taken, default=0) + 1


def _holds_a_model(path: Path) -> bool:
    """Whether a number is taken; an interruption may leave its folder empty."""
    return is_there(path) and (not path.is_dir() or bool(names_in(path)))


def _known_models(folder: Path) -> dict[str, str]:
    """Return the digests of the models that are listed, and of those that lie there unlisted: an
    interruption leaves one between a model and its list.
    """
    listed = _listed_models(folder)
    known = {name: digest for name, digest in listed.items() if is_there(folder / name)}
    for number in names_in(folder):
        name = f"{number}/model.onnx"
        if number.isdecimal() and name not in known and is_there(folder / name):
            known[name] = _digest_of(folder / name)
    return known


def _listed_models(folder: Path) -> dict[str, str]:
    if not is_there(folder / CHECKSUMS):
        return {}
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return {}
    except OSError as error:
        raise storage_error(error, "read", folder / CHECKSUMS) from error
    listed = {}
    for line in lines:
        digest, _, path = line.partition("  ")
        number, _, file_name = path.partition("/")
        if file_name == "model.onnx" and number.isdecimal() and len(digest) == 64:
            listed[path] = digest
    return listed


def _page(
    name: str, number: int, versions: Mapping[str, Version], files: Mapping[str, bytes]
) -> bytes:
    """Return the report for people, of the bundle's other files and the versions behind them."""
    report = parse_json(files["report.json"], what="report.json")
    # A single stage may stand on versions of an earlier run; only its own parents belong here.
    used = {
        stage: version
        for stage, version in versions.items()
        if report["lineage"].get(stage) == version.id
    }
    return report_page(
        name,
        number,
        report,
        parse_json(files["preprocess.json"], what="preprocess.json"),
        files["genotype.svg"],
        {
            stage: version.read(CURVES)
            for stage, version in used.items()
            if CURVES in version.manifest.files
        },
        manifests={
            stage: version.manifest.model_dump(by_alias=True) for stage, version in used.items()
        },
        files=files,
    )


def _remove_half_written(disk: FileSystem, folder: Path) -> None:
    """Remove what an interruption left: a bundle with a file that nobody lists is refused."""
    for pattern in (f"{TEMPORARY_PREFIX}*", f"*/{TEMPORARY_PREFIX}*"):
        for path in sorted(folder.glob(pattern)):
            disk.remove_file(path)


def _put(disk: FileSystem, path: Path, data: bytes) -> None:
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass  # missing or unreadable: written below
    disk.replace_file(path, data)


def _documents(name: str, number: int, versions: dict[str, Version]) -> dict[str, bytes]:
    read_form(Report, versions["validate"], "report.json")
    read_form(Preprocess, versions["retrain"], "preprocess.json")
    report = parse_json(versions["validate"].read("report.json"), what="report.json")
    trained = parse_json(versions["retrain"].read("preprocess.json"), what="preprocess.json")
    preprocess = preprocess_for(report["model"]["input_type"], trained)
    lineage = {**report["lineage"], "validate": versions["validate"].id}
    report |= {"bundle_version": number, "lineage": lineage}
    labels = "".join(f"{_one_line(label)}\n" for label in preprocess["class_names"])
    return {
        "config.pbtxt": triton_config(name, number, report).encode(),
        "labels.txt": labels.encode(),
        "preprocess.json": _pretty(preprocess),
        "genotype.json": versions["derive"].read("genotype.json"),
        "genotype.svg": versions["derive"].read("genotype.svg"),
        "golden.safetensors": versions["validate"].read("golden.safetensors"),
        "report.json": _pretty(report),
        "MODEL_CARD.md": _model_card(name, number, report, preprocess).encode(),
    }


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _model_card(name: str, number: int, report: dict[str, Any], preprocess: dict[str, Any]) -> str:
    content = Content(name, number, report, preprocess)
    data, accuracy, parity = report["data"], report["accuracy"], report["parity"]
    latency = "\n".join(
        f"| {entry['batch']} | {entry['device']} | {entry['provider']} "
        f"| {_milliseconds(entry['p50_ms'])} | {_milliseconds(entry['p90_ms'])} "
        f"| {_milliseconds(entry['p99_ms'])} | {entry['samples']} "
        f"| {'stable' if entry.get('stable') is True else '**unstable**'} |"
        for entry in report["latency"]
    )
    lineage = "\n".join(f"- {stage}: `{version}`" for stage, version in report["lineage"].items())
    return f"""# {name}, version {number}

Image classifier for {len(preprocess["class_names"])} classes; its architecture was
{origin_of(content)}.
Served as is by Triton (this folder lies in a model repository) or by ONNX Runtime.

- Input `images`: {_input_line(report["model"])}, prepared as `preprocess.json` says
- Output `logits`: float32 [batch, {len(preprocess["class_names"])}], classes in the order of
  `labels.txt`
- Computes in {_PRECISIONS[report["model"]["precision"]]}; {report["params"]:,} parameters,
  {report["macs"]:,} MACs ({report["macs_convention"]})

## Evidence

- Accuracy {100 * accuracy["onnx"]:.2f} % (ONNX Runtime), {100 * accuracy["torch"]:.2f} %
  (PyTorch), on {accuracy["test_images"]} {data["evaluation"]} images that neither
  search nor training read; weights of the last epoch{_cautions(content)}
- Parity {parity["verdict"]}: relative L2 {parity["relative_l2"]:.2e}, largest difference
  {parity["max_abs"]:.2e}, top-1 agreement {100 * parity["top1_agreement"]:.2f} %
- The gate rejected every deliberately faulty copy: {", ".join(report["self_test"]["rejected"])}
- Trained on {report["trained_on"]}; validated on {report["device"]["label"]}

| batch | device | provider | p50 ms | p90 ms | p99 ms | runs | steady? |
|---|---|---|---|---|---|---|---|
{latency}

## Data

{data["name"]}: {data["train"]} training images{_halves(content)},
{data["test"]} {data["evaluation"]} images. Content digest `{data["digest"]}`.

## Limits

Measured on one test set and one device, as stated above. The model answers every image with one of
its classes, also images of nothing it was trained on.

## Lineage

{lineage}

`report.html` shows all of this and more in a browser, without a network.
`golden.safetensors` holds prepared inputs and the logits to expect; `{CHECKSUMS}` the digests of
all files (`sha256sum -c {CHECKSUMS}`).
"""


def _cautions(content: Content) -> str:
    """Return the lines on an accuracy that may be chance, and on the gate on latency, if any."""
    chance, gate = chance_caveat(content), gate_result(content)
    return (f"\n- **Its accuracy of {chance}**" if chance else "") + (
        f"\n- Gate on latency passed: {gate}" if gate else ""
    )


def _input_line(model: Mapping[str, Any]) -> str:
    channels, height, width = model["input_shape"]
    if model["input_type"] == "uint8":
        return f"uint8 [batch, {height}, {width}, {channels}]"
    return f"float32 [batch, {channels}, {height}, {width}]"


def _halves(content: Content) -> str:
    if not searched_here(content):
        return ""
    data = content.report["data"]
    return (
        f" ({data['weight_half']} for the weights and\n{data['arch_half']} for the architecture "
        "during the search, all of them for the final training)"
    )


def _milliseconds(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"

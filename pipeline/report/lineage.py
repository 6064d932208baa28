"""The page's sections on where the model comes from: versions, settings, files."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from .facts import PRECISIONS, Content, device_kind, digest, model_file
from .html import Html, count, definitions, join, size, table, tag

_FILES = {
    "model.onnx": "the model, weights inside",
    "config.pbtxt": "how Triton serves it",
    "labels.txt": "class names in the order of the logits",
    "preprocess.json": "how a picture becomes the input",
    "preprocess.py": "does it, with Pillow and numpy only",
    "golden.png": "a picture to check the preparation with",
    "genotype.json": "the architecture",
    "genotype.svg": "the architecture drawn",
    "golden.safetensors": "prepared inputs with the logits to expect",
    "report.json": "this report as data",
    "manifests.json": "what each version of the lineage was made from, and its files",
    "latency.json": "every timed run",
    "MODEL_CARD.md": "a summary",
}


def lineage_section(content: Content) -> Html:
    """Return each stage's version, in full, and how it was made."""
    lineage = content.get("lineage")
    if not isinstance(lineage, Mapping):
        return Html("")
    order = ("search", "derive", "retrain", "export", "validate")
    stages = [stage for stage in order if stage in lineage]
    stages += sorted(stage for stage in lineage if stage not in order)
    items = [
        tag(
            "li",
            tag("strong", stage),
            tag("span", _how_made(content, stage)),
            digest(str(lineage[stage])),
        )
        for stage in stages
    ]
    libraries = content.made(stages[-1], "versions") if stages else None
    made_with = (
        ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
        if isinstance(libraries, Mapping)
        else None
    )
    return join(
        (
            tag(
                "p",
                "Each version names those it was made from; its id is the digest of its manifest.",
            ),
            tag("ol", *items, class_="lineage"),
            definitions(
                [
                    (
                        "Genotype",
                        digest(content.get("genotype_digest"))
                        if content.get("genotype_digest")
                        else None,
                    ),
                    ("Made with", made_with),
                ]
            ),
        )
    )


def _how_made(content: Content, stage: str) -> str:
    words: dict[str, Callable[[Content], str]] = {
        "search": _searched,
        "derive": _derived,
        "retrain": _retrained,
        "export": lambda c: model_file(c) or "to ONNX",
        "validate": lambda c: (
            f"passed on {device_kind(c.get('device') or {})}: {c.get('device', 'label')}"
        ),
    }
    return words[stage](content) if stage in words else ""


def _searched(content: Content) -> str:
    config = content.made("search", "config", "search")
    found_by = content.get("found_by")
    if not isinstance(config, Mapping):
        return f"by {found_by}"
    if found_by == "random":
        return f"drawn at random from {config.get('space')}, nothing was trained" + _seed(
            content, "search"
        )
    return (
        f"by {found_by} in {config.get('space')}: {config.get('num_cells')} cells x "
        f"{config.get('init_channels')} channels, {config.get('epochs')} epochs"
        f"{_seed(content, 'search')}"
    )


def _derived(content: Content) -> str:
    found_by = str(content.get("found_by") or "")
    if found_by.startswith("given: "):
        return f"no search; the genotype was {found_by}"
    candidates = content.made("derive", "facts", "candidates") or 1
    if candidates > 1:
        return f"the best of {candidates} candidate cells on the architecture half"
    if found_by == "random":
        return "the genotype that was drawn"
    return "the genotype that the search's logits say"


def _retrained(content: Content) -> str:
    config = content.get("retrain") or {}
    precision = content.made("retrain", "facts", "precision")
    images = count(content.get("data", "train"))
    told = f"from scratch, {config.get('epochs')} epochs of {images} images"
    told += f" on {content.get('trained_on')}" if content.get("trained_on") else ""
    told += f" in {PRECISIONS.get(precision, precision)}" if precision else ""
    return told + _seed(content, "retrain")


def _seed(content: Content, stage: str) -> str:
    seed = content.made(stage, "config", stage, "seed")
    seed = content.made(stage, "seed") if seed is None else seed
    return "" if seed is None else f", seed {seed}"


def configuration_section(content: Content) -> Html:
    """Return every value that the retraining (and the search) was configured with."""
    retrain = content.get("retrain")
    parts = []
    for stage, name, values in (
        ("retrain", "Final training", retrain),
        ("search", "Search", _search_settings(content)),
        ("data", "Data", content.made("retrain", "config", "data")),
    ):
        if isinstance(values, Mapping) and values:
            rows = [
                (tag("code", f"{stage}.{key}"), tag("code", _value(values[key])))
                for key in sorted(values)
            ]
            parts += [tag("h3", name), definitions(rows, "settings")]
    return join(parts)


def _search_settings(content: Content) -> Any:
    """Return the search's settings; of a random draw those that decide it."""
    values = content.made("search", "config", "search")
    if content.get("found_by") != "random" or not isinstance(values, Mapping):
        return values
    return {key: values[key] for key in ("method", "seed", "space") if key in values}


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def files_section(content: Content) -> Html:
    """Return what lies in the bundle beside this page."""
    if not content.files:
        return Html("")
    rows = []
    model_digest = None
    for path in sorted(content.files, key=lambda path: (path.count("/") == 0, path)):
        file_name = path.rpartition("/")[2]
        if file_name == "model.onnx":
            model_digest = hashlib.sha256(content.files[path]).hexdigest()
        rows.append((tag("code", path), _FILES.get(file_name, ""), size(len(content.files[path]))))
    return join(
        (
            table("In this folder", ("file", "what it is", "size"), rows, class_="words"),
            definitions(
                [
                    ("Model's SHA-256", digest(model_digest) if model_digest else None),
                    (
                        "Check all",
                        join((tag("code", "sha256sum -c SHA256SUMS"), " in this folder")),
                    ),
                ]
            ),
        )
    )

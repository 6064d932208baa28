"""Tables and lists that only the page has: the evidence in full, the network, the images, files."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from d2nas.measure.scores import wilson_interval
from d2nas.spaces import EDGES_PER_NODE, NUM_INPUTS, is_parameterless

from .facts import Facts, device_kind, is_stable
from .words import (
    NOT_APPLICABLE,
    Marked,
    Row,
    Table,
    Value,
    Word,
    count,
    find,
    milliseconds,
    percent,
    short_count,
    size,
    tiny,
)

_MAX_CLASSES_SHOWN = 100
_CELLS = (("normal", "normal"), ("reduce", "reduction"))
_INPUT_NAMES = {0: "c(k-2)", 1: "c(k-1)"}
_PARITY_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("images", "images", count),
    ("max abs", "max_abs", tiny),
    ("relative L2", "relative_l2", tiny),
    ("top-1 agreement", "top1_agreement", percent),
    ("top-5 agreement", "top5_agreement", percent),
    ("least cosine", "cosine", lambda v: NOT_APPLICABLE if v is None else f"{v:.7f}"),
    ("spread", "spread", lambda v: NOT_APPLICABLE if v is None else f"{v:.2f}"),
)
_LIMITS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("relative L2 at most", "relative_l2", tiny),
    ("top-1 agreement at least", "top1_agreement", percent),
    ("top-1 agreement is", "top1_rule", str),
    ("spread at least", "spread", tiny),
)
_FILES = {
    "model.onnx": "the model, weights inside",
    "config.pbtxt": "how Triton serves it",
    "labels.txt": "class names in the order of the logits",
    "preprocess.json": "how a picture becomes the input",
    "preprocess.py": "does it, with Pillow and numpy only",
    "golden.png": "a picture to check the preparation with",
    "architecture.json": "the network's name in its library",
    "genotype.json": "the architecture",
    "genotype.svg": "the architecture drawn",
    "golden.safetensors": "prepared inputs with the logits to expect",
    "report.json": "this report as data",
    "baselines.json": "other runs' networks, measured on the same images",
    "manifests.json": "what each version of the lineage was made from, and its files",
    "latency.json": "every timed run",
    "MODEL_CARD.md": "a summary",
}


class Figure(NamedTuple):
    """A figure that decides, large, with a note below."""

    name: str
    value: str
    note: Word


def figures(facts: Facts) -> list[Figure]:
    """Return accuracy, latency of the smallest batch, distance to PyTorch, and size."""
    accuracy, parity = facts.get("accuracy") or {}, facts.get("parity") or {}
    found = []
    if "onnx" in accuracy:
        images = f"{count(accuracy.get('test_images'))} {facts.images}"
        found.append(Figure("Accuracy", percent(accuracy["onnx"]), images))
    records = [record for record in facts.records("latency") if record.get("batch") is not None]
    if records:
        record = min(records, key=lambda r: r["batch"])
        name = "mean" if record.get("p50_ms") is None else "p50"
        note: Word = f"{name}, batch {record['batch']}"
        if not is_stable(record):
            note = Marked("UNSTABLE", "warn", f", {note}")
        # The device in its very name.
        value = f"{milliseconds(record.get(f'{name}_ms'))} ms"
        found.append(Figure(f"Latency on {device_kind(record)}", value, note))
    if "relative_l2" in parity:
        limit = f"relative L2, limit {tiny(find(parity, 'limits', 'relative_l2'))}"
        found.append(Figure("Distance to PyTorch", tiny(parity["relative_l2"]), limit))
    params, macs, stored = facts.get("params"), facts.get("macs"), facts.get("model", "bytes")
    if params is not None:
        notes = [] if macs is None else [f"{short_count(macs)} multiply-adds"]
        notes += [] if stored is None else [size(stored)]
        found.append(Figure("Parameters", short_count(params), ", ".join(notes)))
    return found


def accuracy_table(facts: Facts) -> Table | None:
    """Return the accuracies with the interval that so many images allow."""
    accuracy = facts.get("accuracy")
    if not isinstance(accuracy, Mapping):
        return None
    number = accuracy.get("test_images")
    rows = [
        (
            name,
            percent(accuracy[key]),
            _correct(accuracy[key], number),
            interval(accuracy[key], number),
        )
        for name, key in (
            ("ONNX Runtime, the exported model", "onnx"),
            ("PyTorch, the trained network", "torch"),
        )
        if accuracy.get(key) is not None
    ]
    caption = f"Top-1 accuracy on {count(number)} {facts.images}"
    return Table(caption, ("computed by", "accuracy", "correct", "95 % interval"), rows)


def _correct(share: float, num_images: int | None) -> str:
    return f"{round(share * num_images):,} of {num_images:,}" if num_images else NOT_APPLICABLE


def interval(share: float, num_images: int | None) -> str:
    """Return Wilson's interval of a share that was counted on so many images."""
    if not num_images:
        return NOT_APPLICABLE
    low, high = wilson_interval(share, num_images)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def parity_section(facts: Facts) -> Mapping[str, Any] | None:
    """Return how far the exported model is from the network, by batch size."""
    parity = facts.get("parity")
    if not isinstance(parity, Mapping):
        return None
    entries = facts.records("parity", "batches")
    limits = {k: v for k, v in (parity.get("limits") or {}).items() if v is not None}
    columns = [one for one in _PARITY_COLUMNS if any(e.get(one[1]) is not None for e in entries)]
    rows: list[list[Value]] = [
        [
            count(entry.get("batch")),
            *(write(entry.get(key)) for _, key, write in columns),
            _judged(entry),
        ]
        for entry in entries
    ]
    told = [f"{word} {write(limits[key])}" for word, key, write in _LIMITS if key in limits]
    checked = "copies of one image get one answer; a reordered batch reordered answers"
    return {
        "verdict": _judged(parity),
        "table": Table("By batch size", ("batch", *(c[0] for c in columns), "verdict"), rows),
        "facts": [
            ("limits", ", ".join(told) or None),
            ("also checked", checked),
            ("identity", facts.identity),
            *facts.quantisation,
            ("why not", "; ".join(str(r) for r in parity.get("reasons") or []) or None),
        ],
    }


def _judged(entry: Mapping[str, Any]) -> Marked:
    verdict = str(entry.get("verdict", "unknown"))
    return Marked(verdict, "good" if verdict == "passed" else "bad")


def network_section(facts: Facts) -> Mapping[str, Any]:
    """Return the operations of both cells: counted, by node, and as they are read aloud."""
    genotype = facts.get("genotype")
    if not isinstance(genotype, Mapping):
        aloud = "Drawing of the normal cell and the reduction cell"
        return {"operations": None, "edges": None, "aloud": aloud}
    cells = [_nodes(genotype, key) for key, _ in _CELLS]
    aloud = " ".join(
        f"{name.capitalize()} cell: "
        + "; ".join(
            f"node {number}: " + " and ".join(f"{op} of {_source(source)}" for op, source in pair)
            for number, pair in enumerate(cell, start=NUM_INPUTS)
        )
        + "."
        for cell, (_, name) in zip(cells, _CELLS, strict=True)
    )
    return {"operations": _operations(cells), "edges": _edges(cells), "aloud": aloud}


_Nodes = Sequence[Sequence[tuple[str, int]]]
"""A cell: for each node the operations that it reads, each with its source."""


def _nodes(genotype: Mapping[str, Any], cell: str) -> _Nodes:
    pairs = [(str(operation), int(source)) for operation, source in genotype.get(cell) or []]
    return [pairs[start : start + EDGES_PER_NODE] for start in range(0, len(pairs), EDGES_PER_NODE)]


def _source(source: int) -> str:
    return _INPUT_NAMES.get(source, f"node {source}")


def _operations(cells: Sequence[_Nodes]) -> Table:
    counters = [Counter(operation for pair in cell for operation, _ in pair) for cell in cells]
    names = sorted(counters[0] + counters[1], key=lambda n: (is_parameterless(n), n))
    rows: list[Sequence[Value]] = [
        [
            Marked(name, "code"),
            *(str(counter[name]) for counter in counters),
            "no" if is_parameterless(name) else "yes",
        ]
        for name in names
    ]
    without = [sum(c[name] for name in names if is_parameterless(name)) for c in counters]
    of_all = [f"{n} of {c.total()}" for n, c in zip(without, counters, strict=True)]
    rows.append(["without weights", *of_all, ""])
    return Table("Operations counted", ("operation", "normal", "reduction", "weights"), rows)


def _edges(cells: Sequence[_Nodes]) -> Table:
    rows: list[list[Value]] = [
        [
            str(number),
            *(
                [Marked(op, "code", f" of {_source(source)}") for op, source in pair]
                for cell in cells
                for pair in cell[number - NUM_INPUTS : number - NUM_INPUTS + 1] or [()]
            ),
        ]
        for number in range(NUM_INPUTS, NUM_INPUTS + max(len(cell) for cell in cells))
    ]
    return Table("What each node reads", ("node", "normal cell", "reduction cell"), rows)


def last_epoch(facts: Facts, stage: str) -> str:
    """Return the accuracy that a training ended with, and on what."""
    key = "train_accuracy" if stage == "retrain" else "arch_accuracy"
    value = facts.made(stage, "facts", key)
    if value is None:
        return "Accuracy is on training images."
    where = "training images" if stage == "retrain" else "the architecture half"
    chosen = stage == "retrain" and facts.stopping is not None
    which = "Best epoch" if chosen else "Last epoch"
    return f"{which}: {100 * value:.1f} % on {where}."


def class_counts(facts: Facts) -> Mapping[str, Any] | None:
    """Return the classes with their training images, and how long a bar shows them."""
    recorded = facts.get("data", "class_counts") or {}
    counts = {str(name): int(n) for name, n in recorded.items() if n is not None}
    if not counts:
        return None
    names = [name for name in facts.class_names if name in counts] or list(counts)
    smallest, largest = (choose(counts[name] for name in names) for choose in (min, max))
    return {
        "heading": f"Training images of the {len(names):,} classes",
        "range": f"{count(smallest)} to {count(largest)} images each",
        "is_long": len(names) > _MAX_CLASSES_SHOWN,
        "rows": [
            (name, count(counts[name]), f"{100 * counts[name] / max(1, largest):.0f}%")
            for name in names
        ],
    }


def preprocessing(facts: Facts) -> list[Row]:
    """Return how a picture becomes the model's input, and what the model answers."""
    made = facts.preprocess
    side, values = made.get("image_size"), made.get("value_range")
    low, high = values if isinstance(values, list) and len(values) == 2 else (None, None)
    return [
        ("input", facts.input),
        ("size", None if side is None else f"{side} x {side} pixels"),
        ("colours", _setting(made.get("colour_order"))),
        ("resize", _setting(made.get("resize"))),
        ("kept of the shorter side", _setting(made.get("crop_fraction"))),
        ("transparency", _setting(made.get("transparency"))),
        ("values", None if low is None else f"{low:g} to {high:g}"),
        ("formula", _setting(made.get("formula"))),
        ("mean", _numbers(made.get("mean"))),
        ("standard deviation", _numbers(made.get("std"))),
        ("output", facts.output),
    ]


def _numbers(values: Any) -> str | None:
    if not isinstance(values, list | tuple):
        return None
    return ", ".join(f"{float(value):.6g}" for value in values)


def configuration(facts: Facts) -> list[tuple[str, list[Row]]]:
    """Return every value that the retraining, the search and the data were configured with."""
    search = facts.made("search", "config", "search")
    if facts.get("found_by") == "random" and isinstance(search, Mapping):
        # Of a random draw those that decide it.
        search = {key: search[key] for key in ("method", "seed", "space") if key in search}
    sections = (
        ("retrain", "Final training", facts.get("retrain")),
        ("search", "Search", search),
        ("data", "Data", facts.made("retrain", "config", "data")),
    )
    return [
        (name, [(f"{stage}.{key}", _setting(values[key], "none")) for key in sorted(values)])
        for stage, name, values in sections
        if isinstance(values, Mapping) and values
    ]


def _setting(value: Any, none: str | None = None) -> str | None:
    if value is None:
        return none
    return str(value).lower() if isinstance(value, bool) else str(value)


def files_section(files: Mapping[str, bytes]) -> Mapping[str, Any] | None:
    """Return what lies in the bundle beside the page."""
    if not files:
        return None
    paths = sorted(files, key=lambda path: (path.count("/") == 0, path))
    rows = [
        (Marked(path, "code"), _FILES.get(path.rpartition("/")[2], ""), size(len(files[path])))
        for path in paths
    ]
    model = next((path for path in paths if path.rpartition("/")[2] == "model.onnx"), None)
    digest = model and Marked(hashlib.sha256(files[model]).hexdigest(), "digest")
    return {
        "table": Table("In this folder", ("file", "what it is", "size"), rows),
        "facts": [
            ("model's SHA-256", digest),
            ("check all", Marked("sha256sum -c SHA256SUMS", "code", " in this folder")),
        ],
    }

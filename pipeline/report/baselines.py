"""A model beside others of the same images: one row each, the differences in what counts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from d2nas.measure.scores import wilson_interval

from .classes import by_class
from .words import (
    NOT_APPLICABLE,
    Marked,
    Table,
    Value,
    Word,
    count,
    find,
    milliseconds,
    percent,
    size,
)

BASELINES_FILE = "baselines.json"


def baseline_row(run: str, report: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return what a comparison shows of a validated run, as JSON data; ``version`` is the id of its
    validation.
    """
    lowest = next(iter(by_class(report)), None)
    keys = ("batch", "p50_ms", "p99_ms")
    return {
        "run": run,
        "validate": version,
        "network": find(report, "architecture") or _cells_of(str(find(report, "found_by"))),
        "accuracy": find(report, "accuracy", "onnx"),
        "test_images": find(report, "accuracy", "test_images"),
        "balanced_accuracy": find(report, "balanced_accuracy"),
        "lowest_recall": None if lowest is None else [lowest["class"], lowest["recall"]],
        "params": find(report, "params"),
        "macs": find(report, "macs"),
        "bytes": find(report, "model", "bytes"),
        "data_digest": find(report, "data", "digest"),
        "device": find(report, "device", "label"),
        "latency": [{key: one.get(key) for key in keys} for one in report.get("latency") or []],
    }


def failed_row(run: str, network: str, reason: str) -> dict[str, Any]:
    """Return the row of a baseline that could not be trained, or that the gate refused."""
    return {"run": run, "network": network, "failed": reason}


def comparison(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return rows of ``baseline_row``, the model's own first, as the columns of a table; None for
    one alone.
    """
    if len(rows) < 2:
        return None
    batches = [one["batch"] for one in rows[0].get("latency") or []]
    shown = [*dict.fromkeys([*batches[:1], *batches[-1:]])]
    facts: list[tuple[str, Callable[[Mapping[str, Any]], Value]]] = [
        ("run", lambda row: str(row["run"])),
        ("accuracy", lambda row: percent(row["accuracy"])),
        ("95 % interval", _interval),
        ("balanced accuracy", lambda row: percent(row["balanced_accuracy"])),
        ("lowest recall", _lowest),
        ("parameters", lambda row: count(row["params"])),
        ("multiply-adds", lambda row: count(row["macs"])),
        ("model file", lambda row: NOT_APPLICABLE if row["bytes"] is None else size(row["bytes"])),
    ]
    facts += [
        (f"{key[:3]} ms, batch {batch}", partial(_time, batch=batch, key=key))
        for batch in shown
        for key in ("p50_ms", "p99_ms")
    ]
    lines: list[Sequence[Value]] = [
        [
            label,
            *("failed" if "failed" in row and label != "run" else write(row) for row in rows),
        ]
        for label, write in facts
    ]
    return Table("Beside baselines", ("", *(str(row["network"]) for row in rows)), lines)


def comparison_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what else to know of a comparison."""
    own, *others = rows
    notes = [
        "Same images, splits, recipe, export and gate; each measured by its own validation, one "
        "after the other. Accuracies whose intervals overlap are not told apart.",
        *(f"{row['network']}: failed, {row['failed']}" for row in others if "failed" in row),
    ]
    differing = [
        str(row["network"])
        for row in others
        if "failed" not in row
        and (row["data_digest"], row["device"]) != (own["data_digest"], own["device"])
    ]
    if differing:
        notes.append(f"Of other images or on another device: {', '.join(differing)}.")
    return notes


def _cells_of(found_by: str) -> str:
    given = found_by.removeprefix("given: ")
    return f"cells found by {found_by}" if given == found_by else f"cells of {given}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["accuracy"] is None or not row["test_images"]:
        return NOT_APPLICABLE
    low, high = wilson_interval(row["accuracy"], row["test_images"])
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _lowest(row: Mapping[str, Any]) -> Word:
    found = row["lowest_recall"]
    if found is None or found[1] is None:
        return NOT_APPLICABLE
    return Marked(percent(found[1]), "plain", f" ({found[0]})")


def _time(row: Mapping[str, Any], *, batch: int, key: str) -> str:
    times = {one["batch"]: one for one in row["latency"]}
    return milliseconds(times.get(batch, {}).get(key))

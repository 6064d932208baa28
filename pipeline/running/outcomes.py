"""Outcome of a stage for trackers: its settings, what it has made, how it ended."""

from collections.abc import Iterator, Mapping
from typing import Any

from d2nas.errors import StoppedError, ValidationFailedError, brief_reason
from d2nas.files.strict_json import parse_json

from ..store import Version
from ..tracking.sink import numbers

_MAX_TAG = 128
"""Characters of a fact that becomes a tag."""


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of the configuration that a stage depends on, ``section.field`` to text."""
    return {
        name: "none" if value is None else str(value)
        for section, values in config.items()
        for name, value in _entries(section, values)
    }


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for field, inner in value.items():
            yield from _entries(f"{name}.{field}", inner)
    else:
        yield name, value


def outcome_of(version: Version) -> dict[str, dict[str, Any]]:
    """Return what a finished stage tells: which version it made, of what, with which libraries, and
    its facts; a validation its verdict and latencies, by device.
    """
    manifest = version.manifest
    tags = {
        "version": str(version.reference),
        "id": version.id,
        "libraries": ", ".join(f"{name} {text}" for name, text in manifest.versions.items()),
    }
    tags |= {
        name: value
        for name, value in manifest.facts.items()
        if isinstance(value, str) and len(value) <= _MAX_TAG
    }
    metrics = dict(numbers(manifest.facts))
    if manifest.kind == "validate":
        tags["gate"] = "passed"
        report = parse_json(version.read("report.json"), what="report.json")
        for record in report["latency"]:
            where = f"latency/{record['kind']}/batch_{record['batch']}"
            metrics |= numbers({key: record[key] for key in ("p50_ms", "p99_ms")}, f"{where}/")
    return {"tags": tags, "metrics": metrics}


def outcome_of_error(error: BaseException) -> dict[str, dict[str, Any]]:
    """Return what a stage tells that did not finish."""
    name = "gate" if isinstance(error, ValidationFailedError) else "ended"
    how = {"gate": "refused", "ended": status_of(error)}[name]
    return {"tags": {name: f"{how}: {brief_reason(error)}"}, "metrics": {}}


def status_of(error: BaseException | None) -> str:
    """Return how an execution ended that raised ``error``."""
    if error is None:
        return "finished"
    return "stopped" if isinstance(error, StoppedError | KeyboardInterrupt) else "failed"

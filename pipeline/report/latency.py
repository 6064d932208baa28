"""Facts on latency: every figure beside the device that it was measured on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from d2nas.config.deployment import MIN_SAMPLES

from .facts import Facts, device_kind, is_stable
from .latency_chart import latency_chart
from .words import NOT_APPLICABLE, Marked, Row, Table, Value, Word, count, find, milliseconds

NEEDED_RUNS = {f"p{percent}_ms": runs for percent, runs in MIN_SAMPLES.items()}
"""Timed runs that a percentile needs, by its key in a record."""
MAX_DRIFT, MAX_VARIATION = 0.10, 0.25
"""Above these a measurement is not stable, as in ``onnx_io.latency`` (a test compares)."""
_TRANSFERS = {"none": "input and output on the device", "host": "from host to host"}
_COLUMNS = ("batch", "on", "p50", "p90", "p99", "mean", "min", "max", "images/s", "runs", "steady?")
_GPU_STATE = {
    "graphics_clock_mhz": "graphics clock, MHz",
    "memory_clock_mhz": "memory clock, MHz",
    "temperature_c": "temperature, °C",
    "memory_used_mib": "memory used, MiB",
    "memory_total_mib": "memory, MiB",
}

Record = Mapping[str, Any]


def latency_section(facts: Facts) -> Mapping[str, Any] | None:
    """Return what the page says of latency; None if none was measured."""
    records = facts.records("latency")
    if not records:
        return None
    kinds = words_once(map(device_kind, records))
    where = words_once(f"{record.get('device', 'unknown device')}" for record in records)
    providers = words_once(str(record.get("provider", "unknown provider")) for record in records)
    mode = records[0].get("mode")
    how = _TRANSFERS.get(str(records[0].get("transfers", "none")), "")
    how += f", mode {mode}" if mode else ""
    return {
        "kinds": kinds,
        "where": f"{where} ({providers}); {how}",
        "chart": latency_chart(records, f"Latency by batch size on {kinds}"),
        "table": _table(f"Latency on {kinds}, ms", records),
        "is_stable": all(map(is_stable, records)),
        "max_drift": f"{100 * MAX_DRIFT:.0f} %",
        "max_variation": f"{100 * MAX_VARIATION:.0f} %",
        "modes": _modes(facts, records),
        "eager": _eager(facts, records),
        "gpu": _gpu_state(facts),
    }


def words_once(found: Iterable[str]) -> str:
    """Return each different word once, in order."""
    return ", ".join(dict.fromkeys(found))


def steadiness(record: Record) -> Marked:
    """Say in words whether the measurement was steady, and if not, why."""
    if is_stable(record):
        return Marked("stable", "good")
    drift, variation = record.get("drift"), record.get("variation")
    reasons = []
    if isinstance(drift, int | float) and drift > MAX_DRIFT:
        reasons.append(f"medians drift by {100 * drift:.0f} %")
    if isinstance(variation, int | float) and variation > MAX_VARIATION:
        reasons.append(f"runs vary by {100 * variation:.0f} %")
    return Marked("UNSTABLE", "warn", " " + (", ".join(reasons) or "not shown to be steady"))


def percentile(record: Record, key: str) -> Word:
    """Return a percentile in milliseconds, or how many runs it would need."""
    value = record.get(key)
    if value is not None:
        return milliseconds(value)
    if (record.get("samples") or 0) >= NEEDED_RUNS[key]:
        return NOT_APPLICABLE
    return Marked(NOT_APPLICABLE, "plain", f" needs {NEEDED_RUNS[key]} runs")


def _table(caption: str, records: Sequence[Record]) -> Table:
    return Table(caption, _COLUMNS, [_row(record) for record in records])


def _row(record: Record) -> list[Value]:
    mean, batch = record.get("mean_ms"), record.get("batch")
    return [
        count(batch),
        device_kind(record),
        *(percentile(record, key) for key in ("p50_ms", "p90_ms", "p99_ms")),
        *(milliseconds(record.get(key)) for key in ("mean_ms", "min_ms", "max_ms")),
        f"{1000 * batch / mean:,.0f}" if mean and batch else NOT_APPLICABLE,
        count(record.get("samples")),
        steadiness(record),
    ]


def _modes(facts: Facts, shown: Sequence[Record]) -> Mapping[str, Any] | None:
    """Return the other ways of running and of copying that were timed, and which one is served."""
    others = [record for record in facts.records("latency_modes") if record not in shown]
    best, refused = facts.get("best_mode"), facts.get("refused_modes") or {}
    if not others and not refused:
        return None
    groups: dict[str, list[Record]] = {}
    for record in others:
        how = _TRANSFERS.get(str(record.get("transfers")), "copies not recorded")
        groups.setdefault(f"Mode {record.get('mode', 'plain')}, {how}", []).append(record)
    notes = [f"It is served in mode {best}."] if best else []
    if any("cuda-graph" in str(record.get("mode")) for record in others):
        notes.append(
            "CUDA graphs hold for one batch size each: timed for comparison, never served."
        )
    notes += [f"Mode {mode} was refused: {why}" for mode, why in refused.items()]
    tables = [
        _table(f"{how}: {words_once(map(device_kind, found))}, ms", found)
        for how, found in groups.items()
    ]
    return {"tables": tables, "notes": notes}


def _eager(facts: Facts, shown: Sequence[Record]) -> Table | None:
    records = facts.records("eager")
    if not records:
        return None
    models = {record.get("batch"): record for record in shown}
    rows = [
        [
            str(record.get("runtime", "PyTorch")),
            count(record.get("batch")),
            device_kind(record),
            percentile(record, "p50_ms"),
            milliseconds(record.get("mean_ms")),
            _ratio(record, models.get(record.get("batch"))),
            count(record.get("samples")),
            "stable" if is_stable(record) else Marked("UNSTABLE", "warn"),
        ]
        for record in records
    ]
    columns = ("runtime", "batch", "on", "p50", "mean", "times the model's", "runs", "steady?")
    return Table("The same network run by PyTorch, ms", columns, rows)


def _ratio(record: Record, model: Record | None) -> Word:
    """Return how many times the exported model's mean: of two steady figures of one device only."""
    if model is None or not model.get("mean_ms") or not record.get("mean_ms"):
        return NOT_APPLICABLE
    if device_kind(model) != device_kind(record):
        return Marked(NOT_APPLICABLE, "plain", " another device")
    if not (is_stable(model) and is_stable(record)):
        return Marked(NOT_APPLICABLE, "plain", " not stable")
    return f"{record['mean_ms'] / model['mean_ms']:.1f}"


def _gpu_state(facts: Facts) -> Table | None:
    if facts.device_kind != "GPU":
        return None
    rows = [
        (name, *(count(find(facts.report, "gpu", moment, key)) for moment in ("before", "after")))
        for key, name in _GPU_STATE.items()
        if find(facts.report, "gpu", "before", key) is not None
    ]
    return Table("State that the driver told", ("", "before", "after"), rows) if rows else None


def latency_rows(facts: Facts) -> list[Row]:
    """Return a row for each batch size, with its percentiles, as a terminal shows them; then how
    PyTorch compares at the smallest.

    Raises what a report lacks.
    """
    records = facts.report["latency"]
    rows: list[Row] = [
        (
            f"latency, batch {record['batch']}",
            f"{_percentiles(record)} ({record['samples']} runs"
            f"{'' if record['stable'] else ', UNSTABLE'})",
        )
        for record in records
    ]
    first = min(records, key=lambda record: int(record["batch"]))
    compared = [
        f"{record['runtime'].removeprefix('PyTorch eager, ')} {milliseconds(record['mean_ms'])} ms "
        f"({ratio}x)"
        for record in facts.report["eager"]
        if record["batch"] == first["batch"]
        and isinstance(ratio := _ratio(record, first), str)
        and ratio != NOT_APPLICABLE
    ]
    told = ", ".join(compared)
    return [*rows, (f"PyTorch, batch {first['batch']}", f"mean: {told}")] if told else rows


def _percentiles(record: Record) -> str:
    known = [
        f"{name} {milliseconds(record[f'{name}_ms'])} ms"
        for name in ("p50", "p90", "p95", "p99")
        if record.get(f"{name}_ms") is not None
    ]
    return ", ".join(known) or f"mean {milliseconds(record['mean_ms'])} ms"

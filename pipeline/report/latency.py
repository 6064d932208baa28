"""The page's section on latency: every figure beside the device that it was measured on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .facts import Content, device_kind, gate_result
from .html import NOT_APPLICABLE, Html, bullets, count, find, join, milliseconds, table, tag
from .latency_chart import latency_chart

NEEDED_RUNS = {"p50_ms": 11, "p90_ms": 64, "p95_ms": 130, "p99_ms": 662}
"""Timed runs that a percentile needs, as ``onnx_io.latency`` counts them (a test compares)."""
MAX_DRIFT, MAX_VARIATION = 0.10, 0.25
"""Above these a measurement is not stable, as there."""
_TRANSFERS = {"none": "input and output on the device", "host": "from host to host"}


def is_stable(record: Mapping[str, Any]) -> bool:
    """Whether the measurement was shown to be steady."""
    return record.get("stable") is True


def steadiness(record: Mapping[str, Any]) -> Html:
    """Say in words whether the measurement was steady, and if not, why."""
    if is_stable(record):
        return tag("span", "stable", class_="ok")
    reasons = []
    drift, variation = record.get("drift"), record.get("variation")
    if isinstance(drift, int | float) and drift > MAX_DRIFT:
        reasons.append(f"medians drift by {100 * drift:.0f} %")
    if isinstance(variation, int | float) and variation > MAX_VARIATION:
        reasons.append(f"runs vary by {100 * variation:.0f} %")
    if not reasons:
        reasons.append("not shown to be steady")
    return join((tag("strong", "UNSTABLE", class_="warn"), tag("small", " " + ", ".join(reasons))))


def latency_section(content: Content) -> Html:
    """Return the section's parts, or nothing if no latency was measured."""
    records = [record for record in content.items("latency") if isinstance(record, Mapping)]
    if not records:
        return Html("")
    kinds = _words(device_kind(record) for record in records)
    where = _words(f"{record.get('device', 'unknown device')}" for record in records)
    providers = _words(str(record.get("provider", "unknown provider")) for record in records)
    return join(
        (
            tag(
                "p",
                "Milliseconds for one batch, measured on ",
                tag("strong", kinds),
                f": {where} ({providers}){_how(records[0])}. Every timed run counts, none is "
                "trimmed.",
            ),
            _gate(content),
            tag(
                "figure",
                latency_chart(records, f"Latency by batch size on {kinds}"),
                tag(
                    "figcaption",
                    f"{kinds}. Dot: p50 (mean where runs are too few); thick line: up to the "
                    "highest percentile the runs support; thin line: fastest to slowest run. "
                    "Logarithmic scale.",
                ),
            ),
            _table(f"Latency on {kinds}, ms", records),
            _notes(records),
            _modes(content, records),
            _eager(content, records),
            _gpu_state(content),
        )
    )


def _words(found: Iterable[str]) -> str:
    """Return each different word once, in order."""
    return ", ".join(dict.fromkeys(found))


def _how(record: Mapping[str, Any]) -> str:
    transfers = _TRANSFERS.get(str(record.get("transfers", "none")), "")
    mode = record.get("mode")
    return f"; {transfers}" + (f", mode {mode}" if mode else "")


def _gate(content: Content) -> Html | None:
    gate = gate_result(content)
    return None if gate is None else tag("p", f"The model passed a gate on latency: {gate}.")


def _percentile(record: Mapping[str, Any], key: str) -> Html | str:
    value = record.get(key)
    if value is not None:
        return milliseconds(value)
    if (record.get("samples") or 0) >= NEEDED_RUNS[key]:
        return NOT_APPLICABLE
    return join((NOT_APPLICABLE, tag("small", f" needs {NEEDED_RUNS[key]} runs")))


def _row(record: Mapping[str, Any]) -> list[object]:
    mean, batch = record.get("mean_ms"), record.get("batch")
    per_second = f"{1000 * batch / mean:,.0f}" if mean and batch else NOT_APPLICABLE
    return [
        count(batch),
        device_kind(record),
        *(_percentile(record, key) for key in ("p50_ms", "p90_ms", "p99_ms")),
        *(milliseconds(record.get(key)) for key in ("mean_ms", "min_ms", "max_ms")),
        per_second,
        count(record.get("samples")),
        steadiness(record),
    ]


_COLUMNS = ("batch", "on", "p50", "p90", "p99", "mean", "min", "max", "images/s", "runs", "steady?")


def _table(caption: str, records: Sequence[Mapping[str, Any]]) -> Html:
    return table(caption, _COLUMNS, [_row(record) for record in records])


def _notes(records: Sequence[Mapping[str, Any]]) -> Html:
    notes = ["Images per second: the batch divided by the mean time."]
    if not all(is_stable(record) for record in records):
        notes.append(
            f"UNSTABLE: the medians of the first, middle and last third of the runs lie more than "
            f"{100 * MAX_DRIFT:.0f} % apart, their standard deviation is above "
            f"{100 * MAX_VARIATION:.0f} % of the mean, or the runs are too few to tell. "
            "Measure again on an idle machine before relying on these figures."
        )
    return bullets(notes, "notes")


def _modes(content: Content, shown: Sequence[Mapping[str, Any]]) -> Html | None:
    """Return the other ways of running and of copying that were timed."""
    others = [
        record
        for record in content.items("latency_modes")
        if isinstance(record, Mapping) and record not in shown
    ]
    refused = content.get("refused_modes") or {}
    if not others and not refused:
        return None
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in others:
        how = _TRANSFERS.get(str(record.get("transfers")), "copies not recorded")
        groups.setdefault(f"Mode {record.get('mode', 'plain')}, {how}", []).append(record)
    best = content.get("best_mode")
    chosen = [f"It is served in mode {best}."] if best else []
    if any("cuda-graph" in str(record.get("mode")) for record in others):
        chosen.append(
            "CUDA graphs hold for one batch size each: timed for comparison, never served."
        )
    chosen += [f"Mode {mode} was refused: {why}" for mode, why in refused.items()]
    return join(
        (
            tag("h3", "With copies, and in other modes"),
            *(
                _table(f"{how}: {_words(map(device_kind, found))}, ms", found)
                for how, found in groups.items()
            ),
            bullets(chosen, "notes"),
        )
    )


def _eager(content: Content, shown: Sequence[Mapping[str, Any]]) -> Html | None:
    records = [record for record in content.items("eager") if isinstance(record, Mapping)]
    if not records:
        return None
    models = {record.get("batch"): record for record in shown}
    rows = [
        [
            str(record.get("runtime", "PyTorch")),
            count(record.get("batch")),
            device_kind(record),
            _percentile(record, "p50_ms"),
            milliseconds(record.get("mean_ms")),
            _ratio(record, models.get(record.get("batch"))),
            count(record.get("samples")),
            "stable" if is_stable(record) else tag("strong", "UNSTABLE", class_="warn"),
        ]
        for record in records
    ]
    columns = ("runtime", "batch", "on", "p50", "mean", "times the model's", "runs", "steady?")
    return join(
        (
            tag("h3", "PyTorch without a compiler, for comparison"),
            table("The same network run by PyTorch, ms", columns, rows),
        )
    )


def _ratio(record: Mapping[str, Any], model: Mapping[str, Any] | None) -> Html | str:
    """Return how many times the exported model's mean: of two steady figures of one device only."""
    if model is None or not model.get("mean_ms") or not record.get("mean_ms"):
        return NOT_APPLICABLE
    if device_kind(model) != device_kind(record):
        return join((NOT_APPLICABLE, tag("small", " another device")))
    if not (is_stable(model) and is_stable(record)):
        return join((NOT_APPLICABLE, tag("small", " not stable")))
    return f"{record['mean_ms'] / model['mean_ms']:.1f}"


def _gpu_state(content: Content) -> Html | None:
    if device_kind(content.get("device") or {}) != "GPU":
        return None
    names = {
        "graphics_clock_mhz": "graphics clock, MHz",
        "memory_clock_mhz": "memory clock, MHz",
        "temperature_c": "temperature, °C",
        "memory_used_mib": "memory used, MiB",
        "memory_total_mib": "memory, MiB",
    }
    rows = [
        (name, *(count(find(content.report, "gpu", moment, key)) for moment in ("before", "after")))
        for key, name in names.items()
        if find(content.report, "gpu", "before", key) is not None
    ]
    if not rows:
        return None
    return join(
        (
            tag("h3", "The GPU before and after"),
            table("State that the driver told", ("", "before", "after"), rows),
        )
    )

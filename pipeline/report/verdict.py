"""The top of the page: what it is, whether and where it passed, what to know before using it."""

from collections.abc import Mapping

from .facts import (
    Content,
    chance_caveat,
    device_kind,
    isolated,
    origin_of,
    reduced_protocol,
    spaced,
)
from .html import (
    Html,
    bullets,
    count,
    definitions,
    find,
    join,
    milliseconds,
    percent,
    short_count,
    size,
    tag,
    text,
    tiny,
)
from .latency import is_stable


def header(content: Content) -> Html:
    """Return name, version, verdict with its device, and the figures that decide."""
    classes = count(content.num_classes)
    origin = origin_of(content)
    lead = f"Image classifier for {classes} classes" + (
        f"; its architecture was {origin}." if origin else "."
    )
    return tag(
        "header",
        tag("p", "Model report", class_="kicker"),
        tag(
            "h1",
            isolated(content.name),
            tag("span", f" version {content.number}", class_="version"),
        ),
        tag("p", lead, class_="lead"),
        _verdict(content),
        _figures(content),
        _caveats(content),
    )


def _verdict(content: Content) -> Html:
    device = content.get("device") or {}
    kind = device_kind(device)
    provider = device.get("provider", "provider not recorded")
    label = f"{device.get('label', 'device not recorded')} ({provider})"
    if not content.passed:
        return tag(
            "p",
            tag("strong", "Not validated"),
            tag("span", f"The gate did not pass this model on {label}. Do not deploy it."),
            class_="verdict bad",
        )
    scope = {
        "CPU": "Every figure of time below is a CPU figure; nothing was measured on a GPU.",
        "GPU": "Provider and place of every node were checked; nothing fell back to the CPU.",
    }.get(kind, "What it ran on is not recorded: take no figure of time for granted.")
    chance = chance_caveat(content)
    verdict = f"Validated on {kind}" + (", but its accuracy may be chance" if chance else "")
    return tag(
        "p",
        tag("strong", verdict),
        tag("span", f"{label}. {scope}"),
        class_="verdict bad" if chance or kind == "unknown device" else "verdict good",
    )


def _figures(content: Content) -> Html:
    accuracy, parity = content.get("accuracy") or {}, content.get("parity") or {}
    rows: list[tuple[object, object]] = []
    if "onnx" in accuracy:
        images = count(accuracy.get("test_images"))
        rows.append(
            _figure(
                "Accuracy",
                percent(accuracy["onnx"]),
                f"{images} {spaced(content.evaluation)} images",
            )
        )
    rows += _fastest(content)
    if "relative_l2" in parity:
        limit = find(parity, "limits", "relative_l2")
        rows.append(
            _figure(
                "Distance to PyTorch",
                tiny(parity["relative_l2"]),
                f"relative L2, limit {tiny(limit)}",
            )
        )
    if content.get("params") is not None:
        note = (
            [f"{short_count(content.get('macs'))} multiply-adds"]
            if content.get("macs") is not None
            else []
        )
        stored = content.get("model", "bytes")
        note += [size(stored)] if stored is not None else []
        rows.append(_figure("Parameters", short_count(content.get("params")), ", ".join(note)))
    return definitions(rows, "figures")


def _figure(name: str, value: object, note: object) -> tuple[object, object]:
    return name, join((tag("span", value, class_="big"), tag("small", note)))


def _fastest(content: Content) -> list[tuple[object, object]]:
    """Return the latency of the smallest batch, with its device in its very name."""
    found = [record for record in content.items("latency") if isinstance(record, Mapping)]
    records = [record for record in found if record.get("batch") is not None]
    if not records:
        return []
    record = min(records, key=lambda r: r["batch"])
    name = "mean" if record.get("p50_ms") is None else "p50"
    note: object = f"{name}, batch {record['batch']}"
    if not is_stable(record):
        note = join((text(note), ", ", tag("strong", "UNSTABLE", class_="warn")))
    value = milliseconds(record.get(f"{name}_ms"))
    return [_figure(f"Latency on {device_kind(record)}", f"{value} ms", note)]


def _caveats(content: Content) -> Html:
    """Return what a person must know before relying on the figures."""
    found: list[object] = []
    chance = chance_caveat(content)
    if chance:
        found.append(
            join(
                (
                    tag("strong", "Its accuracy may be chance", class_="bad"),
                    f": {chance}. Validation shows that the file computes what the network "
                    "computes, not that the network has learned.",
                )
            )
        )
    gate = content.get("latency_gate")
    if isinstance(gate, Mapping) and gate.get("stable") is False:
        found.append(
            join(
                (
                    tag("strong", "The gate's latency is UNSTABLE"),
                    ": it passed on a figure that was not shown to be steady.",
                )
            )
        )
    reduced = reduced_protocol(content)
    if reduced:
        found.append(join((tag("strong", "Reduced protocol"), f": {'; '.join(reduced)}.")))
    unstable = [r for r in content.items("latency") if isinstance(r, Mapping) and not is_stable(r)]
    if unstable:
        sizes = ", ".join(str(r.get("batch")) for r in unstable)
        found.append(
            join((tag("strong", "Latency is UNSTABLE"), f" at batch {sizes}: measure again."))
        )
    found += [
        join((tag("strong", "Data"), ": ", isolated(str(line)), "."))
        for line in content.items("data", "warnings")
    ]
    found.append(f"Measured on one set of {spaced(content.evaluation)} images and one device.")
    found.append(
        "It answers every image with one of its classes, also images of nothing it was trained on."
    )
    return tag(
        "section",
        tag("h2", "Before you deploy it", id="caveats"),
        bullets(found),
        class_="caveats",
        aria_labelledby="caveats",
    )

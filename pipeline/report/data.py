"""The page's sections on the images: which ones, and how a picture becomes the input."""

from collections.abc import Mapping
from typing import Any

from .facts import Content, digest, isolated, pictures_line, reduced_protocol, searched_here
from .html import Html, bullets, count, definitions, join, tag

_MAX_CLASSES_SHOWN = 100


def data_section(content: Content) -> Html:
    """Return which images, how many of each class, and what is wrong with them."""
    data = content.get("data")
    if not isinstance(data, Mapping):
        return Html("")
    side, channels = data.get("image_size"), data.get("channels")
    line, halves = pictures_line(content), None
    if searched_here(content) and data.get("weight_half") is not None:
        halves = (
            f"{count(data['weight_half'])} for the weights, {count(data.get('arch_half'))} for the "
            "architecture; the final training sees all"
        )
    warnings = content.items("data", "warnings")
    reduced = reduced_protocol(content)
    return join(
        (
            definitions(
                [
                    ("Data set", isolated(str(data["name"])) if "name" in data else None),
                    (
                        "Images",
                        None if side is None else f"{side} x {side} pixels, {_colours(channels)}",
                    ),
                    ("Pictures", None if line is None else isolated(line)),
                    ("Training", _images(data.get("train"))),
                    ("In the search", halves),
                    (content.evaluation.capitalize(), _images(data.get("test"))),
                    ("Reduced", "; ".join(reduced) or None),
                    ("Digest", digest(data["digest"]) if "digest" in data else None),
                    (
                        "Warnings",
                        bullets((isolated(str(w)) for w in warnings), "plain warn")
                        if warnings
                        else "none",
                    ),
                ]
            ),
            _classes(content, data),
        )
    )


def _images(number: int | None) -> str | None:
    return None if number is None else f"{count(number)} images"


def _colours(channels: int | None) -> str:
    return {1: "grey", 3: "colour"}.get(channels or 0, f"{channels} channels")


def _classes(content: Content, data: Mapping[str, Any]) -> Html | None:
    recorded = data.get("class_counts") or {}
    counts = {str(name): int(n) for name, n in recorded.items() if n is not None}
    if not counts:
        return None
    names = [name for name in content.class_names if name in counts] or list(counts)
    largest = max(1, *(counts[name] for name in names))
    items = [
        tag(
            "li",
            tag("span", isolated(name), class_="name"),
            tag("span", count(counts[name]), class_="count"),
            tag("span", class_="bar", style=f"width:{100 * counts[name] / largest:.0f}%"),
        )
        for name in names
    ]
    listed = tag("ul", *items, class_="classes")
    heading = tag("h3", f"Training images of the {len(names):,} classes")
    if len(names) <= _MAX_CLASSES_SHOWN:
        return join((heading, listed))
    smallest = min(counts[name] for name in names)
    told = f"{count(smallest)} to {count(largest)} images each"
    return join((heading, tag("details", tag("summary", f"{told}; all of them"), listed)))


def preprocessing_section(content: Content) -> Html:
    """Return how a picture becomes the model's input, and what the model answers."""
    made = content.preprocess
    known = (
        ("Size", _pixels(made)),
        ("Colours", made.get("colour_order")),
        ("Resize", made.get("resize")),
        ("Kept of the shorter side", made.get("crop_fraction")),
        ("Transparency", made.get("transparency")),
        ("Values", _range(made.get("value_range"))),
        ("Formula", made.get("formula")),
        ("Mean", _numbers(made.get("mean"))),
        ("Standard deviation", _numbers(made.get("std"))),
    )
    return definitions(
        [
            ("Input", _input(content)),
            *known,
            ("Output", _output(content)),
        ]
    )


def _pixels(made: Mapping[str, Any]) -> str | None:
    side = made.get("image_size")
    return None if side is None else f"{side} x {side} pixels"


def _range(values: Any) -> str | None:
    return (
        f"{values[0]:g} to {values[1]:g}" if isinstance(values, list) and len(values) == 2 else None
    )


def _numbers(values: Any) -> str | None:
    if not isinstance(values, list | tuple):
        return None
    return ", ".join(f"{float(value):.6g}" for value in values)


def _input(content: Content) -> Html | None:
    made = content.preprocess
    side, channels, kind = made.get("image_size"), made.get("channels"), made.get("dtype")
    if side is None or channels is None:
        return None
    axes = (
        f"{side}, {side}, {channels}"
        if made.get("layout") == "NHWC"
        else f"{channels}, {side}, {side}"
    )
    return join(
        (tag("code", f"images: {kind} [batch, {axes}]"), f" ({made.get('layout', 'NCHW')})")
    )


def _output(content: Content) -> Html | None:
    if content.num_classes is None:
        return None
    return join(
        (
            tag("code", f"logits: float32 [batch, {content.num_classes}]"),
            ", one for each class in the order above",
        )
    )

"""The page's sections on what the gate found: accuracy, parity, the gate's own test."""

from collections.abc import Callable, Mapping
from typing import Any

from d2nas.measure.scores import wilson_interval

from .facts import Content, reduced_protocol, spaced
from .html import (
    NOT_APPLICABLE,
    Html,
    bullets,
    count,
    definitions,
    join,
    percent,
    table,
    tag,
    text,
    tiny,
)


def accuracy_section(content: Content) -> Html:
    """Return the accuracies, on what, and after which training."""
    accuracy = content.get("accuracy")
    if not isinstance(accuracy, Mapping):
        return Html("")
    num_images = accuracy.get("test_images")
    rows = [
        (
            name,
            percent(accuracy[key]),
            _correct(accuracy[key], num_images),
            _interval(accuracy[key], num_images),
        )
        for name, key in (
            ("ONNX Runtime, the exported model", "onnx"),
            ("PyTorch, the trained network", "torch"),
        )
        if accuracy.get(key) is not None
    ]
    kind = "Held-out training images" if content.evaluation == "held-out" else "Test images"
    caption = f"Top-1 accuracy on {count(num_images)} {spaced(content.evaluation)} images"
    return join(
        (
            table(caption, ("computed by", "accuracy", "correct", "95 % interval"), rows),
            definitions(
                [
                    ("Images", f"{kind} that neither search nor training read"),
                    ("Weights", "of the last epoch; none was chosen by these images"),
                    ("Training", _training(content)),
                    ("Protocol", _protocol(content)),
                    ("Floor", _floor(accuracy)),
                    (
                        "Resolution",
                        f"one image is {100 / num_images:.2g} points" if num_images else None,
                    ),
                ]
            ),
        )
    )


def _correct(share: float, num_images: int | None) -> str:
    if not num_images:
        return NOT_APPLICABLE
    return f"{round(share * num_images):,} of {num_images:,}"


def _interval(share: float, num_images: int | None) -> str:
    """Return Wilson's interval of a share that was counted on so many images."""
    if not num_images:
        return NOT_APPLICABLE
    low, high = wilson_interval(share, num_images)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _training(content: Content) -> str | None:
    epochs, images = content.get("retrain", "epochs"), content.get("data", "train")
    if epochs is None or images is None:
        return None
    trained_on = content.get("trained_on")
    where = {"cpu": " on a CPU", "cuda": " on a GPU"}.get(str(trained_on), "")
    return f"{epochs:,} epochs on {images:,} training images{where}"


def _protocol(content: Content) -> Html | str | None:
    reasons = reduced_protocol(content)
    if not reasons:
        if content.made("retrain", "config", "data") is None:
            return None
        return "all training images that are not test images"
    return join((tag("strong", "reduced protocol"), f": {'; '.join(reasons)}"))


def _floor(accuracy: Mapping[str, Any]) -> str | None:
    floor = accuracy.get("floor")
    return (
        None if floor is None else f"at least {100 * floor:g} % of PyTorch's accuracy was required"
    )


def parity_section(content: Content) -> Html:
    """Return how far the exported model is from the network, and which copies were rejected."""
    parity = content.get("parity")
    if not isinstance(parity, Mapping):
        return Html("")
    limits = parity.get("limits") or {}
    entries = [entry for entry in parity.get("batches") or [] if isinstance(entry, Mapping)]
    columns = [
        name for name, key in _PARITY_COLUMNS if any(e.get(key) is not None for e in entries)
    ]
    rows = [
        [
            count(entry.get("batch")),
            *(_WRITERS[key](entry.get(key)) for name, key in _PARITY_COLUMNS if name in columns),
            _judged(entry),
        ]
        for entry in entries
    ]
    return join(
        (
            tag(
                "p",
                "The exported model against the trained network in float32, on the images above: ",
                _judged(parity),
                ".",
            ),
            table("By batch size", ("batch", *columns, "verdict"), rows) if rows else None,
            definitions(
                [
                    ("Limits", _limits(limits)),
                    (
                        "Also checked",
                        "copies of one image get one answer; a reordered batch reordered answers",
                    ),
                    ("Why not", "; ".join(str(r) for r in parity.get("reasons") or []) or None),
                ]
            ),
            _self_test(content),
        )
    )


_PARITY_COLUMNS = (
    ("images", "images"),
    ("max abs", "max_abs"),
    ("relative L2", "relative_l2"),
    ("top-1 agreement", "top1_agreement"),
    ("top-5 agreement", "top5_agreement"),
    ("least cosine", "cosine"),
    ("spread", "spread"),
)
_WRITERS: Mapping[str, Callable[[Any], str]] = {
    "images": count,
    "max_abs": tiny,
    "relative_l2": tiny,
    "top1_agreement": percent,
    "top5_agreement": percent,
    "cosine": lambda value: NOT_APPLICABLE if value is None else f"{value:.7f}",
    "spread": lambda value: NOT_APPLICABLE if value is None else f"{value:.2f}",
}


def _judged(entry: Mapping[str, Any]) -> Html:
    verdict = str(entry.get("verdict", "unknown"))
    if verdict == "passed":
        return tag("span", verdict, class_="ok")
    return tag("strong", verdict, class_="bad")


def _limits(limits: Mapping[str, Any]) -> str | None:
    parts = [
        f"{name} {word} {write(limits[key])}"
        for name, word, key, write in (
            ("relative L2", "at most", "relative_l2", tiny),
            ("top-1 agreement", "at least", "top1_agreement", percent),
            ("top-1 agreement", "is", "top1_rule", str),
            ("spread", "at least", "spread", tiny),
        )
        if limits.get(key) is not None
    ]
    return ", ".join(parts) or None


def _self_test(content: Content) -> Html | None:
    self_test = content.get("self_test")
    if not isinstance(self_test, Mapping):
        return None
    rejected, accepted = self_test.get("rejected") or [], self_test.get("accepted") or []
    if accepted:
        told: Html = tag(
            "strong", f"The gate let {len(accepted)} faulty copies through:", class_="bad"
        )
    else:
        told = text(
            f"The same gate was shown {len(rejected)} deliberately faulty copies of the model and "
            "rejected every one:"
        )
    return join(
        (
            tag("h3", "Self-test of the gate"),
            tag("p", told),
            bullets(accepted or rejected, "plain columns"),
        )
    )

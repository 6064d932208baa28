"""Facts of the report's page, and sentences that several of its sections share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .html import Html, count, find, milliseconds, percent, size, tag

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

DeviceKind = Literal["CPU", "GPU", "unknown device"]


@dataclass(frozen=True)
class Content:
    """Stored data of one bundle. Any part may miss keys: what is not known is not shown.

    ``report`` and ``preprocess`` are the bundle's JSON files, ``curves`` the SVGs of the search
    and the retraining, ``manifests`` the manifests by stage, ``files`` the bundle's other files.
    """

    name: str
    number: int
    report: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    genotype_svg: bytes | None = None
    curves: Mapping[str, bytes] = field(default_factory=dict)
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def get(self, *path: str) -> Any:
        """Return a value of the report, or None."""
        return find(self.report, *path)

    def items(self, *path: str) -> list[Any]:
        """Return a list of the report; none is empty."""
        found = self.get(*path)
        return list(found) if isinstance(found, list | tuple) else []

    def made(self, stage: str, *path: str) -> Any:
        """Return a value of a stage's manifest, or None."""
        return find(self.manifests, stage, *path)

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the logits."""
        return [str(name) for name in self.preprocess.get("class_names") or []]

    @property
    def num_classes(self) -> int | None:
        """Number of classes."""
        return len(self.class_names) or self.get("model", "num_classes")

    @property
    def evaluation(self) -> str:
        """Name of the images that the accuracy is of."""
        return str(self.get("data", "evaluation") or "test")

    @property
    def passed(self) -> bool:
        """Whether the gate let the model through and was itself shown to reject faulty ones."""
        return self.get("parity", "passed") is True and self.get("self_test", "passed") is True


def device_kind(record: Mapping[str, Any]) -> DeviceKind:
    """Say what a record was measured on. A GPU only where nothing in the record speaks against."""
    kind, provider = record.get("kind"), record.get("provider")
    says = {
        {"cpu": "CPU", "cuda": "GPU"}.get(str(kind)) if kind is not None else None,
        {CPU_PROVIDER: "CPU", CUDA_PROVIDER: "GPU"}.get(str(provider))
        if provider is not None
        else None,
    } - {None}
    if says == {"CPU"}:
        return "CPU"
    return "GPU" if says == {"GPU"} else "unknown device"


def reduced_protocol(content: Content) -> list[str]:
    """Say in what the accuracy is not that of the whole data set's protocol."""
    reasons = []
    kept = content.made("retrain", "config", "data", "train_images")
    if kept is not None:
        reasons.append(f"only {kept:,} training images were kept")
    if content.evaluation == "held-out":
        reasons.append("accuracy is on held-out training images, the test images are unread")
    return reasons


def isolated(value: str) -> Html:
    """Return a name that somebody else chose, so that its direction stays its own."""
    return tag("bdi", value)


def spaced(word: str) -> str:
    """Write a configured word as people do."""
    return {"held-out": "held-out training"}.get(word, word)


def origin_of(content: Content) -> str | None:
    """Say in words where the architecture comes from; None where it is not recorded."""
    found_by = content.get("found_by")
    if found_by is None:
        return None
    if str(found_by).startswith("given: "):
        return f"not searched here ({found_by})"
    if found_by == "random":
        return "drawn at random, without a look at any data"
    where = "the data it classifies" if content.get("found_on_this_data") else "other data"
    return f"found by a search ({found_by}) on {where}"


def chance_caveat(content: Content) -> str | None:
    """Say that the accuracy may be that of always answering one class; None if it is not."""
    accuracy = content.get("accuracy") or {}
    if accuracy.get("near_chance") is not True:
        return None
    return (
        f"{percent(accuracy.get('onnx'))} may be chance: always answering the largest class "
        f"reaches {percent(accuracy.get('largest_class_share'))}"
    )


def gate_result(content: Content) -> str | None:
    """Say what the gate on latency allowed and what was measured; None without a gate."""
    gate = content.get("latency_gate")
    if not isinstance(gate, Mapping):
        return None
    what = f"p99 of batch {gate.get('batch')}"
    what += ", from host to host" if gate.get("transfers") == "host" else ""
    what += f", mode {gate['mode']}" if gate.get("mode") else ""
    told = f"{what}, at most {milliseconds(gate.get('max_p99_ms'))} ms"
    if gate.get("p99_ms") is not None:
        told += f": {milliseconds(gate['p99_ms'])} ms on {device_kind(gate)}"
    return told + (", UNSTABLE" if gate.get("stable") is False else "")


def pictures_line(content: Content) -> str | None:
    """Return what sizes the pictures of a folder have and what was made of them; None where that is
    not recorded.
    """
    line = content.get("data", "pictures", "line")
    return None if line is None else str(line)


def searched_here(content: Content) -> bool:
    """Whether a search read this data set's training images: a random draw reads none."""
    return bool(content.get("found_on_this_data")) and content.get("found_by") != "random"


def model_file(content: Content) -> str | None:
    """Describe the ONNX file; None where nothing of it is recorded."""
    parts = []
    if content.get("model", "bytes") is not None:
        parts.append(size(content.get("model", "bytes")))
    if content.get("model", "opset") is not None:
        parts.append(f"ONNX opset {content.get('model', 'opset')}")
    if content.get("model", "num_nodes") is not None:
        parts.append(f"{count(content.get('model', 'num_nodes'))} nodes")
    precision = content.get("model", "precision")
    if precision is not None:
        parts.append(f"computes in {PRECISIONS.get(str(precision), str(precision))}")
    return ", ".join(parts) or None


def digest(value: str) -> Html:
    """Return a digest or id in full."""
    return tag("code", value, class_="hash")

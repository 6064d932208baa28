"""Facts of a version's manifest in words: the rows of ``show`` and the line of ``ls``."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from d2nas.errors import ConfigError
from d2nas.genotype import Genotype
from d2nas.spaces import CELL_TYPES, SPACES

from .facts import PRECISIONS
from .words import count, parameterless, percent, size, tiny


def setting_words(value: Any) -> str:
    """Write a value as ``--set`` takes it, of several by name or in a list."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_inner(item, setting_words)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_inner(item, setting_words) for item in value) + "]"
    return str(value)


def fact_words(value: Any) -> str:
    """Write a value that nobody sets: its numbers rounded, without what is not known."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        known = [(key, item) for key, item in value.items() if item is not None]
        return ", ".join(f"{key}={_inner(item, fact_words)}" for key, item in known)
    if isinstance(value, list):
        return "[" + ", ".join(_inner(item, fact_words) for item in value) + "]"
    return setting_words(value)


def _inner(value: Any, write: Callable[[Any], str]) -> str:
    return f"({write(value)})" if isinstance(value, Mapping) else write(value)


def space_words(space: Any) -> str:
    """Write a search space: one of d2nas's by its name."""
    for known in SPACES.values():
        if space == known.to_dict():
            return known.name
        if space == known.with_none().to_dict():
            return f"{known.name} with none"
    return setting_words(space)


def _cells(genotype: Any) -> str:
    found = Genotype.from_dict(genotype)
    return "; ".join(f"{cell} {found.describe(cell)}" for cell in CELL_TYPES)


def _nats(entropy: Mapping[str, float | None]) -> str:
    known = [f"{cell} {value:.3f}" for cell, value in entropy.items() if value is not None]
    return f"{', '.join(known)} nats" if known else "not learned"


def _accuracy(found: Any) -> str:
    if not isinstance(found, Mapping):
        return percent(found)
    both = f"{percent(found['onnx'])} (ONNX Runtime), {percent(found['torch'])} (PyTorch)"
    caution = ", may be chance" if found.get("near_chance") is True else ""
    return f"{both}, on {count(found['test_images'])} images{caution}"


class _Fact(NamedTuple):
    """A fact's label and how its value is written; in a line of ``ls``, if it is in one."""

    label: str
    write: Callable[[Any], str] = fact_words
    in_line: str | None = None


_FACTS: Mapping[str, _Fact] = {
    "accuracy": _Fact("accuracy", _accuracy, "accuracy {}"),
    "calibrated_loss": _Fact("calibrated loss"),
    "temperature": _Fact("best temperature"),
    "evaluation": _Fact("measured on", "{} images".format),
    "images": _Fact("images", count),
    "step": _Fact("step", count, "step {}"),
    "method": _Fact("search method"),
    "found_by": _Fact("found by"),
    "limit": _Fact("limit of its cost"),
    "costs": _Fact("cost of cells"),
    "candidates": _Fact("candidates", count),
    "trainings": _Fact("short trainings", count),
    "searched_space": _Fact("search space", space_words),
    "architecture": _Fact("network"),
    "genotype": _Fact("genotype", _cells),
    "genotype_digest": _Fact("genotype digest"),
    "arch_accuracy": _Fact("accuracy on the architecture half", percent, "architecture half {}"),
    "parameterless_normal": _Fact("parameterless", parameterless, "parameterless {}"),
    "op_entropy": _Fact("entropy of operations", _nats),
    "edge_entropy": _Fact("entropy of edges", _nats),
    "teacher": _Fact("teacher"),
    "train_accuracy": _Fact("accuracy while training", percent, "training accuracy {}"),
    "params": _Fact("parameters", count, "{} parameters"),
    "macs": _Fact("multiply-adds", count),
    "params_20x36": _Fact("parameters of 20 cells, 36 channels", count),
    "macs_20x36": _Fact("multiply-adds of 20 cells, 36 channels", count),
    "steps": _Fact("steps", count),
    "passes": _Fact("passes of sub-networks", count),
    "bytes": _Fact("model file", size),
    "num_nodes": _Fact("nodes", count, "{} nodes"),
    "opset": _Fact("ONNX opset"),
    "precision": _Fact("computes in", lambda name: PRECISIONS.get(str(name), str(name))),
    "calibration": _Fact("calibrated by"),
    "input_type": _Fact("takes"),
    "input_shape": _Fact("input shape"),
    "num_classes": _Fact("classes", count),
    "relative_l2": _Fact("parity, relative distance", tiny, "parity {}"),
    "max_abs": _Fact("parity, largest difference", tiny),
    "data_digest": _Fact("digest of the images"),
    "searched_data_digest": _Fact("digest of the images searched on"),
    "ir_version": _Fact("ONNX IR version"),
}
"""By key of the manifest, in the order that they are shown; others follow by their key."""


def version_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a version's facts as (label, value) rows; what is not known is left out."""
    known = {key: facts[key] for key in _FACTS if key in facts}
    rows = [
        (_FACTS[key].label if key in _FACTS else key, _written(key, value))
        for key, value in {**known, **facts}.items()
        if value is not None
    ]
    accuracy = facts.get("accuracy")
    if isinstance(accuracy, Mapping):
        rows[1:1] = [
            (label, fact_words(accuracy[key]))
            for key, label in (
                ("floor", "required part of PyTorch's accuracy"),
                ("largest_class_share", "part of the largest class"),
            )
            if key in accuracy
        ]
    return rows


def version_line(facts: Mapping[str, Any]) -> str:
    """Return a version's most telling facts in a line."""
    told = ", ".join(
        fact.in_line.format(_written(key, facts[key]))
        for key, fact in _FACTS.items()
        if fact.in_line is not None and facts.get(key) is not None
    )
    return f"{facts['evaluation']} {told}" if told and facts.get("evaluation") else told


def _written(key: str, value: Any) -> str:
    fact = _FACTS.get(key)
    if fact is None:
        return fact_words(value)
    try:
        return fact.write(value)
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError):
        return fact_words(value)  # not what d2nas writes; it is shown all the same

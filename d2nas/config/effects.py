"""Keys of the configuration that another key's value makes ineffective."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..errors import one_line
from . import (
    CELL_FIELDS,
    TEACHER_FIELDS,
    UNREAD_BY_DEFAULT,
    Config,
    RetrainConfig,
    SearchConfig,
    other_method,
)
from .registry import data_sets

_GIVEN = object()
"""Stands for any value but none."""

_READ_BY_A_FRONT = ("derive.rank_by", "derive.rank_epochs")
_SEARCH = tuple(f"search.{field}" for field in SearchConfig.model_fields)


def _unread_by_method(name: str) -> list[str]:
    method = other_method(name)
    unread = UNREAD_BY_DEFAULT if method is None else method.unread
    return [f"search.{field}" for field in unread]


UNREAD: Mapping[str, Mapping[Any, Collection[str]] | Callable[[Any], Collection[str]]] = {
    "data.name": lambda name: data_sets.find(name).unread,
    "data.stream": {"never": ("data.workers",)},
    "data.evaluation": {"test": ("data.held_out_images",)},
    "data.fit": {"pad": ("data.crop_fraction",)},
    "data.crop": {"shift": ("data.color_jitter",)},
    "derive.genotype": {_GIVEN: _SEARCH},
    "derive.model": {_GIVEN: (*_SEARCH, *(f"retrain.{field}" for field in CELL_FIELDS))},
    "search.method": _unread_by_method,
    "search.estimator": {
        "straight-through": ("search.reward",),
        "score": ("search.edge_gate_scale", "search.temperature_start", "search.temperature_end"),
    },
    "search.weight_optimizer": {"rmsprop": ("search.weight_momentum",)},
    "derive.budget": {_GIVEN: ("derive.candidates", "derive.rank_by")},
    "derive.candidates": {1: ("derive.rank_by", "derive.rank_epochs", "derive.temperature")},
    "derive.rank_by": {"supernet": ("derive.rank_epochs",)},
    "retrain.optimizer": {"adamw": ("retrain.momentum", "retrain.nesterov")},
    "retrain.teacher": {None: tuple(f"retrain.{field}" for field in TEACHER_FIELDS)},
    "retrain.auxiliary": {False: ("retrain.auxiliary_weight",)},
    "retrain.patience": {None: ("retrain.validation_fraction",)},
    "export.precision": {
        "fp32": ("export.calibration_images",),
        "fp16": ("export.calibration_images",),
    },
}
"""Key to its values, each with the keys that are not read where it holds; or to a function that
says them. A key stands behind those that may make it ineffective."""


def without_effect(
    config: Config, keys: Iterable[str], *, streams: bool | None = None
) -> dict[str, list[str]]:
    """Return those of ``keys`` (``section.field``) that change nothing, by what makes them so.

    ``streams``: whether image files are read while training, where that is known.
    """
    values = config.to_dict()
    asked, found = list(dict.fromkeys(keys)), dict[str, list[str]]()
    ineffective = set[str]()
    for choice, unread in UNREAD.items():
        if choice in ineffective:
            continue  # what is not read decides nothing
        section, _, field = choice.partition(".")
        value = values[section][field]
        names = _names(unread, value)
        if choice == "derive.candidates" and config.derive.pareto is not None:
            names = [name for name in names if name not in _READ_BY_A_FRONT]
        ineffective.update(names)
        words = "none" if value is None else one_line(str(value), 80)
        _take(asked, names, f"{choice}={words}", found)
    if not config.needs_table:
        _take(asked, ("run.latency_table",), "no limit on latency", found)
    if streams is False:
        _take(asked, ("data.workers",), "the images fit into memory", found)
    return found


def _names(
    unread: Mapping[Any, Collection[str]] | Callable[[Any], Collection[str]], value: Any
) -> Collection[str]:
    if callable(unread):
        return unread(value)
    given = _GIVEN if value is not None and _GIVEN in unread else value
    return unread.get(given, ())


def effect_line(found: Mapping[str, Collection[str]]) -> str | None:
    """Return the line that tells what ``without_effect`` found; None where that is nothing."""
    parts = [f"{', '.join(keys)} ({reason})" for reason, keys in found.items()]
    return f"has no effect: {'; '.join(parts)}" if parts else None


def preset_line(
    config: Config, of_presets: Mapping[str, tuple[Any, str]], given: Collection[str]
) -> str | None:
    """Return the line that tells which values of a preset hold in place of defaults of the search
    method, or of the optimizer that was chosen; None where there are none.

    ``of_presets``: keys to a value and the preset that sets it; ``given``: keys that the user set.
    """
    lines = [_of_method(config, of_presets, given), _of_optimizer(config, of_presets, given)]
    return "; ".join(line for line in lines if line is not None) or None


def _of_optimizer(
    config: Config, of_presets: Mapping[str, tuple[Any, str]], given: Collection[str]
) -> str | None:
    if config.retrain.optimizer == "sgd":
        return None
    own = RetrainConfig(optimizer=config.retrain.optimizer)
    keys = {"retrain.lr": own.lr, "retrain.weight_decay": own.weight_decay}
    parts = [
        f"{key}={of_presets[key][0]} ({of_presets[key][1]}) in place of AdamW's {default}"
        for key, default in keys.items()
        if key in of_presets and key not in given and of_presets[key][0] != default
    ]
    return "; ".join(parts) or None


def _of_method(
    config: Config, of_presets: Mapping[str, tuple[Any, str]], given: Collection[str]
) -> str | None:
    name = config.search.method
    method = other_method(name)
    if method is None or config.derive.given is not None:
        return None
    own = {f"search.{field}": value for field, value in method.settings({}).items()}
    settled = (*given, *_unread_by_method(name))
    parts = [
        f"{key}={value} ({preset}) in place of {name}'s own {own[key]}"
        for key, (value, preset) in of_presets.items()
        if key in own and value != own[key] and key not in settled
    ]
    return "; ".join(parts) or None


def _take(
    asked: list[str], names: Collection[str], reason: str, found: dict[str, list[str]]
) -> None:
    """Move the keys that are among ``names`` from ``asked`` to ``found``."""
    taken = [key for key in asked if key in names]
    if taken:
        found[reason] = taken
        asked[:] = [key for key in asked if key not in taken]

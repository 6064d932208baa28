"""Search: images to architecture logits, by D2NAS or one of its rivals."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import model_validator

from d2nas.config import QUANTITIES, TRAINING_KEYS, Config, SearchConfig, other_method
from d2nas.config.section import NonNegative
from d2nas.costs import CellCosts
from d2nas.files.text_files import read_space
from d2nas.spaces import SearchSpace

from ..latency.limits import costs_key, search_costs
from ..report.training_curves import SEARCH_PANELS, cost_panel, draw_curves
from ..store.forms import Form, require_valid
from .stage import METRICS_FILE, Context, Facts, Stage, always, encode_rows, run_loop

LOGITS_FILE = "logits.safetensors"
SUPERNET_FILE = "supernet.safetensors"
CURVES_FILE = "curves.svg"

MIN_CELLS = 3
"""Fewest cells of which one is not a reduction cell."""


def run(context: Context) -> Facts:
    """Write ``logits.safetensors``, ``metrics.jsonl`` (a row per epoch) and the supernet's weights,
    which a selection step in derive may ask.
    """
    from d2nas.files.tensors import encode_tensors
    from d2nas.methods.within_budget import cheapest
    from d2nas.parallel import ALONE
    from d2nas.train.loop import memory_errors, torch_device
    from d2nas.train.machine import machine_facts
    from d2nas.train.search import Search

    config = context.config
    ranks = context.ranks or ALONE
    device = ranks.device(torch_device(ranks.own_name(config.search.device)))
    data = context.data()
    costs = search_costs(
        config,
        channels=data.channels,
        image_size=data.image_size,
        num_classes=len(data.class_names),
    )
    with memory_errors(config.search.batch_size, device):
        search = Search(
            config.search,
            read_space(config.search.space),
            data,
            seed=config.run.seed,
            device=device,
            augmentation=config.data,
            costs=costs,
            ranks=ranks,
        )
    if config.search.num_cells < MIN_CELLS:
        context.hooks.warn(
            f"with search.num_cells={config.search.num_cells} all cells are reduction cells: the "
            "normal cell is not searched"
        )
    if costs is not None and config.search.limit is not None:
        limit = config.search.limit
        context.hooks.say(
            f"search: at most {costs.describe(limit.value)} expected ({limit.key}); the cheapest "
            f"cell takes {costs.describe(costs.of(cheapest(costs)))}"
        )
    passes = sum(search.method.passes)
    context.hooks.say(
        f"search in {search.space.name} by {config.search.method} on {device}: "
        f"{search.num_steps} steps of {passes} sub-network passes"
    )
    run_loop(search, context.hooks)
    context.work.write(LOGITS_FILE, encode_tensors(search.logits.state_dict()))
    context.work.write(SUPERNET_FILE, encode_tensors(search.supernet.state_dict()))
    context.work.write(METRICS_FILE, encode_rows(search.metrics))
    panels = SEARCH_PANELS if costs is None else {**SEARCH_PANELS, **cost_panel(costs.quantity)}
    context.work.write(CURVES_FILE, draw_curves(search.metrics, panels).encode())
    last = search.metrics[-1]
    return {
        "device": device.type,
        "precision": config.search.precision,
        "arithmetic": asdict(search.arithmetic),
        **machine_facts(device.type, ranks),
        "data_digest": data.digest,
        "method": config.search.method,
        "searched_space": search.space.to_dict(),
        "steps": search.num_steps,
        "passes": search.num_passes,
        "arch_accuracy": last.get("arch_accuracy"),
        "op_entropy": last["op_entropy"],
        "edge_entropy": last["edge_entropy"],
        "parameterless_normal": last["parameterless_normal"],
        "genotype": last["genotype"],
        **({} if costs is None else _cost_facts(costs, config.search, last)),
    }


def _cost_facts(costs: CellCosts, search: SearchConfig, last: Mapping[str, Any]) -> Facts:
    """Return what was limited or weighed, and what it is at the end of the search."""
    keys = (f"expected_{costs.quantity}", f"derived_{costs.quantity}")
    limit = None if search.limit is None else search.limit.value
    ends = {key: last[key] for key in keys}
    return {"costs": {"quantity": costs.quantity, "limit": limit, **ends}}


def _config(config: Config) -> dict[str, Any]:
    """Return the search's settings; the space itself decides, not the path of its file.

    Keys are as before there were revisions, estimators, clips of a branch, drop-path, weights of
    classes, trainings of single cells, and limits where these change nothing: a method's revision
    is among the settings from 2 on, the others where they are chosen.
    """
    space = read_space(config.search.space)
    settings = {**config.to_dict()["search"], "space": space.name}
    del settings["recipe"]  # its values are there
    if config.search.estimator == "straight-through":
        del settings["estimator"], settings["reward"]
    if config.search.clip == "sum":
        del settings["clip"]
    if config.search.weight_optimizer == "sgd":
        del settings["weight_optimizer"]
    if config.search.drop_path == 0.0:
        del settings["drop_path"]
    if config.search.class_weights == "none":
        del settings["class_weights"]
    for key in TRAINING_KEYS:
        if settings[key] == SearchConfig.model_fields[key].default:
            del settings[key]
    for key in (*(f"max_{quantity}" for quantity in QUANTITIES), "latency_weight"):
        if settings[key] is None:
            del settings[key]
    part: dict[str, Any] = {"search": settings, "space": space.to_dict()}
    if config.search.limit is not None or config.search.latency_weight is not None:
        limit = config.search.limit
        part["costs"] = costs_key(config, "latency_ms" if limit is None else limit.quantity)
    method = other_method(config.search.method)
    if method is not None and method.revision != 1:
        part["method_revision"] = method.revision
    return part


class _Facts(Form):
    searched_space: dict[str, Any]
    data_digest: str
    passes: NonNegative | None = None
    device: str | None = None

    @model_validator(mode="after")
    def _is_a_space(self) -> "_Facts":
        require_valid(SearchSpace.from_dict, self.searched_space)
        return self


class _Method(Form):
    method: str


class _RecordedConfig(Form):
    search: _Method


STAGE = Stage(
    name="search",
    parents=(),
    code_schema=6,
    run=run,
    own_config=_config,
    reads_data=always,
    checkpoints=True,
    parallel=True,
    facts=_Facts,
    recorded_config=_RecordedConfig,
)

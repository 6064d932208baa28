"""Derive: architecture logits to a genotype, its cost and its drawing.

The genotype is the method's own answer. With ``derive.candidates`` above 1 or a ``derive.budget``
it is the best of several cells on the architecture half; the test images are not touched.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from d2nas.config import QUANTITIES, Config, Limit
from d2nas.config.registry import search_methods
from d2nas.config.section import NonNegative
from d2nas.files.strict_json import canonical_json
from d2nas.genotype import Genotype, genotype_name, is_genotype_file, read_genotype
from d2nas.spaces import SearchSpace

from ..latency.limits import costs_key, costs_of, table_of
from ..onnx_io import LIBRARY_FILE
from ..report.front_drawing import draw_front
from ..report.genotype_drawing import draw_genotype
from ..store.forms import Form, require_valid
from .front import FrontCell, front_cells, front_line, front_rows, measured
from .search import LOGITS_FILE, SUPERNET_FILE
from .stage import (
    METRICS_FILE,
    Context,
    Facts,
    Stage,
    bytes_to_write,
    encode_rows,
    training_settings,
)

if TYPE_CHECKING:
    import torch

    from d2nas.methods.base import Method
    from d2nas.nn.sampling import ArchLogits
    from d2nas.train.candidates import Candidate
    from d2nas.train.comparison import Comparison


GENOTYPE_FILE = "genotype.json"
COST_FILE = "cost.json"
DRAWING_FILE = "genotype.svg"
CANDIDATES_FILE = "candidates.json"
FRONT_FILE, FRONT_DRAWING_FILE = "front.json", "front.svg"

_STOPPING = ("patience", "validation_fraction")
_FINAL_TRAINING = ("seed", "epochs", "device", *_STOPPING)
"""Keys of ``retrain`` that short trainings do not read."""


def run(context: Context) -> Facts:
    """Write ``genotype.json``, ``cost.json`` (at the CIFAR-10 size) and ``genotype.svg``; with a
    selection step also ``candidates.json``, every candidate with its accuracies and calibrated
    losses; with a budget ``metrics.jsonl``, a row per training; with ``derive.pareto`` a front,
    ``front.json`` and ``front.svg``. With ``derive.model`` nothing but its name.
    """
    from d2nas.measure.cost import MACS_CONVENTION, count_cost
    from d2nas.nn.network import Network

    given, model = context.config.derive.genotype, context.config.derive.model
    if model is not None:
        context.work.write(LIBRARY_FILE, canonical_json({"model": model}))
        return {"architecture": model, "found_by": f"given: {model}", "searched_data_digest": None}
    if given is None:
        genotype, compared = _searched(context)
    else:
        genotype, compared = read_genotype(given), {"candidates": 1}
    if context.config.derive.pareto is not None:
        _write_front(context, genotype, context.config.derive.pareto)
    cost = count_cost(Network(genotype), (3, 32, 32))
    context.work.write(GENOTYPE_FILE, genotype.to_json().encode())
    context.work.write(
        COST_FILE,
        canonical_json(
            {
                "setting": "20 cells, 36 channels, 3 x 32 x 32 pixels, 10 classes",
                "params": cost.params,
                "macs": cost.macs,
                "macs_convention": MACS_CONVENTION,
            }
        ),
    )
    context.work.write(DRAWING_FILE, draw_genotype(genotype).encode())
    return {
        "genotype": genotype.to_dict(),
        "genotype_digest": genotype.digest,
        "parameterless_normal": genotype.parameterless_normal,
        "params_20x36": cost.params,
        "macs_20x36": cost.macs,
        **compared,
        **_origin(context),
    }


def _learned(context: Context) -> "tuple[type[Method], ArchLogits]":
    """Return the method of the search and its logits."""
    from d2nas.files.tensors import decode_tensors
    from d2nas.nn.network import load_weights
    from d2nas.nn.sampling import ArchLogits

    search = context.inputs["search"]
    logits = ArchLogits(SearchSpace.from_dict(search.manifest.facts["searched_space"]))
    what = f"{search.reference}: {LOGITS_FILE}"
    load_weights(logits, decode_tensors(search.read(LOGITS_FILE), what=what), what=what)
    return search_methods.find(search.manifest.config["search"]["method"]), logits


def _searched(context: Context) -> tuple[Genotype, Facts]:
    """Return the genotype of the search's logits, and how many it was compared with and where."""
    method, logits = _learned(context)
    derive, limit = context.config.derive, context.config.derive_limit
    if derive.budget is not None:
        genotype, compared = _spend(context, logits, derive.budget)
    elif limit is not None:
        return _within_limit(context, logits, method, limit)
    elif derive.candidates > 1:
        genotype, compared = _select(context, logits), {"candidates": derive.candidates}
    else:
        context.hooks.begin(1, 0, "genotype")
        genotype = method.derive_from(logits)
        context.hooks.advance(1, None)
        return genotype, {"candidates": 1}
    return genotype, compared | _compared_on(context)


def _within_limit(
    context: Context, logits: "ArchLogits", method: "type[Method]", limit: Limit
) -> tuple[Genotype, Facts]:
    """Return the best cell within a limit by the method's rule, and what it is counted or predicted
    to take.
    """
    from d2nas.methods.within_budget import best_within

    config, data, hooks = context.config, context.data(), context.hooks
    hooks.begin(1, 0, "genotype")
    costs = costs_of(
        config,
        limit.quantity,
        logits.space,
        channels=data.channels,
        image_size=data.image_size,
        num_classes=len(data.class_names),
    )
    derived = method.derive_from(logits)
    genotype = best_within(method, logits, costs, limit.value)
    found, unlimited = costs.of(genotype), costs.of(derived)
    if genotype == derived:
        within = "the most probable cell"
    else:
        within = f"the most probable cell takes {costs.describe(unlimited)}, so it is another one"
    facts: Facts = {"candidates": 1, "limit": {"quantity": limit.quantity, "value": limit.value}}
    if limit.quantity == "latency_ms":
        table = table_of(config)
        within += f", for batch {table.serving.batch} on {table.device['label']}"
        facts["limit"]["latency_table"] = table.digest
    hooks.say(
        f"derive: {costs.describe(found)} of at most {costs.describe(limit.value)} by {limit.key}: "
        f"{within}"
    )
    hooks.advance(1, None)
    facts["limit"] |= {"derived": found, "unlimited": unlimited}
    return genotype, facts


def _origin(context: Context) -> Facts:
    """Return the method of the search and the digest of its images, or a given genotype's name."""
    given = context.config.derive.genotype
    if given is not None:
        name = Path(given).name if is_genotype_file(given) else genotype_name(given)
        return {"found_by": f"given: {name}", "searched_data_digest": None}
    search = context.inputs["search"].manifest
    return {
        "found_by": search.config["search"]["method"],
        "searched_data_digest": search.facts["data_digest"],
    }


def _compared_on(context: Context) -> Facts:
    """Return the machine that compared candidates, as its sums may decide."""
    from d2nas.train.loop import torch_device
    from d2nas.train.machine import machine_facts

    device = torch_device(context.config.search.device).type
    return {"device": device, **machine_facts(device, context.ranks)}


def _select(context: Context, logits: "ArchLogits") -> Genotype:
    """Compare candidates, write them down, and return the best."""
    from d2nas.train.candidates import best, sample_candidates

    derive, seed = context.config.derive, context.config.run.seed
    temperature = 1.0 if derive.temperature is None else derive.temperature
    genotypes = sample_candidates(logits, derive.candidates, seed=seed, temperature=temperature)
    if len(genotypes) < derive.candidates:
        context.hooks.warn(f"the learned distribution gave only {len(genotypes)} different cells")
    candidates = _ranked(context, logits.space, genotypes)
    rows = [
        {
            "genotype": candidate.genotype.to_dict(),
            "accuracy": candidate.accuracy,
            "calibrated_loss": candidate.calibrated_loss,
        }
        for candidate in candidates
    ]
    context.work.write(CANDIDATES_FILE, canonical_json(rows))
    return best(candidates).genotype


def _ranked(
    context: Context, space: SearchSpace, genotypes: Sequence[Genotype]
) -> "list[Candidate]":
    """Return what genotypes reach on the architecture half, as ``derive.rank_by`` says."""
    from d2nas.train.loop import EVALUATION_BATCH, memory_errors, torch_device

    context.hooks.begin(len(genotypes), 0, "candidate")
    candidates: list[Candidate] = []
    device = torch_device(context.config.search.device)
    with memory_errors(EVALUATION_BATCH, device, hint="free memory, then derive again"):
        for candidate in _ranking(context, space, genotypes, device):
            candidates.append(candidate)
            context.hooks.advance(len(candidates), None)
            context.hooks.pause()
    return candidates


def _write_front(context: Context, chosen: Genotype, points: int) -> None:
    """Write ``front.json`` and ``front.svg``: ``points`` cells of the search by latency and loss,
    with published and random ones.
    """
    config, data, (method, logits) = context.config, context.data(), _learned(context)
    table, retrain = table_of(config), config.retrain
    costs = costs_of(
        config,
        "latency_ms",
        logits.space,
        channels=data.channels,
        image_size=data.image_size,
        num_classes=len(data.class_names),
    )
    cells = front_cells(method, logits, costs, points, seed=config.run.seed)
    if all(cell.genotype != chosen for cell in cells):
        cells.insert(0, FrontCell("front", "derived", chosen))
    candidates = _ranked(context, logits.space, [cell.genotype for cell in cells])
    sizes = {"num_cells": retrain.num_cells, "init_channels": retrain.init_channels}
    times = measured(table, cells, **sizes)
    if times is None:
        context.hooks.warn(
            f"this is not {table.device['label']}: latencies of the front are predicted"
        )
    predicted = [costs.of(cell.genotype) for cell in cells]
    rows = front_rows(cells, candidates, predicted, times)
    context.work.write(FRONT_FILE, canonical_json(rows))
    context.work.write(FRONT_DRAWING_FILE, draw_front(rows, chosen.to_dict()).encode())
    context.hooks.say(f"derive: {front_line(rows, config.derive.rank_by)}")


def _spend(context: Context, logits: "ArchLogits", budget: int) -> tuple[Genotype, Facts]:
    """Compare cells by a budget of trainings, write them down, and return the best."""
    from d2nas.train.comparison import Comparison, halving_of
    from d2nas.train.loop import torch_device

    config, hooks = context.config, context.hooks
    derive, seed = config.derive, config.run.seed
    halving, temperature = halving_of(logits, budget, seed=seed, temperature=derive.temperature)
    comparison = Comparison(
        halving,
        config.retrain,
        derive.rank_epochs,
        context.data(),
        num_trainings=budget,
        seed=seed,
        device=torch_device(config.search.device),
        augmentation=config.data,
    )
    hooks.say(
        f"derive: {budget} trainings of {derive.rank_epochs} epochs; cells sampled at temperature "
        f"{temperature:g}"
    )
    state = hooks.resume()
    hooks.reserve(bytes_to_write(comparison, continued=state is not None))
    hooks.begin(budget, len(state.metrics) if state else 0, "training")
    for batches in comparison.streams():
        batches.stalled = hooks.stalled
    for report in comparison.run(state):
        if report.metrics is not None:
            hooks.advance(len(comparison.metrics), report.metrics)
        if report.step + 1 < comparison.num_steps:
            hooks.checkpoint(report.step + 1, comparison.capture)
    if len(comparison.metrics) < budget:
        hooks.warn(f"the space has no more cells: {len(comparison.metrics)} trainings were made")
    chosen = halving.best()
    rows = _arm_rows(comparison)
    context.work.write(METRICS_FILE, encode_rows(comparison.metrics))
    context.work.write(
        CANDIDATES_FILE,
        canonical_json(
            {
                "temperature": temperature,
                "rounds": halving.rounds,
                "candidates": rows,
                "chosen": chosen,
            }
        ),
    )
    facts = {"candidates": len(rows), "trainings": len(comparison.metrics)}
    return halving.arms[chosen].cell, facts


def _arm_rows(comparison: "Comparison") -> list[dict[str, Any]]:
    """Return every cell of a comparison, where it came from, and its trainings."""
    arms = comparison.halving.arms
    rows = []
    for number, arm in enumerate(arms):
        origin = "most probable" if number == 0 else "sampled"
        rows.append(
            {
                "genotype": arm.cell.to_dict(),
                "origin": origin if arm.parent is None else f"neighbour of {arm.parent}",
                "log_probability": arm.log_probability,
                "mean_calibrated_loss": arm.mean,
                "trainings": [
                    {key: row[key] for key in ("round", "seed", "accuracy", "calibrated_loss")}
                    for row in comparison.metrics
                    if row["candidate"] == number
                ],
            }
        )
    return rows


def _ranking(
    context: Context, space: SearchSpace, genotypes: Sequence[Genotype], device: "torch.device"
) -> "Iterator[Candidate]":
    from d2nas.data.images import Normalizer
    from d2nas.files.tensors import decode_tensors
    from d2nas.nn.supernet import Supernet
    from d2nas.train.candidates import rank_by_supernet, rank_by_training
    from d2nas.train.search import build_trained_supernet

    config, data, seed = context.config, context.data(), context.config.run.seed
    if config.derive.rank_by == "training":
        return rank_by_training(
            config.retrain,
            config.derive.rank_epochs,
            genotypes,
            data,
            seed=seed,
            device=device,
            augmentation=config.data,
        )
    search = context.inputs["search"]
    what = f"{search.reference}: {SUPERNET_FILE}"
    weights = decode_tensors(search.read(SUPERNET_FILE), what=what)
    supernet = build_trained_supernet(config.search, data, space, weights, device=device, what=what)
    assert isinstance(supernet, Supernet)  # the configuration allows no other method here
    half, normalizer = data.arch_half.to(device), Normalizer(data.mean, data.std)
    return rank_by_supernet(supernet, genotypes, half, normalizer, seed=seed)


def _config(config: Config) -> dict[str, Any]:
    """Return the settings; of a given genotype the cells decide, not the path of their file.

    Keys are as before there were budgets and temperatures where these change nothing. What a budget
    costs is not lost to a setting that is the final training's alone.
    """
    values, derive, training = config.to_dict(), config.derive, training_settings(config)
    part: dict[str, Any] = {"derive": values["derive"]}
    if derive.budget is not None:
        read = ("budget", "rank_epochs", "temperature")
        part["derive"] = {key: values["derive"][key] for key in read}
        part["retrain"] = {
            key: value for key, value in training.items() if key not in _FINAL_TRAINING
        }
        return part
    del part["derive"]["budget"], part["derive"]["model"]
    for quantity in QUANTITIES:
        del part["derive"][f"max_{quantity}"]
    limit = config.derive_limit
    if limit is not None:
        part["derive"][f"max_{limit.quantity}"] = limit.value
        part["costs"] = costs_key(config, limit.quantity)
    if derive.pareto is None:
        del part["derive"]["pareto"]
    else:
        part["costs"] = costs_key(config, "latency_ms")
    if not derive.compares or derive.temperature in (None, 1.0):
        del part["derive"]["temperature"]
    if (derive.candidates > 1 or derive.pareto is not None) and derive.rank_by == "training":
        part["retrain"] = {key: one for key, one in training.items() if key not in _STOPPING}
    if derive.genotype is not None:
        part["derive"] = {"genotype": read_genotype(derive.genotype).to_dict()}
    if derive.model is not None:
        part["derive"] = {"model": derive.model}
    return part


class _Facts(Form):
    genotype: dict[str, Any] | None = None
    genotype_digest: str | None = None
    parameterless_normal: NonNegative | None = None
    architecture: str | None = None
    """A library's network, in place of a genotype."""
    found_by: str
    searched_data_digest: str | None

    @model_validator(mode="after")
    def _is_an_architecture(self) -> "_Facts":
        of_cells = (self.genotype, self.genotype_digest, self.parameterless_normal)
        if self.architecture is None:
            require_valid(Genotype.from_dict, self.genotype)
        if any((one is None) == (self.architecture is None) for one in of_cells):
            raise ValueError("not one architecture, of cells or of a library")
        return self


STAGE = Stage(
    name="derive",
    parents=("search",),
    code_schema=5,
    run=run,
    own_config=_config,
    reads_data=lambda config: (
        config.derive.compares
        or config.derive.pareto is not None
        or config.derive_limit is not None
    ),
    checkpoints=True,
    rows="training",
    needs_parents=lambda config: config.derive.given is None,
    facts=_Facts,
)

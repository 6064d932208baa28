"""Estimators of the logits' gradient, against the true gradient of the expected loss.

    python -m benchmarks.estimators --preset quickstart --set search.clip=branch > estimators.json

A supernet is trained with uniform logits (no architecture half) and then frozen. The reference is
the score function with independent draws and leave-one-out baselines, which has no bias, over
``--reference`` draws in two halves: the cosine between the halves says how near a perfect estimator
could come. Each estimator's mean over 48, 200, 1,000 draws is compared with it, by cosine, for the
operations and edges of both cell types. All draws of a step see one batch of the architecture half.
The loss is that of ``search.reward``, a draw's branches added: what the straight-through gradient
is of, too.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from d2nas.config import Config, Estimator
from d2nas.methods.base import Batch, StepContext
from d2nas.methods.d2nas import D2nas
from d2nas.nn.probability import log_probabilities
from d2nas.nn.sampling import sample
from d2nas.randomness import generator
from d2nas.train.search import Search, weight_step
from pipeline.commands.configuration import configure

from .search import search_of

DRAWS = 8
LOOKS = (48, 200, 1000)
TEMPERATURES = (10.0, 1.0, 0.1)


def main() -> None:
    """Train, freeze, compare; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--data-root")
    parser.add_argument("--reference", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    root = [] if arguments.data_root is None else [f"data.root={arguments.data_root}"]
    config = configure(arguments.preset, [*arguments.set, *root, f"search.draws={DRAWS}"])
    search = trained(config)
    half = arguments.reference // 2
    first, second = (mean_of(independent(search, purpose), half) for purpose in ("first", "second"))
    reference = {name: (first[name] + second[name]) / 2 for name in first}
    found: dict[str, Any] = {
        "preset": arguments.preset,
        "set": arguments.set,
        "reference draws": 2 * half,
        "halves of the reference": {name: cosine(first[name], second[name]) for name in first},
    }
    for name, gradients in estimators(search):
        taken, looks = 0, {}
        total: dict[str, Tensor] = {}
        for step in gradients:
            total = {key: total.get(key, 0) + value for key, value in step.items()}
            taken += DRAWS
            if taken in LOOKS:
                looks[taken] = {key: cosine(total[key], reference[key]) for key in total}
            if taken >= LOOKS[-1]:
                break
        found[name] = looks
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def trained(config: Config) -> Search:
    """Return a search whose weights are trained and whose logits are uniform."""
    search = search_of(config)
    with torch.no_grad():
        for parameter in search.logits.parameters():
            parameter.zero_()
    search.network.train()
    for step in range(search.num_steps):
        weight_step(search, step)
    return search


def batch_of(search: Search, step: int) -> Batch:
    """Return a batch of the architecture half."""
    return search.batch(search.arch_batches, step % search.num_steps)


def gradients_of(search: Search) -> dict[str, Tensor]:
    """Take the logits' gradients."""
    found = {
        name: parameter.grad.flatten().double().clone()
        for name, parameter in search.logits.named_parameters()
        if parameter.grad is not None
    }
    search.logits.zero_grad()
    return found


def independent(search: Search, purpose: str) -> Iterator[dict[str, Tensor]]:
    """Yield unbiased gradients from independent draws, each one's baseline the others' mean."""
    method, step = method_of(search), 0
    while True:
        numbers = [generator(0, f"estimators/{purpose}/{step}", k) for k in range(DRAWS)]
        batch = batch_of(search, step)
        with torch.no_grad():
            draws = [sample(search.logits, 1.0, own) for own in numbers]
            draws = [draw.with_gates(None, None) for draw in draws]
        predictions = torch.stack(method.predictions(batch, draws, numbers))
        losses = method.losses(predictions, batch.labels).double()
        weights = (losses - (losses.sum() - losses) / (DRAWS - 1)) / DRAWS
        for cell_type in ("normal", "reduce"):
            log_p = log_probabilities(search.logits, draws, cell_type=cell_type)
            torch.autograd.backward((log_p * weights).sum())
        yield gradients_of(search)
        step += 1


def estimators(search: Search) -> Iterator[tuple[str, Iterator[dict[str, Tensor]]]]:
    """Yield each estimator's name and its gradients, a step of ``DRAWS`` draws each."""
    method = method_of(search)
    kinds: Sequence[tuple[Estimator, float]] = [
        *(("straight-through", temperature) for temperature in TEMPERATURES),
        ("mixed", 1.0),
        ("score", 1.0),
    ]

    def steps(kind: Estimator, temperature: float) -> Iterator[dict[str, Tensor]]:
        step = 0
        while True:
            method.estimator = kind
            purpose = f"estimators/{kind}/{temperature}/{step}"
            method.architecture_gradients(
                batch_of(search, step), context(search, temperature, purpose)
            )
            yield gradients_of(search)
            step += 1

    for kind, temperature in kinds:
        told = f", temperature {temperature:g}" if kind == "straight-through" else ""
        yield kind + told, steps(kind, temperature)


def context(search: Search, temperature: float, purpose: str) -> StepContext:
    """Return what an architecture half is given."""
    return StepContext(
        temperature=temperature,
        draws=lambda k: generator(0, purpose, k),
        weight_batch=lambda: batch_of(search, 0),
        weight_lr=0.0,
        weight_optimizer=search.weight_optimizer,
    )


def method_of(search: Search) -> D2nas:
    """Return the search's method, which is D2NAS's."""
    assert isinstance(search.method, D2nas)
    return search.method


def mean_of(gradients: Iterator[dict[str, Tensor]], draws: int) -> dict[str, Tensor]:
    """Return the mean over so many draws."""
    total: dict[str, Tensor] = {}
    for _ in range(draws // DRAWS):
        total = {key: total.get(key, 0) + value for key, value in next(gradients).items()}
    return total


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle between two gradients."""
    return round(float(torch.nn.functional.cosine_similarity(one, other, dim=0)), 3)


if __name__ == "__main__":
    main()

"""The search and retraining loops: what a step does to logits and weights, and what stops it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from d2nas import SPACES
from d2nas.config import Config, build_config
from d2nas.data.images import ImageData, load_data
from d2nas.errors import ConfigError, DamagedArtifactError, NonFiniteError, OutOfMemoryError
from d2nas.genotype import Genotype
from d2nas.nn.sampling import sample
from d2nas.randomness import generator
from d2nas.train import search as search_module
from d2nas.train.loop import memory_errors, torch_device
from d2nas.train.retrain import Retraining, train_step
from d2nas.train.schedules import cosine, temperature, warmup_cosine
from d2nas.train.search import Search, _context, architecture_step, search_step, weight_step

SETTINGS = {
    "data": {"name": "digits", "crop_padding": 1, "flip": False},
    "search": {
        "num_cells": 3,
        "init_channels": 4,
        "epochs": 2,
        "batch_size": 240,
        "draws": 3,
        "arch_lr": 0.01,
    },
    "retrain": {
        "num_cells": 3,
        "init_channels": 4,
        "auxiliary": False,
        "epochs": 2,
        "batch_size": 480,
        "drop_path": 0.3,
        "cutout": 2,
    },
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return load_data(configured().data, seed=0, default_root=Path("unused"))


def configured(*overrides: str) -> Config:
    return build_config(SETTINGS, overrides)


def search_of(data: ImageData, *overrides: str, space: str = "S0") -> Search:
    config = configured(*overrides)
    search = Search(
        config.search, SPACES[space], data, seed=0, device=CPU, augmentation=config.data
    )
    search.supernet.train()
    return search


def retraining_of(data: ImageData, *overrides: str) -> Retraining:
    config = configured(*overrides)
    return Retraining(
        config.retrain,
        Genotype.published("DARTS_V2"),
        data,
        seed=0,
        device=CPU,
        augmentation=config.data,
    )


def values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    after = values(module)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_architecture_step_moves_the_logits_and_no_weight(data: ImageData) -> None:
    search = search_of(data)
    logits, weights = values(search.logits), values(search.supernet)
    architecture_step(search, 0)
    assert changed(logits, search.logits) == set(logits)
    assert changed(weights, search.supernet) == set()
    assert all(parameter.grad is None for parameter in search.supernet.parameters())


def test_the_weight_step_moves_sampled_weights_and_no_logit(data: ImageData) -> None:
    search = search_of(data)
    logits, weights = values(search.logits), values(search.supernet)
    weight_step(search, 0)
    assert changed(logits, search.logits) == set()
    moved = changed(weights, search.supernet)
    assert {"stem.convs.0.weight", "heads.2.weight"} <= moved
    assert moved != set(weights)  # what no draw sampled stays


def test_architecture_comes_first_and_waits_for_the_warm_up(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(search_module, "architecture_step", lambda *_: order.append("logits"))
    monkeypatch.setattr(search_module, "weight_step", lambda *_: order.append("weights"))
    search = search_of(data, "search.warmup_epochs=1")
    for step in range(search.num_steps):
        search_step(search, step)
    assert search.steps_per_epoch == 2
    assert order == ["weights", "weights", "logits", "weights", "logits", "weights"]


def walked(loop: Search | Retraining, monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The modules of which a step lists the modules inside."""
    seen: list[torch.nn.Module] = []
    listing = torch.nn.Module.named_modules

    def recorded(module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        seen.append(module)
        return listing(module, *arguments, **options)

    loop.take_step(1)
    monkeypatch.setattr(torch.nn.Module, "named_modules", recorded)
    loop.take_step(2)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("recompute", ["none", "cell", "op"])
def test_a_step_looks_at_no_module_that_was_not_sampled(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, recompute: str
) -> None:
    search = search_of(data, f"search.recompute={recompute}")
    seen = walked(search, monkeypatch)
    cells = list(search.supernet.cells)
    lists = [cell.candidates for cell in cells] + [row for cell in cells for row in cell.candidates]
    assert not {search.supernet, *cells, *lists} & set(seen)


def test_a_retraining_step_walks_no_modules(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not walked(retraining_of(data), monkeypatch)


def test_control_a_list_made_anew_is_seen(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of(data)
    search_step(search, 0)
    anew = property(lambda method: list(method.supernet.parameters()))
    monkeypatch.setattr(type(search.method), "weights", anew)
    assert search.supernet in walked(search, monkeypatch)


def seeds_of_draws(search: Search) -> dict[tuple[str, int, int], int]:
    """The seed of each draw's generator, by purpose, step and index: twice as many as configured,
    and some more, of five steps."""
    return {
        (purpose, step, index): _context(search, step, purpose).draws(index).initial_seed()
        for purpose in ("architecture-draw", "weight-draw")
        for step in range(5)
        for index in range(2 * search.config.draws + 2)
    }


def test_no_two_draws_have_the_same_randomness(data: ImageData) -> None:
    seeds = seeds_of_draws(search_of(data, "search.draws=3"))
    assert len(seeds) == 2 * 5 * 8
    assert len(set(seeds.values())) == len(seeds)
    # Up to search.draws they are what they always were.
    configured_ones = [key for key in seeds if key[2] < 3]
    assert len(configured_ones) == 2 * 5 * 3
    for purpose, step, index in configured_ones:
        old = generator(0, purpose, step * 3 + index).initial_seed()
        assert seeds[purpose, step, index] == old


def test_control_draws_counted_through_are_the_next_steps(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        search_module,
        "_draw_generator",
        lambda search, step, purpose, index: generator(
            search.seed, purpose, step * search.config.draws + index
        ),
    )
    seeds = seeds_of_draws(search_of(data, "search.draws=3"))
    assert seeds["weight-draw", 0, 3] == seeds["weight-draw", 1, 0]


def test_draws_before_the_first_are_refused(data: ImageData) -> None:
    with pytest.raises(ValueError, match="count from 0"):
        _context(search_of(data), 1, "weight-draw").draws(-1)


def gradients_of_draws(search: Search, purpose: str, architecture: bool) -> list[torch.Tensor]:
    """The gradient of each of the K draws of step 0, computed one by one."""
    batches = search.arch_batches if architecture else search.weight_batches
    images, labels = batches.batch(0)
    parameters = list((search.logits if architecture else search.supernet).parameters())
    result = []
    for index in range(search.config.draws):
        draw = sample(search.logits, search.temperature_at(0), generator(0, purpose, index))
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for branch in search.supernet.branches(images, draw):
            loss = F.cross_entropy(branch.logits, labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = [
                sums if gradient is None else sums + gradient
                for sums, gradient in zip(total, gradients, strict=True)
            ]
        result.append(torch.cat([gradient.flatten() for gradient in total]))
    return result


def test_architecture_gradients_are_averaged_over_k_draws_on_one_batch(data: ImageData) -> None:
    search = search_of(data)
    singles = gradients_of_draws(search, "architecture-draw", True)
    assert not torch.equal(singles[0], singles[1])
    search.arch_optimizer.step = lambda: None  # type: ignore[method-assign]
    architecture_step(search, 0)
    got = torch.cat([parameter.grad.flatten() for parameter in search.logits.parameters()])
    torch.testing.assert_close(got, torch.stack(singles).mean(0), rtol=1e-4, atol=1e-7)


def test_weight_gradients_are_summed_over_k_draws_on_one_batch(data: ImageData) -> None:
    search = search_of(data, "search.clip_norm=1e9")
    singles = gradients_of_draws(search, "weight-draw", False)
    search.weight_optimizer.step = lambda: None  # type: ignore[method-assign]
    weight_step(search, 0)
    got = torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in search.supernet.parameters()
        ]
    )
    torch.testing.assert_close(got, torch.stack(singles).sum(0), rtol=1e-3, atol=1e-5)


def test_the_halves_are_disjoint_and_hold_no_test_image(data: ImageData) -> None:
    search = search_of(data)
    assert len(data.weight_half) + len(data.arch_half) == len(data.train)
    assert search.weight_batches.images is not search.arch_batches.images
    assert len(data.train) + len(data.test) == 1797


def test_no_global_generator_moves(data: ImageData) -> None:
    before = torch.random.get_rng_state()
    search = search_of(data)
    search_step(search, 0)
    retraining = retraining_of(data)
    train_step(retraining, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def final_tensors(loop: Search | Retraining) -> dict[str, torch.Tensor]:
    return loop.capture(loop.num_steps).tensors


def test_a_state_that_does_not_fit_is_refused_by_name(data: ImageData) -> None:
    state = search_of(data).capture(1)
    missing = {name: t for name, t in state.tensors.items() if name != "logits.normal_ops"}
    with pytest.raises(DamagedArtifactError, match=r"logits\.normal_ops is missing"):
        search_of(data).trained.restore(missing)
    extra = {**state.tensors, "stranger": torch.zeros(1)}
    with pytest.raises(DamagedArtifactError, match="stranger"):
        search_of(data).trained.restore(extra)
    wider = search_of(data, "search.init_channels=8")
    with pytest.raises(DamagedArtifactError, match="supernet"):
        wider.trained.restore(state.tensors)


@pytest.fixture(params=["search", "retrain"])
def poisoned(request: pytest.FixtureRequest, data: ImageData) -> Search | Retraining:
    """A loop whose classifier holds a NaN, so that loss and gradients are not finite."""
    loop = search_of(data) if request.param == "search" else retraining_of(data)
    network = loop.supernet if isinstance(loop, Search) else loop.network
    with torch.no_grad():
        next(reversed(list(network.parameters()))).fill_(float("nan"))
    return loop


def test_a_step_that_is_not_finite_is_not_taken(poisoned: Search | Retraining) -> None:
    network = poisoned.supernet if isinstance(poisoned, Search) else poisoned.network
    before = values(network)
    with pytest.raises(NonFiniteError, match="step 0"):
        next(iter(poisoned.run()))
    after = values(network)
    assert all(torch.equal(before[n].nan_to_num(7), after[n].nan_to_num(7)) for n in before)


def test_control_without_the_check_the_weights_become_nan(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2nas.train.retrain.step_if_finite", lambda optimizer, _: optimizer.step())
    monkeypatch.setattr("d2nas.train.loop.FiniteCheck.check", lambda _: None)
    retraining = retraining_of(data)
    with torch.no_grad():
        retraining.network.classifier.bias.fill_(float("nan"))
    next(iter(retraining.run()))
    assert torch.isnan(retraining.network.stem.convs[0].weight).all()


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),  # what PyTorch raises on a CPU
        lambda: np.empty(2**60, dtype=np.uint8),
        lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")),
    ],
)
def test_out_of_memory_names_the_batch_and_the_peak(fail: Callable[[], object]) -> None:
    with pytest.raises(OutOfMemoryError) as caught, memory_errors(96, CPU):
        fail()
    found = re.fullmatch(
        r"out of memory on cpu at batch size 96 \(peak (\d+) MiB resident\)", str(caught.value)
    )
    assert found is not None
    # This process holds PyTorch, and no petabyte.
    assert 50 < int(found[1]) < 2**20


def test_another_error_is_not_one_of_memory() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_errors(96, CPU):
        raise RuntimeError("something else")


def _raise(error: Exception) -> None:
    raise error


def test_devices_are_resolved_by_use() -> None:
    assert torch_device("cpu") == CPU
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert torch_device("auto") == CPU
    with pytest.raises(ConfigError, match="cuda"):
        torch_device("cuda")


def test_schedules() -> None:
    assert [temperature(epoch, 50, 10.0, 0.1) for epoch in (0, 49)] == [10.0, pytest.approx(0.1)]
    assert cosine(0.0, 0.05, 0.001) == 0.05
    assert cosine(1.0, 0.05, 0.001) == pytest.approx(0.001)
    rates = [warmup_cosine(step, 10, 4, 0.4, 0.0) for step in range(10)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == 0.4
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_space_s4_searches_and_trains_with_noise(data: ImageData) -> None:
    search = search_of(data, "search.draws=1", space="S4")
    search_step(search, 0)
    again = search_of(data, "search.draws=1", space="S4")
    search_step(again, 0)
    wanted, got = final_tensors(search), final_tensors(again)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_image_fraction_keeps_a_part_of_each_half_and_every_class(data: ImageData) -> None:
    """The paper's ImageNet search sees 10 % + 10 %: a fifth of each half."""
    search = search_of(data, "search.image_fraction=0.2")
    halves = search.weight_batches.images, search.arch_batches.images
    assert [len(half) for half in halves] == [
        round(0.2 * len(data.weight_half)),
        round(0.2 * len(data.arch_half)),
    ]
    for half, whole in zip(halves, (data.weight_half, data.arch_half), strict=True):
        counts = torch.bincount(half.labels_N, minlength=10)
        shares = 0.2 * torch.bincount(whole.labels_N, minlength=10)
        assert (counts - shares).abs().max() < 1
    assert len(search_of(data).weight_batches.images) == len(data.weight_half)

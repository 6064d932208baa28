"""beta-DARTS, DARTS-, FairDARTS, SNAS: losses and gradients are those of the published codes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import uniform
from rivals import (
    TOLERANCE,
    batch_of,
    built,
    context_of,
    distance,
    logit_distances,
    random_values,
    rivals,
    space_of,
    weight_norm,
)

from d2nas import SPACES, ArchLogits
from d2nas.config import build_config
from d2nas.config.effects import without_effect
from d2nas.errors import ConfigError
from d2nas.methods import snas
from d2nas.methods.beta_darts import BetaDarts, beta_penalty
from d2nas.methods.darts import Darts
from d2nas.methods.darts_minus import DartsMinus, skip_weight
from d2nas.methods.fair_darts import FairDarts, zero_one_term
from d2nas.methods.snas import Snas, concrete_weights
from d2nas.nn.mixed_supernet import mixture_weights
from d2nas.nn.sampling import GumbelNoise
from d2nas.spaces import CELL_TYPES, SearchSpace
from d2nas.train.schedules import temperature

BETA: dict[str, Any] = rivals()["beta_darts"]
MINUS: dict[str, Any] = rivals()["darts_minus"]
RAGGED = SearchSpace(
    "ragged",
    (("skip_connect", "max_pool_3x3", "avg_pool_3x3"), ("skip_connect",)) * 7,
    (("max_pool_3x3", "skip_connect"), ("skip_connect",)) * 7,
)

# --- beta-DARTS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(BETA))
def test_a_step_of_beta_darts_is_the_published_one(case: str) -> None:
    expected, (space, _, epoch) = BETA[case], case.split()
    method = built(BetaDarts, space_of(space, with_none=False))
    # There the factor is half the epoch, of 100.
    measured = method.architecture_gradients(batch_of("architecture"), context_of(int(epoch), 100))
    loss = float(measured.loss)
    assert loss == pytest.approx(expected["cross_entropy"], rel=TOLERANCE)
    penalty = expected["weight_of_term"] * float(beta_penalty(method.logits).detach())
    assert loss + penalty == pytest.approx(expected["total"], rel=TOLERANCE)
    assert max(logit_distances(method, expected["arch_grad"])) < TOLERANCE
    adam = torch.optim.Adam(
        method.logits.parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3
    )
    method.update_logits(adam)
    for cell, wanted in zip(CELL_TYPES, expected["alphas_after_one_adam_step"], strict=True):
        assert distance(method.logits.ops(cell), wanted) < TOLERANCE


def test_the_penalty_of_one_matrix_is_the_published_one() -> None:
    for case in rivals()["beta_sets"]:
        operations = list(SPACES["S0"].with_none().normal[0][: case["columns"]])
        space = SearchSpace.from_dict({"name": "columns", "normal": operations})
        logits = ArchLogits(space).double()
        with torch.no_grad():
            for cell in CELL_TYPES:
                logits.ops(cell).copy_(random_values(case["salt"], 1.0, logits.ops(cell).shape))
        penalty = beta_penalty(logits)
        assert float(penalty.detach()) == pytest.approx(case["value"], rel=TOLERANCE)
        penalty.backward()
        gradients = [logits.ops(cell).grad for cell in CELL_TYPES]
        assert distance(gradients[0] + gradients[1], case["gradient"]) < TOLERANCE


def test_columns_without_a_candidate_are_no_part_of_the_penalty() -> None:
    logits = ArchLogits(RAGGED).double()
    with torch.no_grad():
        for cell in CELL_TYPES:
            logits.ops(cell).zero_()
    # Seven edges of three and of two candidates, and fourteen of one.
    wanted = 7 * torch.tensor([3.0, 2.0], dtype=torch.float64).log().sum() / 28
    penalty = beta_penalty(logits)
    assert torch.allclose(penalty, wanted)
    penalty.backward()
    for cell in CELL_TYPES:
        assert not logits.ops(cell).grad[~logits.choosable(cell, none_too=True)].any()


def test_the_penalty_grows_from_nothing() -> None:
    space = space_of("s2", with_none=False)
    batch = batch_of("architecture")
    gradients = []
    for kind, epoch in ((Darts, 0), (BetaDarts, 0), (BetaDarts, 1)):
        method = built(kind, space)
        method.architecture_gradients(batch, context_of(epoch, 50))
        gradients.append(method.logits.normal_ops.grad)
    assert torch.equal(gradients[0], gradients[1])
    softmax, _ = mixture_weights(method.logits, "normal")
    assert torch.allclose(gradients[2], gradients[0] + 50 / 50 * softmax / 28)


# --- DARTS- -------------------------------------------------------------------------------------


def test_the_weight_of_the_skip_is_the_published_one() -> None:
    expected = rivals()["darts_minus_beta_by_epoch_of_50"]
    found = [skip_weight(epoch, 50) for epoch in range(50)]
    assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("case", sorted(MINUS))
def test_darts_minus_is_the_published_network(case: str) -> None:
    expected, (space, _, beta) = MINUS[case], case.split()
    method = built(DartsMinus, space_of(space, with_none=True))
    assert sum(weight.numel() for weight in method.weights) == expected["weights"]
    context = context_of(round(50 * (1 - float(beta))), 50)
    batch = batch_of("architecture")
    measured = method.architecture_gradients(batch, context)
    assert float(measured.loss) == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert max(logit_distances(method, expected["arch_grad"])) < TOLERANCE
    method.weight_gradients(batch, context)
    assert weight_norm(method) == pytest.approx(expected["weight_grad_l2"], rel=TOLERANCE)


def test_the_skip_has_the_column_after_each_edges_last_candidate() -> None:
    method = built(DartsMinus, RAGGED)
    for cell in CELL_TYPES:
        ops, edges = method.mixture(10, 50)[cell]
        softmax, _ = mixture_weights(method.logits, cell)
        assert edges is None
        for row, names in enumerate(RAGGED.candidates(cell)):
            wanted = [*softmax[row, : len(names)].tolist(), 0.8]
            assert ops[row, : len(names) + 1].tolist() == pytest.approx(wanted)
            assert not ops[row, len(names) + 1 :].any()
    method.architecture_gradients(batch_of("architecture"), context_of(10, 50))
    assert method.logits.normal_ops.grad[0].all()


# --- FairDARTS ----------------------------------------------------------------------------------


def test_a_step_of_fair_darts_is_the_published_one() -> None:
    expected = rivals()["fair_darts"]["step"]
    method = built(FairDarts, space_of("s5", with_none=False))
    with torch.no_grad():
        for cell in CELL_TYPES:
            method.logits.ops(cell).mul_(2.0)
    context = context_of(0, 50)
    measured = method.architecture_gradients(batch_of("architecture"), context)
    loss, term = float(measured.loss), float(zero_one_term(method.logits).detach())
    assert loss == pytest.approx(expected["cross_entropy"], rel=TOLERANCE)
    assert term == pytest.approx(expected["separation"], rel=TOLERANCE)
    assert max(logit_distances(method, expected["arch_grad"])) < TOLERANCE
    recipe = build_config({}, ["search.method=fair-darts"]).search
    adam = torch.optim.Adam(
        method.logits.parameters(),
        lr=recipe.arch_lr,
        betas=(recipe.arch_beta1, recipe.arch_beta2),
        weight_decay=recipe.arch_weight_decay,
    )
    method.update_logits(adam)
    for cell, wanted in zip(CELL_TYPES, expected["alphas_after_one_adam_step"], strict=True):
        assert distance(method.logits.ops(cell), wanted) < TOLERANCE
    after = expected["weight_step_after_it"]
    measured = method.weight_gradients(batch_of("weights"), context)
    total = float(measured.loss) + 10 * float(zero_one_term(method.logits).detach())
    assert total == pytest.approx(after["loss"], rel=TOLERANCE)
    assert weight_norm(method) == pytest.approx(after["weight_grad_l2"], rel=TOLERANCE)


def test_the_strongest_edges_are_the_published_ones() -> None:
    space = SPACES["S0"]
    for number, expected in enumerate(rivals()["fair_darts"]["derive"]):
        logits = ArchLogits(space).double()
        with torch.no_grad():
            for index, cell in enumerate(CELL_TYPES):
                values = random_values(1000 + 2 * number + index, 3.0, logits.ops(cell).shape)
                logits.ops(cell).copy_(values)
        genotype = FairDarts.genotype_of(logits)
        for cell in CELL_TYPES:
            words = (word.split("@") for word in expected[cell].split())
            wanted = [(operation, int(source)) for operation, source in words]
            found = genotype.cell(cell)
            for node in range(0, 8, 2):  # order inside a node differs
                assert set(found[node : node + 2]) == set(wanted[node : node + 2])


def test_weak_edges_and_none_are_not_derived() -> None:
    logits = ArchLogits(SPACES["S3"])
    with torch.no_grad():
        logits.normal_ops[:, 0] = 5.0  # none
        logits.normal_ops[3, 2] = 2.0
        logits.normal_ops[4, 1] = 1.0
    cell = FairDarts.genotype_of(logits).normal[2:4]
    assert cell == (("sep_conv_3x3", 1), ("skip_connect", 2))


def test_columns_without_a_candidate_have_no_weight_and_no_part_in_the_term() -> None:
    method = built(FairDarts, RAGGED)
    method.architecture_gradients(batch_of("architecture"), context_of(0, 50))
    for cell in CELL_TYPES:
        exists = method.logits.choosable(cell, none_too=True)
        assert not method.mixture()[cell][0][~exists].any()
        assert not method.logits.ops(cell).grad[~exists].any()
        assert method.logits.ops(cell).grad[exists].all()


# --- SNAS ---------------------------------------------------------------------------------------


def gumbel(seed: int) -> GumbelNoise:
    uniform = torch.tensor(np.random.RandomState(seed).uniform(size=(14, 8)))
    return GumbelNoise(-(-uniform.log()).log(), torch.zeros(14, dtype=torch.float64))


@pytest.mark.parametrize("number", range(len(rivals()["snas"]["concrete"])))
def test_concrete_weights_are_the_published_ones(number: int) -> None:
    case = rivals()["snas"]["concrete"][number]
    method = built(Snas, space_of("s5", with_none=True), (case["alpha_salt"], 20))
    noises = {"normal": gumbel(case["uniform_seed"]), "reduce": gumbel(0)}
    weights, _ = concrete_weights(method.logits, noises, case["temperature"])["normal"]
    assert distance(weights, case["weights"]) < TOLERANCE
    (weights * (uniform(weights.shape, 77) - 0.5)).sum().backward()
    assert distance(method.logits.normal_ops.grad, case["gradient_of_probe"]) < TOLERANCE


def test_a_step_of_snas_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rivals()["snas"]["step"]
    noises = iter([gumbel(seed) for seed in expected["uniform_seeds"]])
    monkeypatch.setattr(snas, "draw_noise", lambda columns, generator: next(noises))
    method = built(Snas, space_of("s5", with_none=True))
    before = {cell: method.logits.ops(cell).detach().clone() for cell in CELL_TYPES}
    context = replace(context_of(0, 50), temperature=expected["temperature"])
    measured = method.weight_gradients(batch_of("weights"), context)
    assert float(measured.loss) == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert weight_norm(method) == pytest.approx(expected["weight_grad_l2"], rel=TOLERANCE)
    for cell, wanted in zip(CELL_TYPES, expected["arch_grad"], strict=True):
        gradient = (before[cell] - method.logits.ops(cell).detach()) / method.arch_lr
        assert distance(gradient, wanted) < TOLERANCE
        assert method.logits.ops(cell).grad is None


def test_logits_do_not_move_by_what_is_not_finite() -> None:
    method = built(Snas, space_of("s2", with_none=True))
    before = method.logits.normal_ops.detach().clone()
    batch = batch_of("weights")
    batch.images[0, 0, 0, 0] = float("nan")
    assert not method.weight_gradients(batch, context_of(0, 50)).loss.isfinite()
    assert torch.equal(method.logits.normal_ops, before)


def test_a_large_gradient_of_the_logits_of_snas_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm_of_the_gradient() -> float:
        method = built(Snas, space_of("s2", with_none=True))
        before = [logits.detach().clone() for logits in method.logits.parameters()]
        method.weight_gradients(batch_of("weights"), context_of(0, 50))
        moved = [
            (logits.detach() - old) / method.arch_lr
            for logits, old in zip(method.logits.parameters(), before, strict=True)
        ]
        return float(torch.nn.utils.get_total_norm(moved))

    whole = norm_of_the_gradient()
    assert whole < snas.LARGEST_LOGIT_GRADIENT == 10.0
    monkeypatch.setattr(snas, "LARGEST_LOGIT_GRADIENT", whole / 2)
    assert norm_of_the_gradient() == pytest.approx(whole / 2, rel=1e-3)


def test_drop_path_of_snas_is_the_same_in_all_epochs() -> None:
    space = space_of("s2", with_none=True)
    method, control = (built(kind, space) for kind in (Snas, Darts))
    method.drop_path = control.drop_path = 0.3
    assert [method.drop_path_at(epoch, 4) for epoch in range(4)] == [0.3] * 4
    assert [control.drop_path_at(epoch, 4) for epoch in range(4)] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3]
    )


def test_the_temperature_of_snas_is_the_published_one() -> None:
    expected = rivals()["snas"]["temperature_by_epoch_of_150"]
    config = build_config({}, ["search.method=snas"]).search
    ends = (config.temperature_start, config.temperature_end)
    found = [temperature(epoch, config.epochs, *ends) for epoch in range(150)]
    assert found == pytest.approx(expected, rel=TOLERANCE)
    assert (config.epochs, config.weight_lr, config.arch_lr, config.drop_path) == (
        150, 0.025, 3e-4, 0.3,
    )  # fmt: skip
    shorter = build_config({}, ["search.method=snas", "search.epochs=10"]).search
    assert shorter.temperature_start == pytest.approx(1 - 0.97 / 10)
    other = build_config({}, ["search.method=snas", "search.temperature_end=0.5"]).search
    assert other.temperature_start == pytest.approx(1 - 0.5 / 150)
    with pytest.raises(ConfigError, match="temperature_end must not exceed"):
        build_config({}, ["search.method=snas", "search.temperature_start=0.01"])


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "differing"),
    [
        (("darts", "darts-second-order"), {"weight_lr": 0.025}),
        (
            ("pc-darts-4", "pc-darts-2"),
            {"batch_size": 256, "weight_lr": 0.1, "weight_lr_min": 0.0, "arch_lr": 6e-4},
        ),
        (
            ("gdas",),
            {"epochs": 250, "batch_size": 256, "weight_lr": 0.025, "weight_decay": 5e-4},
        ),
    ],
)
def test_rivals_search_by_their_published_codes_settings(
    methods: tuple[str, ...], differing: dict[str, object]
) -> None:
    ours = build_config({}).search.model_dump()
    for method in methods:
        own = build_config({}, [f"search.method={method}"]).search.model_dump()
        others = ("method", "warmup_epochs")
        assert {k: v for k, v in own.items() if v != ours[k] and k not in others} == differing
        assert own["warmup_epochs"] == (15 if method.startswith("pc-") else 0)


def test_a_recipes_learning_rate_is_that_of_its_optimizer() -> None:
    by_sgd = build_config({}, ["search.method=beta-darts"]).search
    assert by_sgd.weight_lr == 0.025
    other = ["search.method=beta-darts", "search.weight_optimizer=rmsprop"]
    plain = build_config({}, ["search.weight_optimizer=rmsprop"]).search
    assert build_config({}, other).search.weight_lr == plain.weight_lr != 0.025
    given = build_config({}, [*other, "search.weight_lr=0.01"]).search
    assert given.weight_lr == 0.01


@pytest.mark.parametrize("method", ["r-darts-es", "r-darts-ada"])
def test_methods_that_look_a_step_of_sgd_ahead_keep_sgd_and_its_rate(method: str) -> None:
    sets = [f"search.method={method}", "search.weight_optimizer=rmsprop"]
    config = build_config({}, sets)
    assert (config.search.weight_optimizer, config.search.weight_lr) == ("sgd", 0.025)
    told = without_effect(config, ["search.weight_optimizer"])
    assert told == {f"search.method={method}": ["search.weight_optimizer"]}

"""beta-DARTS and DARTS-: losses and gradients are those of the published codes."""

from typing import Any

import pytest
import torch
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
from d2nas.methods.beta_darts import BetaDarts, beta_penalty
from d2nas.methods.darts import Darts
from d2nas.methods.darts_minus import DartsMinus, skip_weight
from d2nas.nn.mixed_supernet import mixture_weights
from d2nas.spaces import CELL_TYPES, SearchSpace

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

"""Estimators of D2NAS's logits: what each computes, keeps and leaves alone."""

from typing import Any

import pytest
import torch
from searches import CHEAP, continued, made_images, run_with_states, same_end, search_by
from torch import Tensor

from d2nas.measure.calibration import calibrated_losses, cross_entropies
from d2nas.measure.cost import LiveBytes
from d2nas.methods.d2nas import D2nas
from d2nas.nn.sampling import sample
from d2nas.nn.score_function import add_gradients
from d2nas.train.search import Search, architecture_step

ESTIMATORS = ("score", "mixed")


def search_of(estimator: str, *settings: str, **options: Any) -> Search:
    words = (f"search.estimator={estimator}", "search.draws=4", *settings)
    return search_by("d2nas", *words, **options)


def method_of(search: Search) -> D2nas:
    assert isinstance(search.method, D2nas)
    return search.method


def gradients_of(search: Search) -> dict[str, Tensor]:
    """What the first architecture half hands to Adam."""
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        for name, parameter in search.logits.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    search.arch_optimizer.step = keep  # type: ignore[method-assign,assignment]
    architecture_step(search, 0)
    return found


@pytest.mark.parametrize("branch_length", [1, 2, 5])
@pytest.mark.parametrize("space", ["S0", CHEAP], ids=["S0", "cheap"])
def test_a_forward_pass_alone_predicts_what_the_branches_do(space: Any, branch_length: int) -> None:
    sizes = ("search.num_cells=5", f"search.branch_length={branch_length}")
    search = search_of("score", *sizes, space=space)
    method, batch = method_of(search), search.batch(search.arch_batches, 0)
    numbers = [torch.Generator().manual_seed(index) for index in range(4)]
    draws = [sample(search.logits, 1.0, own) for own in numbers]
    bare = [draw.with_gates(None, None) for draw in draws]
    places = [own.get_state() for own in numbers]
    found = method.predictions(batch, bare, numbers)
    for own, place in zip(numbers, places, strict=True):
        own.set_state(place)
    _, _, wanted = method.gate_gradients(batch, draws, numbers)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("estimator", ["straight-through", *ESTIMATORS])
def test_only_logits_get_gradients(estimator: str) -> None:
    search = search_of(estimator)
    found = gradients_of(search)
    assert found.keys() == dict(search.logits.named_parameters()).keys()
    assert all(gradient.count_nonzero() for gradient in found.values())
    assert all(weight.grad is None for weight in search.method.weights)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_cell_type_that_the_network_has_not_gets_no_gradient(estimator: str) -> None:
    search = search_of(estimator, "search.num_cells=1")
    (cell_type,) = search.supernet.cell_types  # type: ignore[union-attr]
    assert all(name.startswith(str(cell_type)) for name in gradients_of(search))


@pytest.mark.parametrize("reward", ["calibrated", "loss"])
def test_the_score_is_of_the_reward_asked_for(reward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_of("score", f"search.reward={reward}")
    method, kept = method_of(search), list[Any]()
    real = method.predictions

    def keep(batch: Any, draws: Any, generators: Any) -> Any:
        kept.append((batch, draws, real(batch, draws, generators)))
        return kept[-1][2]

    monkeypatch.setattr(method, "predictions", keep)
    found = gradients_of(search)
    ((batch, draws, predictions),) = kept
    of_each = {  # (K, branches)
        "calibrated": [calibrated_losses(one, batch.labels)[0] for one in predictions],
        "loss": [cross_entropies(one, batch.labels) for one in predictions],
    }
    for name, losses in of_each.items():
        assert is_estimate(search, draws, torch.stack(losses).sum(dim=1), found) == (name == reward)
    # Of the last branch alone it is another one (control).
    assert not is_estimate(search, draws, torch.stack(of_each[reward])[:, -1], found)


def is_estimate(search: Search, draws: Any, losses: Tensor, found: dict[str, Tensor]) -> bool:
    search.logits.zero_grad()
    add_gradients(search.logits, draws, losses, ["normal", "reduce"])
    return all(
        parameter.grad is not None and torch.allclose(parameter.grad, found[name])
        for name, parameter in search.logits.named_parameters()
    )


def test_mixed_is_straight_through_for_edges_and_the_score_for_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without other operations than the drawn ones, both estimators have the same sub-networks.
    monkeypatch.setattr(
        "d2nas.methods.d2nas.with_even_operations", lambda _logits, draws, _generator: draws
    )
    mixed = search_of("mixed")
    kept: list[Any] = []
    monkeypatch.setattr(
        "d2nas.methods.d2nas.add_gradients",
        lambda *given, **options: kept.append(given) or add_gradients(*given, **options),
    )
    found, through = gradients_of(mixed), gradients_of(search_of("straight-through"))
    ((logits, draws, losses, cell_types),) = kept
    logits.zero_grad()
    add_gradients(logits, draws, losses, cell_types, edges=False)
    for cell_type in cell_types:
        torch.testing.assert_close(found[f"{cell_type}_edges"], through[f"{cell_type}_edges"])
        assert torch.equal(found[f"{cell_type}_ops"], logits.ops(cell_type).grad)
        assert not torch.allclose(found[f"{cell_type}_ops"], through[f"{cell_type}_ops"])


def peak_of(estimator: str, *settings: str) -> int:
    """Most bytes alive in an architecture half, beyond what always is."""
    search = search_of(
        estimator, "search.num_cells=6", *settings, data=made_images(size=16, half=32)
    )
    batch = search.batch(search.arch_batches, 0)
    resident = [*search.resident(), batch.images, batch.labels]
    search.batch = lambda *_: batch  # type: ignore[method-assign]
    search.arch_optimizer.step = lambda *_: None  # type: ignore[method-assign,assignment]
    with LiveBytes(resident) as before:
        pass
    with LiveBytes(resident) as live:
        architecture_step(search, 0)
    return live.peak - before.peak


def test_forward_passes_alone_keep_no_activation() -> None:
    kept: list[Tensor] = []
    search = search_of("score")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        architecture_step(search, 0)
    # The estimate itself is a graph of a few hundred numbers.
    assert sum(tensor.numel() for tensor in kept) < 10_000
    # So their memory does not depend on how far a branch reaches; a backward's (control) does.
    long = "search.branch_length=6"
    assert peak_of("score", long) == pytest.approx(peak_of("score"), rel=0.01)
    assert peak_of("straight-through", long) > 1.5 * peak_of("straight-through")
    assert peak_of("score") < 0.5 * peak_of("straight-through")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_resumed_search_is_bit_equal(estimator: str) -> None:
    whole = search_of(estimator)
    states = run_with_states(whole)
    assert same_end(whole, continued(search_of(estimator), states[2]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_draw_has_no_baseline(estimator: str) -> None:
    with pytest.raises(Exception, match=r"needs search\.draws of at least 2"):
        search_by("d2nas", f"search.estimator={estimator}", "search.draws=1")

"""No pass waits for its device, and a step that is not finite is not taken, however late one hears.

A meta tensor has no values, and a fake one none that may be looked at: whoever asks for a number
(``item``, ``bool``, ``tolist``, a copy to the host) fails. So what runs on them needs none.
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from searches import CHEAP, search_by
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from d2nas import SPACES, ArchLogits, MixedSupernet
from d2nas.errors import NonFiniteError
from d2nas.methods.base import Batch, Sizes
from d2nas.methods.d2nas import D2nas
from d2nas.methods.gdas import Gdas
from d2nas.methods.passes import frozen, measure
from d2nas.methods.single_path import SinglePath
from d2nas.train.loop import FiniteCheck, sgd, step_if_finite
from d2nas.train.search import Search, architecture_step, search_step, weight_step

SIZES = Sizes(num_cells=3, init_channels=4, num_classes=10, in_channels=3, stem="cifar")
NUMBERS = torch.Generator().manual_seed(0)
WITH_NONE = SPACES["S1"].with_none()

BUILD: dict[str, Callable[[], SinglePath]] = {
    **{
        f"d2nas {length} {recompute}": (
            lambda length=length, recompute=recompute: D2nas(
                SPACES["S0" if recompute == "none" else "S1"],
                SIZES,
                NUMBERS,
                draws=1,
                branch_length=length,
                recompute=recompute,
                edge_gate_scale=1.0,
            )
        )
        for length, recompute in ((1, "none"), (1, "op"), (3, "cell"))
    },
    "gdas": lambda: Gdas(SPACES["S3"], SIZES, NUMBERS, recompute="none"),
}
DRAWS = {
    name: [build().sample(1.0, torch.Generator().manual_seed(0))] for name, build in BUILD.items()
}


def a_batch() -> Batch:
    return Batch(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))


def without_values(kind: str) -> AbstractContextManager[object]:
    """What makes tensors without values: on the meta device, or fake ones of a CPU."""
    return torch.device("meta") if kind == "meta" else FakeTensorMode()


def run_both_halves(name: str, kind: str) -> SinglePath:
    """Both halves' passes on draws that were made before, as in a step."""
    draws, numbers = DRAWS[name], [NUMBERS] * len(DRAWS[name])
    with without_values(kind) as mode:
        method, batch = BUILD[name](), a_batch()
    with mode if kind == "fake" else contextlib.nullcontext():
        leaves, measured, _ = method.gate_gradients(batch, draws, numbers)
        assert all(leaf.grad is not None for own in leaves for leaf in own)
        method.run(batch, draws, numbers)
    assert any(parameter.grad is not None for parameter in method.supernet.parameters())
    assert measured.loss.device == batch.images.device
    return method


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("name", BUILD)
def test_the_passes_of_sampled_networks_ask_for_no_number(name: str, kind: str) -> None:
    run_both_halves(name, kind)


@pytest.mark.parametrize("divisor", [1, 4])
def test_the_passes_of_mixed_networks_ask_for_no_number(divisor: int) -> None:
    logits = ArchLogits(WITH_NONE)  # on the host, whatever the device
    with torch.device("meta"):
        supernet = MixedSupernet(WITH_NONE, num_cells=2, init_channels=8, channel_divisor=divisor)
        batch = a_batch()
    with frozen(list(logits.parameters())):
        loss, _ = measure(supernet(batch.images, logits), batch.labels)
        loss.backward()
    assert supernet.classifier.weight.grad is not None
    # The other half sends a gradient to the logits on the host, which meta refuses.
    with FakeTensorMode():
        logits = ArchLogits(WITH_NONE)
        supernet = MixedSupernet(WITH_NONE, num_cells=2, init_channels=8, channel_divisor=divisor)
        batch = a_batch()
        with frozen(list(supernet.parameters())):
            loss, _ = measure(supernet(batch.images, logits), batch.labels)
            loss.backward()
    assert logits.reduce_ops.grad is not None


def test_clipping_and_the_conditional_step_ask_for_no_number() -> None:
    with FakeTensorMode():
        module = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 4))
        F.cross_entropy(module(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        optimizer = sgd(module, lr=0.1, momentum=0.9, weight_decay=3e-4)
        norm = nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        watch = FiniteCheck(torch.device("cuda"))
        finite = watch.add(0, "the training loss", norm) & watch.add(0, "the gradient norm", norm)
        step_if_finite(optimizer, finite)
        watch.check_if_synchronous()
        with pytest.raises(DataDependentOutputException):
            watch.check()  # control: this one does ask


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda loss: loss.item(),
    "bool": lambda loss: bool(loss > 0),
    "tolist": lambda loss: loss.detach().tolist(),
}


@pytest.mark.parametrize(
    ("planted", "kind"), [*((name, "meta") for name in PLANTED), ("item", "fake")]
)
def test_control_a_planted_look_at_the_loss_fails(
    planted: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looking(*given: Tensor) -> tuple[Tensor, Tensor]:
        loss, accuracy = measure(*given)
        PLANTED[planted](loss)
        return loss, accuracy

    monkeypatch.setattr("d2nas.methods.single_path.measure", looking)
    refused = {
        "meta": pytest.raises((RuntimeError, NotImplementedError), match="meta"),
        "fake": pytest.raises(DataDependentOutputException, match="_local_scalar_dense"),
    }
    with refused[kind]:
        run_both_halves("d2nas 3 cell", kind)


def test_control_a_planted_copy_to_the_host_fails_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    def copying(*given: Tensor) -> tuple[Tensor, Tensor]:
        given[0].detach().cpu()
        return measure(*given)

    monkeypatch.setattr("d2nas.methods.single_path.measure", copying)
    with pytest.raises(NotImplementedError, match="meta"):
        run_both_halves("d2nas 3 cell", "meta")


# --- what is not finite -------------------------------------------------------------------------

HALVES = {"weights": "weight_batches", "architecture": "arch_batches"}
MEANS_OF = ["images", "gradient"]


def poison(search: Search, half: str, at: int, by: str) -> None:
    """Make one half of step ``at`` not finite: by its images, or by a gradient alone."""
    real = search.batch
    chosen = getattr(search, HALVES[half])

    def batch(batches: object, step: int) -> Batch:
        found = real(batches, step)  # type: ignore[arg-type]
        search.latest = (batches is chosen, step)  # type: ignore[attr-defined]
        if by == "images" and batches is chosen and step == at:
            return Batch(found.images * torch.nan, found.labels)
        return found

    search.batch = batch  # type: ignore[method-assign]
    if by == "gradient":
        weights = search.supernet.stem.convs[0].weight
        hooked = search.logits.reduce_ops if half == "architecture" else weights

        def spoil(gradient: Tensor) -> Tensor:
            is_now = search.latest == (True, at)  # type: ignore[attr-defined]
            return gradient * torch.inf if is_now else gradient

        hooked.register_hook(spoil)


def trained_state(search: Search) -> dict[str, Tensor]:
    """Copies of logits, weights and moments; not the statistics, which any forward moves."""
    modules = {"weights": search.supernet, "logits": search.logits}
    found = {
        f"{kind} {name}": parameter.detach().clone()
        for kind, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    for kind, optimizer in search.trained.optimizers.items():
        for index, state in enumerate(optimizer.state.values()):
            found |= {f"{kind} {index} {key}": v.clone() for key, v in state.items()}
    return found


def differing(before: dict[str, Tensor], search: Search) -> set[str]:
    after = trained_state(search)
    return {
        name.split()[0]
        for name in after
        if name not in before or not torch.equal(before[name], after[name])
    }


# What the halves of a step move before the other one fails.
def moved_by_the_other_half(method: str, half: str) -> set[str]:
    weights_first = method == "gdas"
    if half == "weights":
        return set() if weights_first else {"logits", "adam"}
    return {"weights", "sgd"} if weights_first else set()


@pytest.mark.parametrize("by", MEANS_OF)
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("method", ["d2nas", "gdas"])
def test_what_is_not_finite_moves_nothing_and_is_named_at_once(
    method: str, half: str, at: int, by: str
) -> None:
    search = search_by(method, "search.draws=1", space=CHEAP)
    poison(search, half, at, by)
    for step in range(at):
        search_step(search, step)
    before = trained_state(search)
    with pytest.raises(NonFiniteError, match=f"at step {at};"):
        search_step(search, at)
    assert differing(before, search) <= moved_by_the_other_half(method, half)


@pytest.mark.parametrize("method", ["darts", "darts-second-order", "pc-darts-2"])
@pytest.mark.parametrize("half", HALVES)
def test_rivals_are_stopped_too(method: str, half: str) -> None:
    search = search_by(method, space=CHEAP)
    poison(search, half, 1, "images")
    search_step(search, 0)
    before = trained_state(search)
    with pytest.raises(NonFiniteError, match="at step 1;"):
        search_step(search, 1)
    assert differing(before, search) <= moved_by_the_other_half(method, half)


@functools.cache
def states_of_a_clean_run(method: str) -> list[dict[str, Tensor]]:
    clean = search_by(method, "search.draws=1", space=CHEAP)
    return [clean.capture(report.step + 1).tensors for report in clean.run()]


@pytest.mark.parametrize("by", MEANS_OF)
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("method", ["d2nas", "gdas"])
def test_on_a_device_that_answers_late_no_checkpoint_follows(
    method: str, half: str, at: int, by: str
) -> None:
    """As on CUDA: the step's error comes with the next look, and none is skipped."""
    clean_states = states_of_a_clean_run(method)
    search = search_by(method, "search.draws=1", space=CHEAP)
    search.watch._free = False
    poison(search, half, at, by)
    captured: list[dict[str, Tensor]] = []

    def run() -> None:
        for report in search.run():
            captured.append(search.capture(report.step + 1).tensors)

    with pytest.raises(NonFiniteError, match=f"at step {at};"):
        run()
    assert len(captured) == at
    for got, wanted in zip(captured, clean_states, strict=False):
        assert all(torch.equal(got[name], wanted[name]) for name in wanted if name != "sums")


@pytest.mark.parametrize("by", MEANS_OF)
def test_the_late_error_of_a_weight_half_comes_before_the_next_move_of_the_logits(by: str) -> None:
    search = search_by("d2nas", space=CHEAP)
    search.watch._free = False
    poison(search, "weights", 1, by)
    search_step(search, 0)
    architecture_step(search, 1)
    before = trained_state(search)
    weight_step(search, 1)  # nobody has asked the device yet
    assert differing(before, search) == set()
    with pytest.raises(NonFiniteError, match="at step 1;"):
        architecture_step(search, 2)
    assert differing(before, search) == set()


def test_in_the_warm_up_a_late_error_waits_for_the_end_of_the_epoch() -> None:
    search = search_by("d2nas", "search.warmup_epochs=1", space=CHEAP)
    search.watch._free = False
    poison(search, "weights", 0, "images")
    reports = search.run()
    next(reports)
    with pytest.raises(NonFiniteError, match="the training loss is not finite at step 0"):
        next(reports)
    assert all(torch.isfinite(p).all() for p in search.supernet.parameters())
    assert search.metrics == []


def test_control_without_the_watch_logits_and_weights_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("d2nas.train.loop.FiniteCheck.check", lambda _: None)
    monkeypatch.setattr("d2nas.train.search.step_if_finite", lambda optimizer, _: optimizer.step())
    search = search_by("d2nas", space=CHEAP)
    poison(search, "weights", 0, "images")
    poison(search, "architecture", 0, "images")
    search_step(search, 0)
    state = search.trained.tensors()
    assert not torch.isfinite(state["logits.normal_ops"]).all()
    assert not torch.isfinite(state["supernet.stem.convs.0.weight"]).any()


@pytest.mark.parametrize("finite", [True, False])
def test_the_conditional_step_is_the_step_or_nothing(finite: bool) -> None:
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [sgd(layer, lr=0.1, momentum=0.9, weight_decay=0.01) for layer in layers]
    before = {name: value.clone() for name, value in layers[0].state_dict().items()}
    for _ in range(2):
        for layer in layers:
            layer.weight.grad, layer.bias.grad = torch.ones(2, 3), None
        step_if_finite(optimizers[0], torch.tensor(finite))
        optimizers[1].step()
    wanted = layers[1].state_dict() if finite else before
    assert all(torch.equal(value, wanted[name]) for name, value in layers[0].state_dict().items())
    moments = [
        optimizer.state[layer.weight] for optimizer, layer in zip(optimizers, layers, strict=True)
    ]
    assert bool(moments[0]["momentum_buffer"].any()) == finite
    assert torch.equal(moments[0]["momentum_buffer"], moments[1]["momentum_buffer"]) == finite
    assert torch.equal(layers[0].bias, before["bias"])  # had no gradient
    assert not hasattr(optimizers[0], "found_inf")

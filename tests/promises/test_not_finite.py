"""What is not finite reaches neither weights nor logits nor the store, wherever it comes from.

Each case is a real command: exit code 5, the step and the tensor named, the last good checkpoint
kept, and a later run that ends as if nothing had been.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from campaigns import count
from counting import is_counting
from recipes import flat, retraining_of
from stops import Sender, assert_as_undisturbed, empty_or_derived, undisturbed
from tiny import STEPS, TinyPlace, traced, words_of
from torch import Tensor, nn

from d2nas.data.batches import Batches
from d2nas.errors import NonFiniteError
from d2nas.train.loop import FiniteCheck
from d2nas.train.precision import LossScale
from d2nas.train.retrain import Retraining
from d2nas.train.search import Search
from pipeline.running import runner
from pipeline.running.checkpoints import read_state
from pipeline.store import Store

# Loop, what is not finite, and how that is told of a step.
CASES = {
    ("search", "loss"): "the training loss is not finite at step {step}; the step was not taken",
    ("search", "validation loss"): "the validation loss is not finite at step {step}; the step was",
    (
        "search",
        "gradient",
    ): "the gradient norm is not finite at step {step}; the step was not taken",
    ("search", "logits"): "step {step}; the step was not taken: logits.normal_ops is not finite",
    ("search", "statistic"): "running_var is not finite after step {step}; it was not saved",
    ("retrain", "loss"): "the training loss is not finite at step {step}; the step was not taken",
    ("retrain", "gradient"): "the gradient norm is not finite at step {step}; the step was not",
    ("retrain", "weights"): "step {step}; the step was not taken: network.classifier.weight is not",
    ("retrain", "statistic"): "running_var is not finite after step {step}; it was not saved",
}
PURPOSES = {"loss": ("weights", "retrain"), "validation loss": ("architecture",)}
FIRST_OF_LOGITS = 3
"""The step after the warm-up."""


@contextmanager
def poisoned(what: str, at: int) -> Iterator[None]:
    """Make something not finite in step ``at`` of any loop."""
    batch = Batches.batch

    def poisoned_batch(batches: Batches, step: int) -> tuple[Tensor, Tensor]:
        images, labels = batch(batches, step)
        if step == at and batches.order.purpose in PURPOSES.get(what, ()):
            images = images * torch.nan
        return images, labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "batch", poisoned_batch)
        for owner in (Search, Retraining):
            take = owner.take_step

            def take_poisoned(loop: Any, step: int, take: Any = take) -> None:
                if step == at:
                    spoil(loop, what)
                take(loop, step)

            patch.setattr(owner, "take_step", take_poisoned)
        yield


@torch.no_grad()
def spoil(loop: Any, what: str) -> None:
    """Make a value in the loop itself not finite, or the gradients from now on."""
    if what == "logits":
        loop.logits.normal_ops[0, 0] = torch.nan
    elif what == "weights":
        loop.network.classifier.weight[0, 0] = torch.nan
    elif what == "statistic":
        norms = [m for m in loop.network.modules() if isinstance(m, nn.BatchNorm2d)]
        norms[-1].running_var[0] = torch.inf
    elif what == "gradient":
        loop.network.stem.convs[0].weight.register_hook(lambda gradient: gradient * torch.inf)


def steps_of(what: str) -> list[int]:
    """The first step that is looked at, one in the middle and one at the end; or all."""
    first = FIRST_OF_LOGITS if what in ("validation loss", "logits") else 0
    return count(0, 1) * list(range(first, STEPS)) or [first, 4, 10]


def moved_since_the_checkpoint(place: TinyPlace, loop: str, training: Any) -> set[str]:
    """Which of weights, logits and moments the failed step changed."""
    newest = place.latest(f"{loop}-state")
    assert newest is not None
    saved = read_state(newest).tensors
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {
        name.partition(".")[0]
        for name, value in training.trained.copies().items()
        if name != "sums" and not name.endswith(statistics) and not torch.equal(value, saved[name])
    }


def may_have_moved(loop: str, what: str, at: int) -> set[str]:
    """What was spoiled itself, and the half of a search's step that comes before the failing."""
    spoiled = {"logits": {"logits"}, "weights": {"network"}}.get(what, set())
    arch_first = loop == "search" and what in ("loss", "gradient") and at >= FIRST_OF_LOGITS
    return spoiled | ({"logits", "adam"} if arch_first else set())


@pytest.mark.parametrize(
    ("loop", "what", "at"), [(loop, what, at) for loop, what in CASES for at in steps_of(what)]
)
def test_no_step_is_taken_and_the_last_good_state_is_kept(
    derived_folder: Path,
    quick_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    loop: str,
    what: str,
    at: int,
) -> None:
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    place = empty_or_derived(loop, derived_folder, quick_path)
    undisturbed(derived_folder)
    capfd.readouterr()
    with poisoned(what, at), pytest.MonkeyPatch.context() as seen:
        failed = traced(seen)
        assert place.run(*place.words(loop)) == NonFiniteError.exit_code
    told = capfd.readouterr().err
    assert CASES[loop, what].format(step=at) in told
    assert "hint: a checkpoint made before is intact" in told
    assert place.checkpoints(loop) == [step for step in (at - 1, at) if step > 0]
    assert place.latest(loop) is None
    if at and what != "statistic":
        moved = moved_since_the_checkpoint(place, loop, failed.last)
        assert moved <= may_have_moved(loop, what, at)
    trace = traced(monkeypatch)
    trace.states.update(failed.states)
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 1e9)
    assert place.run(*place.words(loop)) == 0
    whole = undisturbed(derived_folder)[loop][1]
    trace.batches = dict(whole.batches)  # the spoiled one is not that of a clean run
    assert_as_undisturbed(place, loop, trace, derived_folder)


def test_logits_that_are_spoiled_before_they_are_used_are_not_saved(
    quick_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    place = TinyPlace(quick_path)
    with poisoned("logits", 1):
        assert place.run(*place.words("search")) == NonFiniteError.exit_code
    assert "logits.normal_ops is not finite" in capfd.readouterr().err
    assert place.checkpoints("search") == [1]


@pytest.mark.parametrize(
    ("loop", "what"), [case for case in CASES if case[1] in ("loss", "statistic", "logits")]
)
def test_control_without_the_checks_it_reaches_the_store(
    derived_folder: Path, quick_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str, what: str
) -> None:
    monkeypatch.setattr(FiniteCheck, "check", lambda _: None)
    monkeypatch.setattr("d2nas.train.loop._require_finite", lambda *_: None)
    for module in ("search", "retrain"):
        monkeypatch.setattr(
            f"d2nas.train.{module}.step_if_finite", lambda optimizer, _: optimizer.step()
        )
    place = empty_or_derived(loop, derived_folder, quick_path)
    Sender("in the middle of the step", 4, 15).install(monkeypatch)
    with poisoned(what, 4):
        assert place.run(*place.words(loop)) == 143
    newest = place.latest(f"{loop}-state")
    assert newest is not None
    tensors = read_state(newest).tensors
    spoiled = {
        name.rpartition(".")[2] if what == "statistic" else name.partition(".")[0]
        for name, value in tensors.items()
        if not torch.isfinite(value).all()
    }
    wanted = {"loss": "sgd", "statistic": "running_var", "logits": "logits"}[what]
    assert wanted in spoiled


# --- evaluations --------------------------------------------------------------------------------


@contextmanager
def answers_spoiled(where: str) -> Iterator[None]:
    """Make one logit of the second image not finite wherever no gradient is computed."""
    real = resolve_name(where)

    def spoiled(*arguments: Any, **options: Any) -> Any:
        logits = real(*arguments, **options)
        if not (torch.is_grad_enabled() or is_counting()):
            logits[1, 2] = torch.nan
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, spoiled)
        yield


EVALUATIONS = {
    "derive": (
        "d2nas.nn.supernet.Supernet.forward",
        "the logits of candidate 0 in the supernet are not finite for 1 of 34 images, the first",
    ),
    "study": (
        "d2nas.nn.network.Network.forward",
        "the logits of the network are not finite for 2 of 359 images, the first of which is",
    ),
}


@pytest.mark.parametrize("command", EVALUATIONS)
def test_an_evaluation_names_the_image_and_records_nothing(
    command: str, tiny: TinyPlace, capfd: pytest.CaptureFixture[str]
) -> None:
    where, says = EVALUATIONS[command]
    with answers_spoiled(where):
        assert tiny.run(*words_of(tiny, command)) == NonFiniteError.exit_code
    told = capfd.readouterr().err
    assert says in told
    assert "hint: " in told
    names = [reference.name for reference in Store(tiny.store).references()]
    assert "tiny/derive@v2" not in names
    assert not [name for name in names if "/evaluate@" in name]
    assert tiny.run(*words_of(tiny, command)) == 0


@pytest.mark.parametrize("command", EVALUATIONS)
def test_control_without_the_check_it_is_a_bug_or_is_recorded(
    command: str, tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("loop", "candidates"):
        monkeypatch.setattr(f"d2nas.train.{module}.finite_logits", lambda logits, of: logits)
    with answers_spoiled(EVALUATIONS[command][0]):
        assert tiny.run(*words_of(tiny, command)) in (0, 1)


# --- half precision -----------------------------------------------------------------------------


def overflowing(scale: float, *, always: bool) -> Retraining:
    """A training whose float16 gradients overflow: at any scale, or only at large ones."""
    retraining = retraining_of("retrain.precision=fp16", "retrain.num_cells=2", "retrain.epochs=12")
    assert retraining.loss_scale is not None
    retraining.loss_scale.scale.fill_(scale)
    weight, limit = retraining.network.classifier.weight, 2.0**4

    def overflow(gradient: Tensor) -> Tensor:
        assert retraining.loss_scale is not None
        too_large = always or float(retraining.loss_scale.scale) > limit
        return gradient * torch.inf if too_large else gradient

    weight.register_hook(overflow)
    return retraining


def test_as_many_skipped_steps_as_the_scale_can_be_halved_are_normal_and_one_more_stops() -> None:
    halvings = int(torch.log2(torch.tensor(LossScale.START / LossScale.LEAST)))
    assert halvings == 16
    retraining = overflowing(LossScale.START, always=True)
    before = flat(retraining.network)
    steps = retraining.run()
    for step in range(halvings):
        assert next(steps).step == step
        assert torch.equal(flat(retraining.network), before)
    with pytest.raises(
        NonFiniteError, match=f"the gradient norm is not finite at step {halvings};"
    ):
        next(steps)
    assert torch.equal(flat(retraining.network), before)


def test_control_a_scale_that_helps_is_found_and_the_training_goes_on() -> None:
    retraining = overflowing(LossScale.START, always=False)
    before = flat(retraining.network)
    steps = retraining.run()
    for _ in range(12):
        next(steps)
    assert torch.equal(flat(retraining.network), before)
    next(steps)
    assert not torch.equal(flat(retraining.network), before)

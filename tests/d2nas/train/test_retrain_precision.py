"""Retraining in half precision: the same training within its rounding, and overflows survived."""

import pytest
import torch
from recipes import flat, retraining_of
from searches import CPU

from d2nas.config import build_config
from d2nas.errors import ConfigError, NonFiniteError
from d2nas.train.precision import LossScale, resolve_precision
from d2nas.train.retrain import Retraining, train_step

HALVES = ("bf16", "fp16")


def finish(retraining: Retraining) -> Retraining:
    for _ in retraining.run():
        pass
    return retraining


@pytest.mark.parametrize(("precision", "rounding"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_a_step_is_that_of_float32_within_the_rounding(precision: str, rounding: float) -> None:
    settings = ["retrain.drop_path=0.2", "retrain.lr=0.1"]
    exact, rounded = (
        retraining_of(*settings, f"retrain.precision={name}") for name in ("fp32", precision)
    )
    before = flat(exact.network)
    assert torch.equal(flat(rounded.network), before)
    if rounded.loss_scale is not None:
        rounded.loss_scale.scale.fill_(2.0**8)  # where a real training's scale soon is
    for retraining in (exact, rounded):
        train_step(retraining, 0)
    wanted, got = flat(exact.network) - before, flat(rounded.network) - before
    distance = float((got - wanted).norm() / wanted.norm())
    assert rounding / 100 < distance < 50 * rounding  # another type, and no other training
    assert all(p.dtype == torch.float32 for p in rounded.network.parameters())


@pytest.mark.parametrize("precision", HALVES)
def test_features_are_computed_in_the_type(precision: str) -> None:
    retraining = retraining_of(f"retrain.precision={precision}")
    seen = []
    handle = retraining.network.cells[0].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    train_step(retraining, 0)
    handle.remove()
    assert seen == [torch.bfloat16 if precision == "bf16" else torch.float16]


def test_an_overflow_halves_the_scale_and_leaves_the_weights_alone() -> None:
    retraining = retraining_of("retrain.precision=fp16")
    scale = retraining.loss_scale
    assert scale is not None
    scale.scale.fill_(2.0**100)  # no float16 gradient fits
    before = flat(retraining.network)
    train_step(retraining, 0)
    assert torch.equal(flat(retraining.network), before)
    assert float(scale.scale) == 2.0**99
    scale.scale.fill_(2.0**10)
    train_step(retraining, 1)
    assert not torch.equal(flat(retraining.network), before)
    assert float(scale.scale) == 2.0**10
    assert int(scale.good_steps) == 1


def test_the_scale_grows_after_enough_good_steps() -> None:
    scale = LossScale()
    fine, overflow = torch.tensor(True), torch.tensor(False)
    for _ in range(LossScale.GROWTH_STEPS - 1):
        scale.update(fine)
    assert float(scale.scale) == LossScale.START
    scale.update(fine)
    assert float(scale.scale) == 2 * LossScale.START
    assert int(scale.good_steps) == 0
    scale.update(overflow)
    assert float(scale.scale) == LossScale.START
    for _ in range(60):
        scale.update(overflow)
    assert float(scale.scale) == LossScale.LEAST


@pytest.mark.parametrize("precision", ["fp32", *HALVES])
def test_what_no_scale_can_cure_stops_the_training(precision: str) -> None:
    retraining = retraining_of(f"retrain.precision={precision}")
    with torch.no_grad():
        retraining.network.classifier.weight.fill_(float("nan"))
    before = flat(retraining.network)
    with pytest.raises(NonFiniteError, match="step 0"):
        train_step(retraining, 0)
    torch.testing.assert_close(flat(retraining.network), before, equal_nan=True, rtol=0, atol=0)


def test_gradients_that_overflow_at_the_least_scale_stop_the_training() -> None:
    retraining = retraining_of("retrain.precision=fp16")
    assert retraining.loss_scale is not None
    retraining.loss_scale.scale.fill_(LossScale.LEAST)
    weight = retraining.network.classifier.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="the gradient norm is not finite at step 0"):
        train_step(retraining, 0)


@pytest.mark.parametrize("precision", ["fp32", *HALVES])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resume_is_exact_in_every_type(precision: str, stop: int) -> None:
    settings = [f"retrain.precision={precision}", "retrain.drop_path=0.2"]
    whole = finish(retraining_of(*settings))
    first = retraining_of(*settings)
    for report in first.run():
        if report.step + 1 == stop:
            state = first.capture(stop)
            break
    second = retraining_of(*settings)
    for _ in second.run(state):
        pass
    expected, got = whole.capture(4).tensors, second.capture(4).tensors
    assert expected.keys() == got.keys()
    assert ("loss_scale.scale" in got) == (precision == "fp16")
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert whole.metrics == second.metrics


def test_auto_takes_what_the_device_is_good_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")
    for has_bf16, wanted in ((True, "bf16"), (False, "fp16")):
        # As PyTorch has it: by default, what can be emulated counts.
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, has=has_bf16: including_emulation or has,
        )
        assert resolve_precision("auto", cuda) == wanted
    assert resolve_precision("auto", CPU) == "fp32"
    assert build_config({}).retrain.precision == "fp32"


def test_a_checkpoint_does_not_go_on_in_another_precision() -> None:
    """precision=auto means bf16 on one GPU and fp16 on another: no mixture of both."""
    first = retraining_of("retrain.precision=bf16")
    next(iter(first.run()))
    state = first.capture(1)
    assert state.precision == "bf16"
    for other in ("fp32", "fp16"):
        with pytest.raises(ConfigError, match=f"in bf16, this device would go on in {other}"):
            next(iter(retraining_of(f"retrain.precision={other}").run(state)))
    # Control: in the same one it does.
    next(iter(retraining_of("retrain.precision=bf16").run(state)))


def test_a_network_that_cannot_be_compiled_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InductorError

    def fail(*_: object) -> None:
        raise InductorError(RuntimeError("No working C++ compiler found"), None)

    retraining = retraining_of()
    monkeypatch.setattr("d2nas.train.retrain.train_step", fail)
    with pytest.raises(ConfigError, match=r"torch\.compile fails here: .*C\+\+ compiler"):
        next(iter(retraining.run()))


def test_a_compiled_network_trains_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    # The front half of the compiler: what it captures is what it would hand to a code generator.
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend="aot_eager"))
    settings = ["retrain.drop_path=0.2", "retrain.lr=0.1", "retrain.num_cells=2"]
    plain = retraining_of(*settings)
    compiled = retraining_of(*settings, "retrain.compile=true")
    for retraining in (plain, compiled):
        finish(retraining)
    assert compiled.model is not compiled.network
    torch.testing.assert_close(flat(compiled.network), flat(plain.network), rtol=1e-3, atol=1e-4)
    assert list(compiled.deployed_weights()) == list(plain.deployed_weights())

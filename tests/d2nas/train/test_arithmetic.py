"""float32 on a GPU is float32, or what a key says; told by PyTorch's switches, without a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from recipes import retraining_of
from searches import CPU, search_by
from torch.utils._python_dispatch import TorchDispatchMode
from toy import Place

from benchmarks.search import StepRunner, made_images
from benchmarks.train import OurStepper, PlainStepper
from d2nas.config import build_config
from d2nas.data.images import Normalizer
from d2nas.errors import ConfigError
from d2nas.train import retrain as retrain_module
from d2nas.train import search as search_module
from d2nas.train.loop import Loop, predict
from d2nas.train.precision import Arithmetic, arithmetic_of, compute_type, resolve_precision
from pipeline.preflight.plan import Estimates

CUDA = torch.device("cuda:0")
Switches = tuple[bool, bool, bool]


def switches() -> Switches:
    """Of TF32 in convolutions and in matrix products, and of cuDNN's trials."""
    backends = torch.backends
    return backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark


@pytest.fixture(autouse=True)
def _others_left_them_on() -> Iterator[None]:
    """As PyTorch's defaults, and whatever ran before, may have them."""
    with Arithmetic(float32="tf32", autotune=True).pinned():
        yield


@pytest.fixture
def modern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def held_by(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> set[Switches]:
    """What holds inside the steps of a loop, which is told that it runs on a GPU."""
    held = set()
    for module, name in ((retrain_module, "train_step"), (search_module, "search_step")):
        real = getattr(module, name)

        def watched(loop: Loop, step: int, real: object = real) -> None:
            held.add(switches())
            real(loop, step)  # type: ignore[operator]

        monkeypatch.setattr(module, name, watched)
    for _ in loop.run():
        assert switches() == (True, True, True)  # between the steps, and afterwards, as before
    assert switches() == (True, True, True)
    return held


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_training_is_pinned(stage: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = f"{stage}.precision={precision}"
    loop: Loop = search_by("d2nas", setting) if stage == "search" else retraining_of(setting)
    assert loop.arithmetic == Arithmetic("ieee", autotune=False)  # a CPU has nothing to try
    loop.arithmetic = arithmetic_of(precision, CUDA)
    assert held_by(loop, monkeypatch) == {(False, False, True)}


def test_tf32_is_used_where_the_key_says_so(modern: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config({"search": {"precision": "tf32"}, "retrain": {"precision": "tf32"}})
    for section in (config.search, config.retrain):
        assert resolve_precision(section.precision, CUDA) == "tf32"
        assert compute_type(section.precision, CUDA) == torch.float32
    loop = retraining_of()
    loop.arithmetic = arithmetic_of("tf32", CUDA)
    assert held_by(loop, monkeypatch) == {(True, True, True)}


def test_tf32_is_refused_where_nothing_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a CPU does not compute in tf32"):
        resolve_precision("tf32", CPU)
    with pytest.raises(ConfigError, match="a CPU does not compute in tf32"):
        search_by("d2nas", "search.precision=tf32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    with pytest.raises(ConfigError, match="Tesla V100 does not compute in tf32"):
        resolve_precision("tf32", CUDA)


def test_nothing_is_tried_where_determinism_is_asked_for() -> None:
    assert arithmetic_of("fp32", CUDA) == Arithmetic("ieee", autotune=True)
    torch.use_deterministic_algorithms(True)
    try:
        assert arithmetic_of("fp32", CUDA) == Arithmetic("ieee", autotune=False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_evaluation_is_exact_whatever_was_left_on() -> None:
    held = []
    images = retraining_of().batches.images

    def network(inputs: torch.Tensor) -> torch.Tensor:
        held.append(switches())
        return inputs.mean((2, 3))

    predict(network, images, Normalizer((0.5,) * 3, (0.25,) * 3))
    assert set(held) == {(False, False, False)}
    assert switches() == (True, True, True)


class Held(TorchDispatchMode):
    """What holds while convolutions are computed, by our own code or by PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[Switches] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.overloadpacket.__name__:
            self.found.add(switches())
        return func(*args, **(kwargs or {}))


SMALL = ("num_cells=2", "init_channels=4", "batch_size=4", "device=cpu")


@pytest.mark.parametrize("stage", ["search", "retrain", "plain"])
def test_what_is_timed_is_computed_as_in_training(stage: str) -> None:
    section = "search" if stage == "search" else "retrain"
    words = [f"{section}.{word}" for word in SMALL]
    config = build_config({"data": {"name": "digits"}}, [*words, "retrain.auxiliary=false"])
    data = made_images(8, 8)
    stepper = {
        "search": lambda: StepRunner(config.search, size=8),
        "retrain": lambda: OurStepper(config.retrain, data, CPU),
        "plain": lambda: PlainStepper(config.retrain, data, CPU),
    }[stage]()
    with Held() as held:
        stepper.run(1)
    assert held.found == {(False, False, False)}
    if stage != "plain":
        with Held() as held:
            getattr(Estimates(config), f"_{stage}")()
        assert held.found >= {(False, False, False)}
        assert held.found <= {(False, False, False), (True, True, True)}  # a peak, on no device


def test_a_failed_step_leaves_the_switches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        assert switches() == (False, False, False)
        raise ValueError("failed")

    monkeypatch.setattr(retrain_module, "train_step", fail)
    with pytest.raises(ValueError, match="failed"):
        next(iter(retraining_of().run()))
    assert switches() == (True, True, True)


def test_the_facts_tell_how_it_was_computed(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = ("--set", "retrain.epochs=1", "--set", "retrain.warmup_epochs=0")
    cells = ("--set", "retrain.num_cells=2", "--genotype", "DARTS_V2")
    facts = place.json(capfd, "retrain", str(place.preset), *cells, *quick)["facts"]
    assert facts["precision"] == "fp32"
    assert facts["arithmetic"] == {"float32": "ieee", "autotune": False}
    sizes = ("--set", "search.epochs=1", "--set", "search.init_channels=2")
    facts = place.json(capfd, "search", str(place.preset), *sizes)["facts"]
    assert facts["precision"] == "fp32"
    assert facts["arithmetic"] == {"float32": "ieee", "autotune": False}

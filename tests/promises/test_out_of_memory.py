"""Memory that runs out anywhere is reported with the batch size and the peak, and costs nothing.

Nothing is tried again, and no batch becomes smaller behind the user's back.
"""

import re
import weakref
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from counting import is_counting
from faults import leftovers
from tiny import TinyPlace, words_of

from d2nas.errors import OutOfMemoryError
from d2nas.train.loop import memory_errors
from pipeline.store import Store

FAILURES: dict[str, Callable[[], Exception]] = {
    "of a GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "of PyTorch on a CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "of Python": MemoryError,
}
PASSES = {
    "build": "d2nas.train.{}.to_device",
    "forward": "torch.nn.functional.cross_entropy",
    "backward": "torch.autograd.backward",
    "step": "torch.optim.SGD.step",
}
# The command, the phase, what fails, and the batch size that is named.
CASES = [
    *(("search", phase, where.format("search"), 8) for phase, where in PASSES.items()),
    *(("retrain", phase, where.format("retrain"), 20) for phase, where in PASSES.items()),
    ("derive", "evaluate", "d2nas.nn.supernet.Supernet.forward", 256),
    ("study", "evaluate", "d2nas.nn.network.Network.forward", 256),
    ("export", "evaluate", "d2nas.nn.network.Network.forward", 2),
    ("export", "export", "torch.onnx.export", 2),
    ("validate", "evaluate", "d2nas.nn.network.Network.forward", 64),
]


def failing(real: Any, failure: Callable[[], Exception]) -> Callable[..., Any]:
    """What fails where gradients are off, or the caller never computes any."""

    def fail(*arguments: Any, **options: Any) -> Any:
        evaluates = getattr(real, "__name__", "") == "forward"
        if evaluates and (torch.is_grad_enabled() or is_counting()):
            return real(*arguments, **options)
        raise failure()

    return fail


@pytest.mark.parametrize(
    ("command", "phase", "where", "batch"), CASES, ids=[f"{c} {p}" for c, p, _, _ in CASES]
)
def test_it_is_told_with_batch_and_peak_and_nothing_is_changed(
    exported: TinyPlace,
    capfd: pytest.CaptureFixture[str],
    command: str,
    phase: str,
    where: str,
    batch: int,
) -> None:
    words = words_of(exported, command)
    kinds = list(FAILURES.values())[: None if command in ("retrain", "export") else 1]
    before = exported.content()
    for failure in kinds:
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as full:
            full.setattr(where, failing(resolve_name(where), failure))
            assert exported.run(*words) == OutOfMemoryError.exit_code
        told = capfd.readouterr().err
        found = re.search(r"out of memory on cpu at batch size (\d+) \(peak (\d+) MiB", told)
        assert found is not None, told
        assert int(found[1]) == batch
        assert 50 < int(found[2]) < 2**20  # this process holds PyTorch, and no petabyte
        assert "hint: " in told
        assert "this is a bug" not in told
        if command != "study":  # whose earlier stages are done
            assert exported.content() == before
        assert leftovers(Store(exported.store)) == []
    assert exported.run(*words) == 0
    if command in ("search", "retrain"):
        version = exported.latest(command)
        assert version is not None
        assert version.manifest.config[command]["batch_size"] == batch
        assert version.manifest.facts["steps"] == 12


def test_control_without_the_classification_it_is_a_bug(
    exported: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("d2nas.train.loop._is_out_of_memory", "pipeline.foreign_errors.is_out_of_memory"):
        monkeypatch.setattr(place, lambda _: False)
    monkeypatch.setattr(PASSES["forward"], failing(None, FAILURES["of a GPU"]))
    assert exported.run(*words_of(exported, "retrain")) == 1


@pytest.mark.parametrize("let_go", [True, False])  # without: the control
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_failed_steps_tensors_are_gone_when_the_error_arrives(
    let_go: bool, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def step() -> None:
        tensor = torch.ones(8)
        held.append(weakref.ref(tensor))
        raise FAILURES["of a GPU"]()

    def compiled_step() -> None:
        try:
            step()
        except RuntimeError as error:
            raise RuntimeError("the backend failed") from error

    if not let_go:
        monkeypatch.setattr("d2nas.train.loop._release_frames", lambda _: None)
    try:
        with memory_errors(4, torch.device("cpu")):
            (compiled_step if wrapped else step)()
    except OutOfMemoryError:
        alive = held[0]() is not None
    assert alive != let_go

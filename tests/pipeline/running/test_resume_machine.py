"""A training continued on another machine: sums in the same order, or the difference is told."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stops import stop_at
from tiny import LOOPS, STEPS, TinyPlace

from d2nas.config import build_config
from d2nas.parallel import Ranks
from d2nas.train import machine, precision
from d2nas.train.machine import THREAD_VARIABLES, machine_facts, take_threads
from pipeline.running import checkpoints, runner
from pipeline.running.other_ranks import Silence, runner_of
from pipeline.stages.search import SUPERNET_FILE

LATE = STEPS - 1


@pytest.fixture
def by_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process whose user said nothing of threads."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(before)


def test_a_resume_takes_the_checkpoints_threads_and_ends_equal_to_the_last_bit(
    by_default: pytest.MonkeyPatch,
    derived_folder: Path,
    quick_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = TinyPlace(quick_path)
    whole = TinyPlace(derived_folder).latest("search")
    assert whole is not None
    stop_at(place, "search", step=LATE)
    (quick_path / "other").mkdir()
    other = place.copy(quick_path / "other")
    torch.set_num_threads(2)
    capfd.readouterr()
    assert place.run(*place.words("search")) == 0
    talk = capfd.readouterr().err
    assert "threads: 1, as at the checkpoint" in talk
    assert "to the last bit (here 2; OMP_NUM_THREADS decides)" in talk
    assert "warning" not in talk
    version = place.latest("search")
    assert version is not None
    assert version.id == whole.id
    assert torch.get_num_threads() == 2  # as before
    # Control: without it another result, which is told.
    by_default.setattr(machine, "take_threads", lambda _: None)
    assert other.run(*other.words("search")) == 0
    version = other.latest("search")
    assert version is not None
    assert version.read(SUPERNET_FILE) != whole.read(SUPERNET_FILE)
    assert "was made with 1 threads, now 2: the result will not equal" in capfd.readouterr().err


def recorded(threads: Any) -> dict[str, Any]:
    return {"cpu": {"threads": threads}}


def test_threads_are_taken_where_nobody_said_otherwise_and_they_can_be(
    by_default: pytest.MonkeyPatch,
) -> None:
    by_default.setattr(machine, "usable_cpus", lambda: 3)
    torch.set_num_threads(2)
    for facts in (recorded(2), recorded(4), recorded(0), recorded("3"), {"cpu": None}, {}):
        assert take_threads(facts) is None, facts
        assert torch.get_num_threads() == 2
    for name in THREAD_VARIABLES:
        with pytest.MonkeyPatch.context() as said:
            said.setenv(name, "2")
            assert take_threads(recorded(3)) is None
    assert take_threads(recorded(3)) == 2  # the control
    assert torch.get_num_threads() == 3


def test_a_rank_takes_them_too(
    by_default: pytest.MonkeyPatch, derived_folder: Path, quick_path: Path
) -> None:
    place = TinyPlace(quick_path)
    stop_at(place, "search", step=1)
    reference = place.latest("search-state")
    assert reference is not None
    ranks: Any = SimpleNamespace(rank=1, size=2, decide=lambda *_: reference.reference)
    torch.set_num_threads(2)
    other = runner_of(ranks, place.store, Silence(), runner.StopFlag())
    commit: Any = SimpleNamespace(run="tiny", stage="search", key="", config=build_config({}))
    hooks = runner._StageHooks(other, commit, time.monotonic, is_fresh=False)
    state = hooks.resume()
    assert state is not None
    assert (state.step, torch.get_num_threads()) == (1, 1)


@pytest.mark.parametrize("loop", LOOPS)
def test_checkpoint_and_version_say_what_decides_and_show_lists_it(
    loop: str, derived_folder: Path, quick_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = TinyPlace(derived_folder).copy(quick_path)
    stop_at(place, loop, *(("--fresh",) if loop == "search" else ()), step=LATE)
    assert place.run(*place.words(loop)) == 0
    own = machine_facts("cpu", None)
    assert own["processes"] == 1
    assert own["cpu"]["processor"]
    for stage in (f"{loop}-state", loop):
        shown = place.json(capfd, "show", f"tiny/{stage}")
        assert {name: shown["facts"][name] for name in own} == own
        assert set(shown["note"]["cpus"]) == {"allowed", "limit"}
        assert shown["libraries"]["pillow"]


def version_with(**facts: Any) -> Any:
    """A checkpoint's version with these facts."""
    return SimpleNamespace(
        manifest=SimpleNamespace(facts=facts, versions={}), reference="a/search-state@v1"
    )


GPU = {"name": "NVIDIA H100", "cuda": "13.0", "cudnn": 91002, "driver": "580.65"}


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"processes": 2}, {"processes": 1}, "2 processes, now 1: the result will not"),
        (
            {"cpu": {"processor": "AMD EPYC"}},
            {"cpu": {"processor": "Intel Xeon"}},
            "AMD EPYC, now Intel Xeon: the result may not",
        ),
        ({"gpu": GPU}, {"gpu": GPU | {"name": "NVIDIA B200"}}, "NVIDIA H100, now NVIDIA B200: the"),
        ({"gpu": GPU}, {"gpu": GPU | {"cudnn": 92000}}, "cudnn 91002, now 92000: the result will"),
        (
            {"gpu": GPU},
            {"gpu": GPU | {"driver": "590.1"}},
            "driver 580.65, now 590.1: the result may",
        ),
        ({"gpu": GPU}, {"gpu": GPU | {"nccl": "2.28.9"}}, None),  # not recorded by one process
        ({"gpu": GPU}, {"gpu": GPU}, None),
        ({}, {"processes": 1, "cpu": {"threads": 1}, "gpu": None}, None),
        ({"cpu": None, "gpu": GPU}, {"cpu": {"threads": 1}, "gpu": None}, None),
    ],
)
def test_another_machine_is_told(
    was: dict[str, Any], now: dict[str, Any], told: str | None
) -> None:
    warnings = checkpoints.arithmetic_warnings(version_with(**was), now)
    if told is None:
        assert warnings == []
    else:
        assert len(warnings) == 1
        assert f"a/search-state@v1 was made with {told}" in warnings[0]


@pytest.mark.parametrize("name", ["torchvision", "numpy", "pillow"])
def test_libraries_that_prepare_images_are_told_where_they_changed(name: str) -> None:
    now = runner.library_versions()
    version = version_with()
    version.manifest.versions = now | {name: "0.0.1"}
    (warning,) = checkpoints.library_warnings(version, now)
    assert f"with {name} 0.0.1, this is {name} {now[name]}: the result may not" in warning
    version.manifest.versions = {"torch": now["torch"]}  # of before they were recorded
    assert checkpoints.library_warnings(version, now) == []


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_facts("cuda", None)["gpu"] is None  # another machine's checkpoint is refused
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(machine, "driver_version", lambda: "580.65")
    assert machine_facts("cuda", None) == {"processes": 1, "cpu": None, "gpu": GPU}
    gpu = GPU | {"nccl": "2.28.9"}
    assert machine_facts("cuda", Ranks(0, 2)) == {"processes": 2, "cpu": None, "gpu": gpu}


@pytest.mark.gpu
def test_the_gpu_here_is_described() -> None:
    gpu = machine_facts("cuda", None)["gpu"]
    assert gpu["name"] == torch.cuda.get_device_name()
    assert gpu["cudnn"] > 0
    assert precision.cpu_arithmetic()["threads"] >= 1

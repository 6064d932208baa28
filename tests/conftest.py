"""Fixtures that several test modules share, and what CPU-only machines skip."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import campaigns
import idle_threads  # noqa: F401 - before torch
import pytest
import torch
from children import ForkServer
from faults import memory_folder
from made_once import keep_traces, made_once, one_registry, shared_root
from tiers import is_slow
from tiny import TinyPlace
from toy import Place

# As a terminal has it: under nohup it is ignored, here and in the children, and so decides nothing.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A collection looks at every object of PyTorch and of what was traced: no more of them than needed.
gc.set_threshold(50_000, 20, 100)

# Test processes side by side would otherwise fight for all cores; those they start, too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder where syncing costs nothing, if there is one."""
    with memory_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place where nothing has run yet."""
    return Place(tmp_path)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """What starts child processes that run commands."""
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture(scope="module", autouse=True)
def _loaded_modules_are_kept() -> None:
    """Let the collector, which many tests call, not look through all of PyTorch each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _traces(tmp_path_factory: pytest.TempPathFactory) -> None:
    keep_traces(shared_root(tmp_path_factory) / "traces")


@pytest.fixture(scope="session", autouse=True)
def _registry() -> Iterator[None]:
    with one_registry():
        yield


@pytest.fixture(scope="session")
def derived_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run's search and derivation. Copy it before changing anything."""

    def make(folder: Path) -> None:
        place = TinyPlace(folder)
        for stage in ("search", "derive"):
            assert place.run(*place.words(stage)) == 0

    return made_once(tmp_path_factory, "derived", make)


@pytest.fixture(scope="session")
def exported_folder(derived_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained and exported too."""

    def make(folder: Path) -> None:
        place = TinyPlace(derived_folder).copy(folder)
        for stage in ("retrain", "export"):
            assert place.run(*place.words(stage)) == 0

    return made_once(tmp_path_factory, "exported", make)


@pytest.fixture
def exported(exported_folder: Path, quick_path: Path) -> TinyPlace:
    """A place of the test's own with a tiny run up to its export."""
    return TinyPlace(exported_folder).copy(quick_path)


@pytest.fixture
def tiny(derived_folder: Path, quick_path: Path) -> TinyPlace:
    """A place of the test's own with a tiny run's search and derivation, in memory."""
    return TinyPlace(derived_folder).copy(quick_path)


def pytest_configure(config: pytest.Config) -> None:
    campaigns.LONG = config.option.markexpr == "long"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item.getparent(pytest.Module).obj, "count", None) is campaigns.count:
            item.add_marker("long")
        if is_slow(item):
            item.add_marker("slow")
        for marker in ("floors", "installs"):
            if item.get_closest_marker(marker) and item.config.option.markexpr != marker:
                item.add_marker(pytest.mark.skip(reason=f"installs gigabytes: -m {marker}"))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device that torch can use"))


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run. Copy it (see ``finished``) before changing anything."""

    def make(folder: Path) -> None:
        place = Place(folder)
        assert place.run("run", str(place.preset)) == 0

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def finished(finished_folder: Path, quick_path: Path) -> Place:
    """A finished toy run of the test's own."""
    folder = quick_path / "place"
    shutil.copytree(finished_folder, folder)
    return Place(folder)

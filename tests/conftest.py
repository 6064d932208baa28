"""Fixtures that several test modules share, and what CPU-only machines skip."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults import memory_folder
from toy import Place

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device that torch can use"))


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run. Copy it (see ``finished``) before changing anything."""
    place = Place(tmp_path_factory.mktemp("finished"))
    assert place.run("run", str(place.preset)) == 0
    return place.folder


@pytest.fixture
def finished(finished_folder: Path, quick_path: Path) -> Place:
    """A finished toy run of the test's own."""
    folder = quick_path / "place"
    shutil.copytree(finished_folder, folder)
    return Place(folder)

"""Fixtures that several test modules share, and what CPU-only machines skip."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults import memory_folder

# Two test processes on two cores would otherwise fight for both.
torch.set_num_threads(1)


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder where syncing costs nothing, if there is one."""
    with memory_folder(tmp_path) as folder:
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device that torch can use"))

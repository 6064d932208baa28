"""How many CPUs a process may use, where a container limits it."""

import os
from pathlib import Path

import pytest

from d2nas import cpus
from pipeline.running import launch


def limit_of(folder: Path, own: str, files: dict[str, str]) -> float | None:
    """The limit where the system's files are these."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        file = folder / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return cpus.cpu_limit(folder / "groups", folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "200000 100000"}, 0.5),
        ("0::/elsewhere\n", {}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        (
            "4:memory:/m\n3:cpu,cpuacct:/d\n0::/\n",
            {"cpu/d/cpu.cfs_quota_us": "300000\n", "cpu/d/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        (
            "3:cpu:/host/id\n",  # as in a container, where the group is mounted at the top
            {"cpu/cpu.cfs_quota_us": "40000\n", "cpu/cpu.cfs_period_us": "20000\n"},
            2.0,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, None),
    ],
)
def test_a_containers_limit_is_read(
    own: str, files: dict[str, str], limit: float | None, tmp_path: Path
) -> None:
    assert limit_of(tmp_path, own, files) == limit


def test_where_there_are_no_groups_nothing_limits(tmp_path: Path) -> None:
    assert cpus.cpu_limit(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(("limit", "usable"), [(None, 8), (2.5, 3), (0.1, 1), (64.0, 8)])
def test_affinity_and_limit_both_count(
    limit: float | None, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "allowed_cpus", lambda: 8)
    monkeypatch.setattr(cpus, "cpu_limit", lambda: limit)
    assert cpus.usable_cpus() == usable


def test_processes_of_one_machine_share_what_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # which is not what may be used
    monkeypatch.setattr(launch, "usable_cpus", lambda: 4)
    assert launch._environment(0, 2, 1)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # control: the user's number is kept
    assert launch._environment(0, 2, 1)["OMP_NUM_THREADS"] == "3"

"""The store's promises: whole or absent, verified when read, nothing lost, nothing live removed.

Each protection is also taken away once, to see the test notice.
"""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import (
    OTHER_KEY,
    commit,
    contents,
    files_of,
    leave_unnamed,
    leftovers,
    lineage_in,
)
from store_children import holder

from d2nas.errors import ConfigError, DamagedArtifactError
from pipeline.stages import open_store
from pipeline.store import FileSystem, Store, garbage, safe_name
from pipeline.store.fsio import safe_run_name

GOLDEN_ID = "6101579099684cffca407f7a48362fa9cd87f7cab21879ff34ae35bd50a143ed"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def lineage(tmp_path: Path) -> Store:
    return lineage_in(tmp_path / "store")


# Names


def test_commit_names_and_finds(store: Store) -> None:
    first = commit(store, contents(1), key=OTHER_KEY)
    second = commit(store, contents(2))
    again = commit(store, contents(1), key=OTHER_KEY)
    shared = commit(store, contents(1), run="other", key=OTHER_KEY)
    assert [first.reference, second.reference] == ["quickstart/search@v1", "quickstart/search@v2"]
    assert again == first
    assert (shared.id, shared.reference) == (first.id, "other/search@v1")
    assert store.latest("quickstart", "search") == second
    assert store.find("quickstart", "search", OTHER_KEY) == first
    assert store.find("quickstart", "derive", OTHER_KEY) is None
    assert store.latest("nobody", "search") is None
    for target in ("quickstart/search", "quickstart/search@v2", second.id, second.id[:8]):
        assert store.open(target) == second
    assert second.note == {"host": "somewhere", "created": "2026-01-01T00:00:00Z"}
    names = ["other/search@v1", "quickstart/search@v1", "quickstart/search@v2"]
    assert [reference.name for reference in store.references()] == names
    assert store.find_garbage() == []


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("quickstart/serch", "did you mean quickstart/search?"),
        ("quickstart/search@v9", "did you mean quickstart/search@v2?"),
        ("quickstar/derive@v1", "did you mean quickstart/derive@v1?"),
        ("0" * 64, "d2nas ls"),
        ("0" * 7, "d2nas ls"),
        ("../../etc/passwd", "d2nas ls"),
        ("Quickstart/search", ""),
        ("quickstart/search@v0", ""),
        ("quickstart/search@v2\n", ""),
        ("", ""),
    ],
)
def test_unknown_target(target: str, hint: str, lineage: Store) -> None:
    with pytest.raises(ConfigError) as caught:
        lineage.open(target)
    assert hint in str(caught.value.hint)
    assert "\n" not in str(caught.value)


HOSTILE = ["", ".", "..", "../x", "a/b", "/etc", "-x", ".x", "a\0", "A", "é", "a\n", "a b"]
TOO_LONG = "x" * 65


@pytest.mark.parametrize("name", [*HOSTILE, TOO_LONG, "a_b", "a.b"])
def test_hostile_run_names(name: str, store: Store) -> None:
    with pytest.raises(ConfigError):
        safe_run_name(name)
    for call in (
        lambda: commit(store, contents(1), run=name),
        lambda: store.latest(name, "search"),
        lambda: store.lock_run(name).__enter__(),
        lambda: store.open_id(name),
    ):
        with pytest.raises(ConfigError):
            call()
    assert sorted(path.name for path in store.root.parent.iterdir()) in ([], ["store"])


@pytest.mark.parametrize("name", [*HOSTILE, TOO_LONG])
def test_hostile_file_and_cache_names(name: str, store: Store) -> None:
    with pytest.raises(ConfigError):
        safe_name(name)
    with pytest.raises(ConfigError):
        store.store_cache(name, 1, 1)
    if name not in ("A", "-x", TOO_LONG):
        with store.stage() as staging, pytest.raises(ValueError, match="cannot hold"):
            staging.write(name, b"")


def test_staging_refuses_what_a_version_cannot_hold(store: Store) -> None:
    with store.stage() as staging:
        staging.write("model.onnx", b"")
        for name in ("model.onnx", "Model.ONNX", "manifest.json", "MANIFEST.json"):
            with pytest.raises(ValueError, match="cannot hold"):
                staging.write(name, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "derive"},
        {"key": "0"},
        {"facts": {"loss": float("nan")}},
        {"parents": {"search": "x"}},
        {"seed": True},
        {"config": {"value": object()}},
        {"note": {"seconds": float("inf")}},
    ],
)
def test_what_no_reader_could_read_is_not_committed(changes: dict[str, Any], store: Store) -> None:
    with pytest.raises((ValueError, TypeError)):
        commit(store, contents(1), **changes)
    assert store.verify().checked == 0
    assert leftovers(store) == []


def test_command_line_that_is_no_text(store: Store) -> None:
    commit(store, contents(1), note={"command": "d2nas \udcff"})
    assert store.references()[0].note == {"command": "d2nas ?"}


def golden(root: Path, **changes: Any) -> str:
    facts = {"accuracy": 0.5, "params": 1234} | changes
    return commit(Store(root), {"a.txt": b"alpha\n", "b.bin": bytes(256)}, facts=facts).id


def test_golden_id_and_control(tmp_path: Path) -> None:
    assert golden(tmp_path / "a") == golden(tmp_path / "b" / "c") == GOLDEN_ID
    assert golden(tmp_path / "a", created="2026-01-01T00:00:00Z") != GOLDEN_ID


def test_number_once_given_is_never_given_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(store, contents(1))
    # As a process without working locks sees it, that listed the names before the first commit.
    monkeypatch.setattr("pipeline.store.commit.places", lambda *_: [])
    assert commit(store, contents(2)).reference == "quickstart/search@v2"
    assert store.open("quickstart/search@v1").id == first.id
    monkeypatch.setattr(FileSystem, "publish_file", FileSystem.replace_file)
    commit(store, contents(3))
    assert store.open("quickstart/search@v1").id != first.id  # control: the first name is lost


# What is removed, and what is not


def test_garbage_is_what_nobody_reaches_or_writes(
    lineage: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unnamed = leave_unnamed(lineage.root, 8)
    for path in lineage.root.glob("runs/gone/search/.tmp-*"):
        path.unlink()
    # search@v2 keeps no name, but derive@v1 was made from it.
    reached = lineage.open("quickstart/search@v2")
    (lineage.root / "runs/quickstart/search/v2.json").unlink()
    (lineage.root / "runs/quickstart/search/.tmp-0123").write_bytes(b"half")
    with holder("hold-staging", lineage.root), lineage.stage() as staging:
        (live,) = set((lineage.root / "staging").iterdir()) - {staging.folder}
        found = lineage.find_garbage()
        assert unnamed.is_dir()
        assert lineage.collect_garbage() == found
        assert {item.path.name for item in found} == {unnamed.name, ".tmp-0123"}
        assert all(item.size > 0 for item in found)
        assert not unnamed.exists()
        assert lineage.open_id(reached.id).manifest == reached.manifest
        assert staging.folder.is_dir()
        assert live.is_dir()
        with monkeypatch.context() as patch:  # control: without the check live work is lost
            patch.setattr(garbage, "is_live", lambda *_: False)
            lineage.collect_garbage()
            assert not live.exists()
    assert lineage.collect_garbage() == []
    assert lineage.verify().damaged == []
    monkeypatch.setattr(garbage, "reachable", lambda *_: set())  # control
    lineage.collect_garbage(everything_unnamed=True)
    assert not reached.path.exists()


def test_dead_writers_folder_is_garbage(store: Store) -> None:
    with holder("hold-staging", store.root) as process:
        assert store.find_garbage() == []
        process.kill()
        process.wait()
        assert [item.reason for item in store.find_garbage()] == ["its writer is gone"]
        store.collect_garbage()
    assert leftovers(store) == []


@pytest.mark.parametrize("what", ["runs/quickstart/search/v1.json", "versions/ID/manifest.json"])
def test_nothing_is_removed_while_a_name_is_damaged(what: str, lineage: Store) -> None:
    path = lineage.root / what.replace("ID", lineage.open("quickstart/search@v1").id)
    path.write_bytes(path.read_bytes()[:-10])
    unnamed = leave_unnamed(lineage.root, 8)
    with pytest.raises(DamagedArtifactError, match=path.name):
        lineage.collect_garbage()
    assert unnamed.is_dir()


def state(store: Store, number: int, **changes: Any) -> Any:
    return commit(store, contents(number), stage="search-state", **changes)


def names_of(store: Store, stage: str) -> list[str]:
    return [reference.name.split("@")[1] for reference in store.references("quickstart", stage)]


def test_retention_counts_what_verifies(store: Store) -> None:
    states = [state(store, number) for number in range(5)]
    state(store, 0, run="other")
    commit(store, contents(9), stage="derive", parents={"state": states[1].id})
    (states[4].path / "weights.bin").write_bytes(b"")
    dropped = store.retain_states("quickstart", "search-state", keep=2)
    assert dropped == ["quickstart/search-state@v2", "quickstart/search-state@v1"]
    assert names_of(store, "search-state") == ["v3", "v4", "v5"]
    # Another name keeps the first folder, a child the second.
    assert [version.path.is_dir() for version in states] == [True] * 5
    assert state(store, 10).number == 6
    store.retain_states("quickstart", "search-state", keep=1)
    assert names_of(store, "search-state") == ["v6"]
    assert [version.path.is_dir() for version in states] == [True, True, False, False, False]
    with pytest.raises(ValueError, match="at least one"):
        store.retain_states("quickstart", "search-state", keep=0)
    with pytest.raises(ValueError, match="no checkpoints"):
        store.retain_states("quickstart", "search", keep=1)


def test_newest_checkpoint_that_verifies_stays(store: Store) -> None:
    states = [state(store, number) for number in range(3)]
    for version in states[1:]:
        (version.path / "weights.bin").write_bytes(b"")
    store.retain_states("quickstart", "search-state", keep=1)
    assert files_of(store.open("quickstart/search-state@v1")) == contents(0)
    assert len(store.drop_states("quickstart", "search-state")) == 3
    assert store.latest("quickstart", "search-state") is None
    assert list((store.root / "versions").iterdir()) == []


def test_retention_survives_a_broken_name_elsewhere(store: Store) -> None:
    states = [state(store, number) for number in range(2)]
    commit(store, contents(5), run="other")
    (store.root / "runs/other/search/v1.json").write_bytes(b"{}")
    store.retain_states("quickstart", "search-state", keep=1)
    assert names_of(store, "search-state") == ["v2"]
    assert states[0].path.is_dir()  # the broken name might mean it
    assert store.latest("quickstart", "search-state") is not None


# Cache


def test_cache_is_never_wrong(store: Store) -> None:
    assert store.cached("digest", {"path": "/images", "size": 3}) is None
    store.store_cache("digest", {"path": "/images", "size": 3}, ["abc", 1.5, None])
    store.store_cache("digest", {"path": "/images", "size": 4}, "other")
    assert store.cached("digest", {"path": "/images", "size": 3}) == ["abc", 1.5, None]
    (path,) = (path for path in (store.root / "cache").iterdir() if b"other" in path.read_bytes())
    whole = path.read_bytes()
    damages = [b"", b"{}", b"[]", b"null", whole[:-20], whole.replace(b"other", b"0ther")]
    for damage in damages:
        path.write_bytes(damage)
        assert store.cached("digest", {"path": "/images", "size": 4}) is None
    path.write_bytes(whole)
    assert store.cached("digest", {"path": "/images", "size": 4}) == "other"


# Structure


def test_store_loads_no_torch() -> None:
    code = "import sys, pipeline.store; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=faults.PROJECT, check=False).returncode == 0


CHANGING = {
    "mkdir", "makedirs", "rename", "renames", "unlink", "remove", "rmdir", "fsync", "link",
    "symlink", "truncate", "rmtree", "move", "copy", "write_bytes", "write_text", "touch",
    "symlink_to", "hardlink_to", "removedirs", "copytree", "copyfile",
}  # fmt: skip


def changing_calls(source: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, owner = node.func.attr, ast.unparse(node.func.value)
            if called in CHANGING or (owner, called) in {("os", "replace"), ("os", "open")}:
                names.append(f"{owner}.{called}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
            names.append("open")
    return names


def test_only_fsio_changes_the_disk() -> None:
    for path in sorted((faults.PROJECT / "pipeline/store").glob("*.py")):
        found = changing_calls(path.read_text())
        assert (found != []) == (path.name == "fsio.py"), (path.name, found)

"""The store when file operations fail: full disks, I/O errors, crashes, torn writes, lost syncs.

Each protection is also taken away once, to see the test notice.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faults import (
    FAULTS,
    Crash,
    FaultyFileSystem,
    ForgetfulFileSystem,
    careless_commit,
    commit,
    contents,
    files_of,
    leave_unnamed,
    leftovers,
    order_problems,
)

from d2nas.errors import DamagedArtifactError, StorageError
from pipeline.stages import ALL, KINDS
from pipeline.store import FileSystem, Store, kind_of

STAGE_OF_KIND = {kind_of(stage): stage for stage in KINDS.names}
"""One stage for each kind of version."""


# Whole or absent


class CommitOf:
    """Commit a second version of a stage, made from the first search."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.__name__ = f"commit {stage}"

    def __call__(self, store: Store) -> None:
        search = store.references("quickstart", "search")[0].id
        commit(store, contents(2), stage=self.stage, parents={"search": search})


def repair(store: Store) -> None:
    commit(store, contents(3), run="other")


def collect(store: Store) -> None:
    store.collect_garbage()


def retain(store: Store) -> None:
    store.retain_states("quickstart", "search-state", keep=1)


def cache(store: Store) -> None:
    store.store_cache("digest", "images", "new")


ACTIONS: tuple[Callable[[Store], None], ...] = (
    *map(CommitOf, STAGE_OF_KIND.values()),
    repair,
    collect,
    retain,
    cache,
)


def prepare(root: Path, action: Callable[[Store], None]) -> None:
    """One good version, and what ``action`` is about."""
    store = Store(root, FaultyFileSystem())
    commit(store, contents(1))
    if isinstance(action, CommitOf):
        commit(store, contents(0), stage=action.stage)
    elif action is repair:
        (commit(store, contents(3), run="other").path / "weights.bin").write_bytes(b"damaged")
    elif action is collect:
        (root / "staging" / ("0" * 32)).mkdir()
        (root / "staging" / ("0" * 32) / "weights.bin").write_bytes(b"half")
        leave_unnamed(root, 7)
    elif action is retain:
        for number in (4, 5, 6):
            commit(store, contents(number), stage="search-state")
    elif action is cache:
        store.store_cache("digest", "images", "old")


def check_invariants(store: Store, action: Callable[[Store], None], *, done: bool) -> None:
    """What must hold after any fault, seen by a process that starts afterwards."""
    assert files_of(store.open("quickstart/search@v1")) == contents(1)
    allowed = {"other/search@v1"} if action is repair and not done else set()
    assert {item.name for item in store.verify().damaged} <= allowed
    if isinstance(action, CommitOf):
        newest = store.open(f"quickstart/{action.stage}")
        made = bool(newest.manifest.parents)
        assert made or not done
        assert files_of(newest) == contents(2 if made else 0)
        assert all(store.open_id(parent) for parent in newest.manifest.parents.values())
    elif action is repair and done:
        assert files_of(store.open("other/search@v1")) == contents(3)
    elif action is retain:
        assert files_of(store.open("quickstart/search-state")) == contents(6)
    elif action is cache:
        assert store.cached("digest", "images") in (["new"] if done else ["old", "new"])


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_every_operation_may_fail(action: Callable[[Store], None], quick_path: Path) -> None:
    prepare(quick_path / "prepared", action)
    shutil.copytree(quick_path / "prepared", quick_path / "clean")
    clean = FaultyFileSystem()
    action(Store(quick_path / "clean", clean))
    assert len(clean.log) >= (20 if isinstance(action, CommitOf) else 5)  # 80 cases and more
    for fault in FAULTS:
        for position in range(1, len(clean.log) + 1):
            root = quick_path / f"{fault} {position}"
            shutil.copytree(quick_path / "prepared", root)
            faulty = FaultyFileSystem(position, fault)
            done = False
            with suppress(StorageError, Crash):
                action(Store(root, faulty))
                done = True
            assert len(faulty.log) >= position
            store = Store(root, FaultyFileSystem())
            check_invariants(store, action, done=done)
            action(store)
            check_invariants(store, action, done=True)
            store.collect_garbage()
            assert leftovers(store) == []
            assert store.find_garbage() == []
            assert store.verify().damaged == []
            shutil.rmtree(root)


def test_first_commit_may_fail_anywhere(quick_path: Path) -> None:
    clean = FaultyFileSystem()
    commit(Store(quick_path / "clean", clean), contents(1))
    for fault in FAULTS:
        for position in range(1, len(clean.log) + 1):
            root = quick_path / f"{fault} {position}"
            with suppress(StorageError, Crash):
                commit(Store(root, FaultyFileSystem(position, fault)), contents(1))
            store = Store(root, FaultyFileSystem())
            assert store.verify().damaged == []
            assert files_of(commit(store, contents(1))) == contents(1)
            store.collect_garbage()
            assert leftovers(store) == []
            assert [reference.name for reference in store.references()] == ["quickstart/search@v1"]


def test_control_careless_writer_breaks_the_store(quick_path: Path) -> None:
    clean = FaultyFileSystem()
    careless_commit(Store(quick_path / "clean"), clean, contents(2))
    num_broken = 0
    for fault in FAULTS:
        for position in range(1, len(clean.log) + 1):
            store = Store(quick_path / f"{fault} {position}")
            with suppress(StorageError, Crash):
                faulty = FaultyFileSystem(position, fault)
                careless_commit(store, faulty, contents(2))
            num_broken += bool(store.verify().damaged)
    assert num_broken >= 0.6 * 4 * len(clean.log)


def test_every_kind_of_version_is_among_the_actions() -> None:
    assert set(STAGE_OF_KIND) == {"state", *(stage.name for stage in ALL)}


@pytest.mark.parametrize("stage", KINDS.names)
def test_order_on_disk_and_control(stage: str, quick_path: Path) -> None:
    def second_commit(file_system: FaultyFileSystem) -> list[tuple[str, Path]]:
        root = quick_path / str(len(list(quick_path.iterdir())))
        commit(Store(root, FaultyFileSystem()), contents(1))
        commit(Store(root, file_system), contents(2), run="second", stage=stage)
        return file_system.log

    log = second_commit(FaultyFileSystem())
    assert order_problems(log) == []
    kinds = [kind for kind, _ in log]
    assert kinds.index("rename") < kinds.index("link")
    syncs = [number for number, kind in enumerate(kinds, start=1) if kind.startswith("sync")]
    unnoticed = [
        number for number in syncs if not order_problems(second_commit(ForgetfulFileSystem(number)))
    ]
    # The last one only makes the removal of the staging folder's lock file durable.
    assert unnoticed == [len(kinds)] == syncs[-1:]
    assert len(syncs) >= 12


def test_failed_sync_is_never_tried_again(quick_path: Path) -> None:
    clean = FaultyFileSystem()
    commit(Store(quick_path / "clean", clean), contents(1))
    renamed = [kind for kind, _ in clean.log].index("rename")
    for position, (kind, _) in enumerate(clean.log[: renamed + 2], start=1):
        if not kind.startswith("sync"):
            continue
        faulty = FaultyFileSystem(position, "I/O error")
        store = Store(quick_path / str(position), faulty)
        with pytest.raises(StorageError, match="input/output error"):
            commit(store, contents(1))
        failed = faulty.log[position - 1]
        tries = [entry for entry in faulty.log[position:] if entry == failed]
        # Removing the lock file of a failed staging folder syncs its folder for its own sake.
        assert tries == [] or failed[1].name == "locks"
        assert store.references() == []


class LoggingFileSystem(FileSystem):
    """The real one, with a log; it only pretends operations of the kind ``pretended``."""

    def __init__(self, pretended: str = "") -> None:
        self.pretended = pretended
        self.log: list[tuple[str, Path]] = []

    def _operation(self, kind: str, path: Path, action: Callable[[], object]) -> None:
        self.log.append((kind, path))
        if kind != self.pretended:
            action()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to ask")
@pytest.mark.parametrize("pretended", ["", "sync file", "sync folder"])  # the last two: controls
def test_what_the_log_says_is_synced_is_given_to_fsync(
    pretended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    file_system = LoggingFileSystem(pretended)
    commit(Store(tmp_path.resolve() / "store", file_system), contents(1))
    logged = [path for kind, path in file_system.log if kind.startswith("sync")]
    assert len(logged) >= 12
    assert (synced == logged) == (not pretended)


@pytest.mark.parametrize("kind", ["rename", "link"])
def test_a_retry_syncs_what_a_crash_left_unsynced(kind: str, quick_path: Path) -> None:
    clean = FaultyFileSystem()
    commit(Store(quick_path / "clean", clean), contents(1))
    position = 1 + [name for name, _ in clean.log].index(kind)
    crashed, retried = FaultyFileSystem(position, "torn write"), FaultyFileSystem()
    root = quick_path / "store"
    with pytest.raises(Crash):
        commit(Store(root, crashed), contents(1))
    done = crashed.log[-1]
    assert done[0] == kind
    assert done[1].exists()
    commit(Store(root, retried), contents(1))
    assert order_problems([*crashed.log, *retried.log]) == []
    # Control: without that sync it is noticed.
    forgotten = [entry for entry in retried.log if entry != ("sync folder", done[1].parent)]
    assert any(kind in problem for problem in order_problems([*crashed.log, *forgotten]))


def test_what_is_staged_is_read_again_before_it_gets_its_place(quick_path: Path) -> None:
    store = Store(quick_path / "store")
    with store.stage() as staging:
        staging.write("weights.bin", b"right")
        (staging.folder / "weights.bin").write_bytes(b"wrong")
        with pytest.raises(DamagedArtifactError, match=r"weights\.bin"):
            commit(store, contents(1) | {"weights.bin": b"right"}, staging=staging)
    assert store.references() == []
    assert list(store.root.glob("versions/*")) == []


def test_nothing_takes_the_place_of_what_is_there(tmp_path: Path) -> None:
    file_system = FileSystem()
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()  # empty: the kernel itself would put another folder in its place
    with pytest.raises(StorageError, match="exists"):
        file_system.rename_folder(source, target)
    assert source.is_dir()
    file, outside = tmp_path / "file", tmp_path / "outside"
    file.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(outside)
    for path in (file, tmp_path / "link"):
        with pytest.raises(StorageError, match="exists"):
            file_system.write_file(path, b"other")
    assert file.read_bytes() == b"precious"
    assert not outside.exists()


def test_full_disk_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", FaultyFileSystem(1, "full disk"))
    with pytest.raises(StorageError, match="no space left") as caught:
        commit(store, contents(1))
    assert caught.value.exit_code == 7
    assert "MiB are free" in str(caught.value.hint)

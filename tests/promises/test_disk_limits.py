"""A disk that refuses costs nothing already saved, and what will not fit is told before it begins.

The limits are real: the operating system refuses a child process larger files.
"""

import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from campaigns import count
from children import ForkServer
from faults import leftovers, memory_folder
from stops import Sender, empty_or_derived, undisturbed
from tiny import LOOPS, TinyPlace

from d2nas.errors import StorageError
from pipeline.running import runner
from pipeline.store import Store

STOP = 5


def largest_file(place: TinyPlace, loop: str) -> int:
    """The size of the largest file that a training writes: its checkpoint."""
    newest = place.latest(f"{loop}-state")
    assert newest is not None
    return max(entry.size for entry in newest.manifest.files.values())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_limit_of_the_operating_system_leaves_what_was_saved_and_the_run_continues(
    fork_server: ForkServer, derived_folder: Path, tmp_path: Path, loop: str
) -> None:
    rounds = count(5, 50)
    for number in range(rounds):
        with memory_folder(tmp_path) as folder:
            place = empty_or_derived(loop, derived_folder, folder)
            code, talk = fork_server.run(place.command(loop), signals=[(STOP, signal.SIGTERM)])
            assert code == 143, talk
            before = place.content()
            limit = 1 + number * (largest_file(place, loop) - 1) // max(1, rounds - 1)
            code, talk = fork_server.run(
                place.command(loop), checkpoint_seconds=0, file_limit=limit - 1
            )
            assert code == StorageError.exit_code, (limit, talk)
            assert "file too large" in talk, (limit, talk)
            assert "hint: " in talk, (limit, talk)
            store = Store(place.store)
            assert store.verify().damaged == [], limit
            after = place.content()
            assert {name: after.get(name) for name in before} == before, limit
            assert leftovers(store) == [], limit
            code, talk = fork_server.run(place.command(loop))
            assert code == 0, (limit, talk)
            assert f"continues at step {STOP} " in talk, (limit, talk)
            version = place.latest(loop)
            assert version is not None
            assert version.id == undisturbed(derived_folder)[loop][0], limit


def test_control_a_file_saved_in_place_is_lost_at_the_limit(tmp_path: Path) -> None:
    """What the limits do to a writer that puts the new in the place of the old."""
    target = tmp_path / "state.safetensors"
    target.write_bytes(b"good" * 5_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            target.write_bytes(b"next" * 5_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"next" * 2_500


# --- free space, before a long stage ------------------------------------------------------------


def with_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Pretend that so many bytes are free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=num_bytes))


def planned(place: TinyPlace, loop: str, capfd: pytest.CaptureFixture[str]) -> int:
    """The bytes that ``--plan`` says the loop will take."""
    plan = place.json(capfd, "run", str(place.preset), "--plan", "--set", "run.seed=9")
    return int(next(row["disk_bytes"] for row in plan["stages"] if row["stage"] == loop))


@pytest.mark.parametrize("loop", LOOPS)
def test_too_little_free_space_is_told_before_the_first_step(
    derived_folder: Path,
    quick_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    loop: str,
) -> None:
    place = empty_or_derived(loop, derived_folder, quick_path)
    before = place.content()
    sender = Sender("in the middle of the step", 0, signal.SIGTERM)
    sender.install(monkeypatch)
    with monkeypatch.context() as full:
        with_free(full, 20_000)
        assert place.run(*place.words(loop)) == StorageError.exit_code
    told = capfd.readouterr().err
    assert f"error: {loop} will write 0." in told
    assert f"MiB to {place.store}, 0.0 MiB are free" in told
    assert "hint: free some" in told
    assert sender.sent == 0
    assert place.content() == before
    assert leftovers(Store(place.store)) == []
    # Control: with room the step is reached, where this process gets its signal.
    assert place.run(*place.words(loop)) == 143
    assert sender.sent == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_the_estimate_is_what_is_written_and_plan_says_the_same(
    derived_folder: Path,
    quick_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    loop: str,
) -> None:
    place = empty_or_derived(loop, derived_folder, quick_path)
    before = sum(map(len, place.content().values())) if place.store.exists() else 0
    sizes = [before]
    retain = Store.retain_states
    asked: list[int] = []
    require = Store.require_space

    def measured(store: Store, *arguments: object, **options: object) -> object:
        sizes.append(sum(map(len, place.content().values())))
        return retain(store, *arguments, **options)  # type: ignore[arg-type]

    def recorded(store: Store, num_bytes: int, *, what: str) -> None:
        asked.append(num_bytes)
        require(store, num_bytes, what=what)

    monkeypatch.setattr(Store, "retain_states", measured)
    monkeypatch.setattr(Store, "require_space", recorded)
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    assert place.run(*place.words(loop)) == 0
    sizes.append(sum(map(len, place.content().values())))
    written = max(sizes) - before
    (estimate,) = asked
    # Manifests, metrics, curves and names are left out: they are small, but so is this network.
    assert 0.5 * written < estimate < 1.5 * written
    if loop == "search":
        assert planned(place, loop, capfd) == pytest.approx(estimate, rel=0.02)


def test_a_run_that_continues_needs_room_for_one_checkpoint_only(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = TinyPlace(quick_path)
    with monkeypatch.context() as once:
        Sender("in the middle of the step", STOP, signal.SIGTERM).install(once)
        assert place.run(*place.words("search")) == 143
    state, network = largest_file(place, "search"), 60_000
    with_free(monkeypatch, state + network)
    assert place.run(*place.words("search"), "--set", "run.seed=1") == StorageError.exit_code
    assert place.run(*place.words("search")) == 0

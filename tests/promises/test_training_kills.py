"""SIGKILL at random moments of a training: nothing saved is lost, and the end is the same.

The processes are real; when they die is random, by a seed that a failure shows.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from campaigns import count
from children import ForkServer
from faults import leftovers, memory_folder
from tiny import LOOPS, STEPS_PER_EPOCH, TinyPlace

from pipeline.store import Store

SEED = 20_000
HOLD_AFTER = 6
HANG_SECONDS = 120


def references(place: TinyPlace, loop: str) -> int:
    """How many checkpoints the loop has made, by the number of the newest one."""
    folder = place.store / "runs" / "tiny" / f"{loop}-state"
    numbers = [int(path.stem[1:]) for path in folder.glob("v*.json")]
    return max(numbers, default=0)


def start_and_kill(
    fork_server: ForkServer, place: TinyPlace, loop: str, command: list[str], draw: random.Random
) -> tuple[int, str]:
    """Kill a training one to three checkpoints after it began, somewhere in a step or a save."""
    wanted = references(place, loop) + draw.randint(1, 3)
    # It cannot run away from a parent that is slow to kill it.
    pid = fork_server.start(command, checkpoint_seconds=0, hold_after=HOLD_AFTER)
    deadline = time.monotonic() + HANG_SECONDS
    while references(place, loop) < wanted:
        assert time.monotonic() < deadline, "the training does not go on"
        time.sleep(0.001)
    time.sleep(draw.random() * 0.03)
    os.kill(pid, signal.SIGKILL)
    return fork_server.wait(pid)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_training_killed_again_and_again_ends_as_if_it_had_not_been(
    fork_server: ForkServer, derived_folder: Path, tmp_path: Path, loop: str
) -> None:
    rounds = count(5, 50)
    setting = f"{loop}.epochs={(rounds + 1) * HOLD_AFTER // STEPS_PER_EPOCH}"
    draw = random.Random(SEED + len(loop))
    with memory_folder(tmp_path) as folder:
        whole = TinyPlace(derived_folder).copy(folder)
        code, talk = fork_server.run(whole.command(loop, "--set", setting))
        assert code == 0, talk
        wanted = whole.latest(loop)
    with memory_folder(tmp_path) as folder:
        place = TinyPlace(derived_folder).copy(folder)
        store, command = Store(place.store), place.command(loop, "--set", setting)
        for number in range(rounds):
            newest = (place.checkpoints(loop) or [0])[-1]
            code, talk = start_and_kill(fork_server, place, loop, command, draw)
            where = f"kill {number}, seed {SEED + len(loop)}"
            assert code == -signal.SIGKILL, (where, talk)
            assert newest == 0 or f"continues at step {newest} " in talk, (where, talk)
            assert store.verify().damaged == [], where
            assert place.checkpoints(loop)[-1] > newest, where
        newest = place.checkpoints(loop)[-1]
        code, talk = fork_server.run(command)
        assert code == 0, talk
        assert f"continues at step {newest} " in talk
        got = place.latest(loop)
        assert got is not None
        assert wanted is not None
        assert got.id == wanted.id
        store.collect_garbage()
        assert leftovers(store) == []
        assert store.verify().damaged == []


def test_control_a_training_without_checkpoints_starts_over_after_a_kill(
    fork_server: ForkServer, tiny: TinyPlace
) -> None:
    """What the test above would see if a kill cost what was saved."""
    kill = [(5, signal.SIGKILL)]
    code, _ = fork_server.run(tiny.command("retrain"), checkpoint_seconds=1e9, signals=kill)
    assert code == -signal.SIGKILL
    assert tiny.checkpoints("retrain") == []
    code, talk = fork_server.run(tiny.command("retrain"))
    assert code == 0, talk
    assert "continues at step" not in talk

"""``--nproc``: the whole command on two processes; what ends one ends all, and nothing is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import ForkServer
from toy import Place

from d2nas import parallel
from d2nas.errors import ConfigError, LostRankError, StoppedError
from d2nas.parallel import Ranks
from pipeline.cli import run
from pipeline.running import launch as launch_module
from pipeline.running.events import ROWS_FILE
from pipeline.running.launch import LAST_WORDS, exit_without_message, launch
from pipeline.running.runner import agree
from pipeline.running.signals import StopFlag
from pipeline.store import Store

LONG = ("--set", "retrain.epochs=2000", "--set", "retrain.warmup_epochs=0")
SHORT = ("--set", "retrain.epochs=1", "--set", "retrain.warmup_epochs=0")

FEW = """
[data]
name = "digits"
train_images = 64
crop_padding = 1
flip = false

[search]
num_cells = 3
init_channels = 4
epochs = 2
batch_size = 16
draws = 1

[retrain]
num_cells = 2
init_channels = 4
auxiliary = false
epochs = 3
warmup_epochs = 1
batch_size = 32
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place for few images and small networks: of several processes starting takes longest."""
    return Place(tmp_path, preset=FEW)


def start(fork_server: ForkServer, place: Place, *arguments: str, checkpoint_seconds: float) -> int:
    """Start a retraining on two processes; returns the process id of what launched them."""
    words = place.arguments("retrain", str(place.preset), "--genotype", "DARTS_V2", *arguments)
    return fork_server.start(
        [*words, "--nproc", "2"], checkpoint_seconds=checkpoint_seconds, forked_ranks=True
    )


def wait_for(condition: Callable[[], object], fork_server: ForkServer, pid: int) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state != "Z", fork_server.wait(pid)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(pid: int) -> list[int]:
    """The process ids of the ranks, rank 0 first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(int(pid) for pid in children)


def has_finished_an_epoch(place: Place) -> bool:
    rows = place.store / "events" / "toy-darts-v2" / "retrain" / ROWS_FILE
    return rows.is_file() and rows.stat().st_size > 0


def test_two_processes_make_one_version(
    fork_server: ForkServer, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """In interpreters of their own."""
    words = (str(place.preset), "--genotype", "DARTS_V2", *SHORT, "--nproc", "2")
    shown = place.json(capfd, "retrain", *words)
    assert shown["versions"]["retrain"] == "toy-darts-v2/retrain@v1"
    assert shown["facts"]["processes"] == 2
    report = Store(place.store).verify([])
    assert not report.damaged
    assert not list((place.store / "staging").iterdir())
    # Nothing to do the second time, on two processes or one.
    again = place.arguments("retrain", *words, "--json")
    code, talk = fork_server.run(again, forked_ranks=True)
    assert code == 0, talk
    assert json.loads(talk[talk.index("\n{\n") :])["executed"] == []
    assert place.json(capfd, "retrain", *words[:-2])["executed"] == []


def test_a_search_on_two_processes(
    fork_server: ForkServer, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("search", str(place.preset), "--set", "search.epochs=1")
    code, talk = fork_server.run(place.arguments(*words, "--nproc", "2"), forked_ranks=True)
    assert code == 0, talk
    shown = place.json(capfd, *words)
    assert shown["executed"] == []
    assert shown["facts"]["processes"] == 2
    assert place.run("derive", "toy") == 0


def test_the_same_command_under_torchrun_on_two_machines(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two agents, one process each, as on two machines that share the store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = place.arguments("retrain", str(place.preset), "--genotype", "DARTS_V2", *SHORT)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2")
    address = ("--master-addr", "127.0.0.1", "--master-port", str(port))
    one = ("--nproc-per-node", "1", "-m", "d2nas")
    agents = [
        subprocess.Popen(
            [*torchrun, "--node-rank", node, *address, *one, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for node in ("0", "1")
    ]
    talk = [agent.communicate(timeout=180)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], talk
    assert "retrain: done in" in talk[0]
    assert not [line for line in talk[0].splitlines() + talk[1].splitlines() if "Warning" in line]
    assert "retrain:" not in talk[1]
    shown = place.json(capfd, "retrain", str(place.preset), "--genotype", "DARTS_V2", *SHORT)
    assert shown["executed"] == []
    assert shown["facts"]["processes"] == 2


def test_a_killed_rank_ends_the_run_and_it_resumes_with_another_number_of_processes(
    fork_server: ForkServer, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    pid = start(fork_server, place, *LONG, checkpoint_seconds=0.5)
    states = place.store / "runs" / "toy-darts-v2" / "retrain-state"
    wait_for(lambda: states.is_dir() and any(states.iterdir()), fork_server, pid)
    began = time.monotonic()
    os.kill(ranks_of(pid)[1], signal.SIGKILL)
    code, talk = fork_server.wait(pid)
    assert code == LostRankError.exit_code, talk
    assert time.monotonic() - began < 30
    assert "was killed by SIGKILL" in talk
    assert talk.count("error: ") == talk.count("hint: ") == 1, talk
    assert "Traceback" not in talk
    rows = place.json(capfd, "ls")
    saved = [row["facts"]["step"] for row in rows if row["kind"] == "state"]
    assert saved
    words = ("retrain", str(place.preset), "--genotype", "DARTS_V2", *LONG)
    code, talk = fork_server.run(place.arguments(*words), signals=[(2, signal.SIGTERM)])
    assert code == 143, talk
    rows = place.json(capfd, "ls")
    continued = [row["facts"]["step"] for row in rows if row["kind"] == "state"]
    assert max(continued) == max(saved) + 2


def test_a_signal_stops_all_ranks_at_the_same_step_with_one_checkpoint(
    fork_server: ForkServer, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    pid = start(fork_server, place, *LONG, checkpoint_seconds=1e9)
    wait_for(lambda: has_finished_an_epoch(place), fork_server, pid)
    os.kill(pid, signal.SIGTERM)
    code, talk = fork_server.wait(pid)
    assert code == 143, talk
    assert talk.count("error: ") == 1, talk
    assert "saved as toy-darts-v2/retrain-state@v" in talk
    rows = place.json(capfd, "ls")
    assert len([row for row in rows if row["kind"] == "state"]) == 1
    words = ("retrain", str(place.preset), "--genotype", "DARTS_V2", *LONG)
    code, talk = fork_server.run(place.arguments(*words), signals=[(1, signal.SIGTERM)])
    assert code == 143, talk


class Meeting:
    """Ranks whose meetings last long: what happens in one comes after its numbers were given."""

    def __init__(self, *meetings: Callable[[], int]) -> None:
        self.meetings = list(meetings)

    def largest(self, what: str, number: int, due: int) -> list[int]:
        return [max(number, self.meetings.pop(0)()), due]


def test_a_signal_that_comes_while_ranks_agree_is_not_lost() -> None:
    with StopFlag().installed() as stop:
        ranks: Any = Meeting(lambda: signal.raise_signal(signal.SIGTERM) or 0, lambda: 0)
        assert agree(ranks, stop, "step 1", due=True) == (False, True)
        assert agree(ranks, stop, "step 1", due=False) == (True, False)
    assert stop.signal_number == signal.SIGTERM


def test_a_ranks_own_signal_after_anothers_is_no_second_one() -> None:
    with StopFlag().installed() as stop:
        ranks: Any = Meeting(lambda: signal.SIGTERM)
        assert agree(ranks, stop, "step 1", due=False) == (True, False)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedError):  # control: the second of its own
            signal.raise_signal(signal.SIGTERM)


def test_a_rank_that_a_signal_meets_at_its_end_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has saved and told; the signal's default has ended the other."""
    real = subprocess.Popen
    scripts = {
        "0": "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); print(flush=True)",
        "1": "print(flush=True)",
    }

    def fake(command: list[str], *, env: dict[str, str], **options: object) -> object:
        script = scripts[env["RANK"]] + "; import time; time.sleep(600)"
        child = real([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert launch(2, ["retrain"]) == 143


def test_a_signal_before_training_is_no_lost_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks end by the signal's default: there is nothing to save yet."""
    real = subprocess.Popen

    def fake(command: list[str], *, env: dict[str, str], **options: object) -> object:
        return real([sys.executable, "-c", "import time; time.sleep(600)"], env=env, **options)

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(StoppedError) as caught:
        launch(2, ["retrain"])
    assert caught.value.shell_code == 143


def test_a_rank_that_waits_for_the_others_ends_at_a_signal(
    fork_server: ForkServer, place: Place
) -> None:
    words = place.arguments("retrain", str(place.preset), "--genotype", "DARTS_V2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    place_of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pid = fork_server.start(words, environment=alone | place_of_all)

    def listens() -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", int(port))) == 0

    wait_for(listens, fork_server, pid)
    os.kill(pid, signal.SIGTERM)
    code, talk = fork_server.wait(pid)
    assert code == -signal.SIGTERM, talk


def test_an_error_is_told_once_with_its_code(fork_server: ForkServer, place: Place) -> None:
    words = ("retrain", str(place.preset), "--genotype", "DARTS_V2", "--nproc", "2")
    odd = place.arguments(*words, "--set", "retrain.batch_size=7")
    code, talk = fork_server.run(odd, forked_ranks=True)
    assert code == 2, talk
    assert talk.count("error: 7 images of a batch cannot be shared equally by 2") == 1


def test_other_commands_do_not_run_in_several_processes(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place.run("run", str(place.preset)) == 2
    assert "only d2nas search and d2nas retrain" in capfd.readouterr().err


@pytest.mark.parametrize("command", [["search"], ["retrain", "--genotype", "DARTS_V2"]])
def test_each_process_gets_the_same_words_and_launches_none(
    place: Place, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    launched: list[tuple[int, list[str]]] = []
    ran: list[bool] = []
    monkeypatch.setattr(launch_module, "launch", lambda *given: launched.append(given) or 3)
    monkeypatch.setattr(
        "pipeline.commands.execution.with_runner", lambda *_, parallel: ran.append(parallel)
    )
    monkeypatch.setattr("pipeline.commands.execution.show_stage", lambda *_, **__: None)
    words = [*place.arguments(*command, "--nproc", "4", "--nproc=2"), "--", "cifar10"]
    assert run(words) == 3
    assert (launched, ran) == ([(2, words)], [])
    monkeypatch.setenv("WORLD_SIZE", "2")  # as the launcher and torchrun set it
    assert run(words) == 0
    assert (launched, ran) == ([(2, words)], [True])


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((0, 0), 0), ((5, 5), 5), ((9, 2), 2), ((2, 9), 2), ((143, 143), 143), ((9, 0), 9)],
)
def test_the_code_is_that_of_who_failed_first_on_its_own(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int], expected: int
) -> None:
    real = subprocess.Popen

    def fake(command: list[str], *, env: dict[str, str], **options: object) -> object:
        code = codes[int(env["RANK"])]
        return real([sys.executable, "-c", f"raise SystemExit({code})"], env=env, **options)

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    assert launch(2, ["retrain"]) == expected


LOST = """
import os, sys
from d2nas.errors import LostRankError
from pipeline.running.launch import exit_without_message
if os.environ["RANK"] != "0":
    sys.stderr.write("error: this rank's own\\n")
    raise SystemExit(int(sys.argv[1]))
exit_without_message(LostRankError("another is gone", hint="again"))
"""


@pytest.mark.parametrize("other", [2, 9])
def test_of_a_rank_that_is_gone_one_thing_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], other: int
) -> None:
    """Where another rank failed for a reason of its own that is told, else that they lost it."""
    real = subprocess.Popen

    def fake(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", LOST, str(other)], **options)

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    code = run(["retrain", "cifar10", "--nproc", "2"])
    talk = capfd.readouterr().err
    assert code == other
    assert talk.count("error: ") == 1, talk
    assert ("this rank's own" in talk) == (other == 2)
    assert ("another is gone" in talk) == (other == 9)


WAITS = """
import os, sys
from pipeline.running.launch import OWN_STDERR, say_at_once
if sys.argv[1] == "kept":
    os.environ.pop(OWN_STDERR, None)
if os.environ["RANK"] != "0":
    say_at_once("rank 1 has waited")
"""


@pytest.mark.parametrize("told", ["told", "kept"])
def test_what_a_waiting_rank_says_is_shown_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], told: str
) -> None:
    """Without the launcher's stderr (the control) it stays in a file that nobody reads."""
    real = subprocess.Popen

    def fake(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", WAITS, told], **options)

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    assert launch(2, ["retrain"]) == 0
    assert capfd.readouterr().err.count("rank 1 has waited\n") == (told == "told")


def test_a_run_that_is_in_use_ends_all_ranks_with_one_error(
    fork_server: ForkServer, place: Place
) -> None:
    words = ("retrain", str(place.preset), "--genotype", "DARTS_V2", *SHORT, "--nproc", "2")
    with Store(place.store).lock_run("toy-darts-v2"):
        code, talk = fork_server.run(place.arguments(*words), forked_ranks=True)
    assert code == 8, talk
    assert talk.count("error: ") == 1, talk
    assert "is gone" not in talk


def test_without_a_launcher_the_rank_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAST_WORDS, raising=False)
    exit_without_message(LostRankError("another is gone"))  # returns, and the command tells it


def test_a_rank_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(launch_module, "KILL_SECONDS", 0.5)
    real = subprocess.Popen
    made = []

    def fake(command: list[str], *, env: dict[str, str], **options: object) -> object:
        script = "raise SystemExit(6)" if env["RANK"] == "0" else (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        )  # fmt: skip
        made.append(real([sys.executable, "-c", script], env=env, **options))
        return made[-1]

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    assert launch(2, ["retrain"]) == 6
    assert all(child.poll() is not None for child in made)


TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")


def pretend_torchrun(
    monkeypatch: pytest.MonkeyPatch, restarts: tuple[object, object] | None
) -> None:
    """Set torchrun's variables for a number of restarts and of those allowed; None without it."""
    for name, value in zip(TORCHRUN, ("run", *(restarts or ("", ""))), strict=True):
        monkeypatch.delenv(name, raising=False)
        if restarts is not None:
            monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("restarts", "hint"),
    [
        (None, "the same command continues from the last checkpoint, if one was made"),
        ((0, 3), "torchrun now starts all processes again (1 of 3)"),
        ((2, 3), "torchrun now starts all processes again (3 of 3)"),
        ((3, 3), "torchrun --max-restarts 3 ... gives it by itself"),
        ((0, 0), "torchrun --max-restarts 3 ... gives it by itself"),
        (("x", ""), "torchrun --max-restarts 3 ... gives it by itself"),
    ],
)
def test_who_lost_a_process_is_told_what_helps(
    restarts: tuple[object, object] | None, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_torchrun(monkeypatch, restarts)

    def lose(*_: object, **__: object) -> None:
        raise RuntimeError("[/src/gloo/pair.cc:1] Connection closed by peer")

    monkeypatch.setattr(parallel.distributed, "all_reduce", lose)
    with pytest.raises(LostRankError) as caught:
        Ranks(0, 2).mean(torch.ones(1))
    assert hint in str(caught.value.hint)
    monkeypatch.setattr(parallel.distributed, "init_process_group", lose)
    with pytest.raises(LostRankError) as caught, parallel.connected(Ranks(0, 2)):
        pass
    # Only who gives the address by hand can give another one.
    assert ("MASTER_ADDR" in str(caught.value.hint)) == (restarts is None)
    assert (hint in str(caught.value.hint)) == (restarts is not None)


@pytest.mark.parametrize(
    ("restarts", "hint"), [(None, "MASTER_PORT must name a free port"), ((0, 0), "--master-port")]
)
def test_a_port_that_is_taken_is_told_with_who_chose_it(
    restarts: tuple[object, object] | None, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_torchrun(monkeypatch, restarts)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("EADDRINUSE")

    monkeypatch.setattr(parallel.distributed, "init_process_group", refuse)
    with pytest.raises(ConfigError) as caught, parallel.connected(Ranks(0, 2)):
        pass
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("restarts", [None, (0, 3)])
def test_under_torchrun_a_lost_process_is_the_reason_and_the_signal_that_follows_is_not(
    restarts: tuple[object, object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sends SIGTERM to all when one has failed; without it (the control) a signal to a
    whole group may reach another rank first.
    """
    pretend_torchrun(monkeypatch, restarts)
    stop = StopFlag()
    # The signal comes in the first moment of the wait, if there is one.
    monkeypatch.setattr(
        "pipeline.running.signals.time.sleep", lambda _: setattr(stop, "signal_number", 15)
    )
    monkeypatch.setattr("pipeline.running.signals.GRACE_SECONDS", 60.0)
    assert stop.explains(LostRankError("gone"), wait=True) == (restarts is None)
    stop.signal_number = None
    assert stop.explains(RuntimeError("a compiler ended"), wait=True)


FAILS_ONCE = """
import os, sys
from d2nas.torchrun import after_a_loss
with open(sys.argv[1], "a") as file:
    file.write(after_a_loss() + "\\n")
raise SystemExit(9 if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else 0)
"""


def test_a_real_torchrun_does_what_the_hint_says(tmp_path: Path) -> None:
    (tmp_path / "fails_once.py").write_text(FAILS_ONCE)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1")
    done = subprocess.run(
        [*torchrun, str(tmp_path / "fails_once.py"), str(tmp_path / "said")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "said").read_text().splitlines()
    assert first.startswith("torchrun now starts all processes again (1 of 1)")
    assert second.startswith("the same command continues")


def test_ranks_start_where_no_temporary_folder_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no files in memory")
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    with pytest.raises(OSError, match="nowhere"), tempfile.TemporaryFile():  # the control
        pass
    real = subprocess.Popen

    def fake(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", LOST, "9"], **options)

    monkeypatch.setattr(launch_module.subprocess, "Popen", fake)
    with pytest.raises(LostRankError, match="another is gone"):  # in rank 0's own words
        launch(2, ["retrain"])


def test_nproc_must_be_a_number(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["retrain", "toy", "--nproc", "0"]) == 2


# What lies in the working folder


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules of the user's that have our names, and those of libraries."""
    for name in ("d2nas", "pipeline", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_modules_in_the_working_folder_are_not_taken_for_ours(
    strangers: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(2, ["--version"]) == 0
    assert capfd.readouterr().out.startswith("d2nas ")


def test_control_python_alone_takes_them(strangers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(*words: str) -> list[str]:
        return [sys.executable, "-m", "d2nas", *words]

    monkeypatch.setattr(launch_module, "own_command", plain)
    assert launch(2, ["--version"]) == 77

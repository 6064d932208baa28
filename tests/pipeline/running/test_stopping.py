"""A training stopped by a signal, anywhere: one checkpoint, and the rest as if nothing had been.

The signals are real and come through the real handler, in this process; some in others.
"""

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from campaigns import count
from children import HELPERS, ForkServer
from faults import leftovers, memory_folder
from stops import Sender, assert_as_undisturbed, empty_or_derived, undisturbed
from tiny import LOOPS, TinyPlace, traced

from d2nas.errors import (
    ConfigError,
    DamagedArtifactError,
    LostRankError,
    NonFiniteError,
    OutOfMemoryError,
    StoppedError,
    StorageError,
)
from d2nas.train.loop import Loop
from d2nas.train.retrain import Retraining
from d2nas.train.state import Trained
from pipeline.gate import judge, timing
from pipeline.onnx_io import model_file
from pipeline.running import runner
from pipeline.running.runner import Runner
from pipeline.running.signals import StopFlag, signals_handled
from pipeline.store import FileSystem, Store

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}

# Where the signal comes, in which step, and the step at which the run then continues.
POINTS = [
    ("while the images are read", 0, 1),
    *(("in the middle of the step", step, step + 1) for step in (0, 1, 2, 3, 4, 6, 9, 10)),
    *(("in the evaluation of the epoch", step, step + 1) for step in (2, 5, 8)),
    *(("right before the checkpoint", step, step + 1) for step in (1, 5, 7)),
    *(("in the middle of the checkpoint", step, step + 1) for step in (2, 6, 9)),
    *(("right after the checkpoint", step, step + 1) for step in (3, 8)),
]


@pytest.mark.parametrize("number", range(len(POINTS)), ids=[f"{w}, {s}" for w, s, _ in POINTS])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_anywhere_leaves_one_checkpoint_and_ends_as_if_it_had_not_been(
    loop: str,
    number: int,
    derived_folder: Path,
    quick_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where, step, resumed = POINTS[number]
    number = SIGNALS[number % 3]
    place = empty_or_derived(loop, derived_folder, quick_path)
    undisturbed(derived_folder)
    trace = traced(monkeypatch)
    regular = "checkpoint" in where
    # Checkpoints after every step where one of them is the point, else only the stop's.
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0 if regular else 1e9)
    sender = Sender(where, step, number)
    sender.install(monkeypatch)
    assert place.run(*place.words(loop)) == CODES[number]
    assert sender.sent == 1
    kept = place.checkpoints(loop)
    assert kept == ([resumed - 1, resumed][-min(resumed, 2) :] if regular else [resumed])
    assert max(trace.states) == resumed
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 1e9)
    assert place.run(*place.words(loop)) == 0
    assert_as_undisturbed(place, loop, trace, derived_folder)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_stopped_ten_times_in_a_row_ends_as_if_it_had_not_been(
    loop: str, derived_folder: Path, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = empty_or_derived(loop, derived_folder, quick_path)
    undisturbed(derived_folder)
    trace = traced(monkeypatch)
    for step in range(10):
        with pytest.MonkeyPatch.context() as once:
            Sender("in the middle of the step", step, SIGNALS[step % 3]).install(once)
            assert place.run(*place.words(loop)) == CODES[SIGNALS[step % 3]]
        assert place.checkpoints(loop)[-1] == step + 1
    assert place.run(*place.words(loop)) == 0
    assert_as_undisturbed(place, loop, trace, derived_folder)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("forgotten", ["momentum_buffer", "running_mean"])
def test_control_a_checkpoint_that_forgets_something_is_noticed(
    loop: str,
    forgotten: str,
    derived_folder: Path,
    quick_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = empty_or_derived(loop, derived_folder, quick_path)
    version_id, _ = undisturbed(derived_folder)[loop]
    copies = Trained.copies
    monkeypatch.setattr(
        Trained,
        "copies",
        lambda trained: {
            name: value.zero_() if name.endswith(forgotten) else value
            for name, value in copies(trained).items()
        },
    )
    with pytest.MonkeyPatch.context() as once:
        Sender("in the middle of the step", 6, signal.SIGTERM).install(once)
        assert place.run(*place.words(loop)) == 143
    assert place.run(*place.words(loop)) == 0
    version = place.latest(loop)
    assert version is not None
    assert version.id != version_id


def test_a_hang_up_that_is_ignored_stays_so(tiny: TinyPlace, monkeypatch) -> None:
    """As under ``nohup``; the control is the same signal where it is not ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sender = Sender("in the middle of the step", 5, signal.SIGHUP)
        with monkeypatch.context() as once:
            sender.install(once)
            assert tiny.run("retrain", "tiny") == 0
        assert sender.sent == 1
        assert tiny.checkpoints("retrain") == []
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        Sender("in the middle of the step", 5, signal.SIGHUP).install(monkeypatch)
        assert tiny.run("retrain", "tiny", "--fresh") == 129
        assert tiny.checkpoints("retrain") == [6]
    finally:
        signal.signal(signal.SIGHUP, before)


# --- what fails after a stop was asked for ------------------------------------------------------

BY_A_STOP: list[tuple[Exception, int]] = [
    (ConfigError("torch.compile fails here: a subprocess ended"), 2),
    (OutOfMemoryError("a process that reads images ended: worker"), 6),
    (LostRankError("another process of this training is gone"), 9),
    (RuntimeError("Broken process pool"), 1),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 7),
    (EOFError(), 1),
]
FOR_ITS_OWN_REASON: list[tuple[Exception, int]] = [
    (StorageError("the disk is full"), 7),
    (NonFiniteError("the loss is not finite"), 5),
    (DamagedArtifactError("a file is damaged"), 4),
]


def fail_at(
    step: int, error: Exception, monkeypatch: pytest.MonkeyPatch, signal_it: Callable[[], object]
) -> None:
    """Let a retraining fail in a step, as it does when a process that it needs was ended."""
    real = Retraining.take_step

    def fail(loop: Retraining, number: int) -> None:
        if number == step:
            signal_it()
            try:
                raise RuntimeError("what another library says")
            except RuntimeError:
                raise error  # noqa: B904 - as from None and from an error alike
        real(loop, number)

    monkeypatch.setattr(Retraining, "take_step", fail)


@pytest.mark.parametrize(("error", "code"), BY_A_STOP, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_what_fails_because_of_a_stop_is_told_as_the_stop(
    error: Exception,
    code: int,
    when: str,
    tiny: TinyPlace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The signal comes before or after what it does to others; never is the control."""
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    # However late a busy machine starts the timer: the wait ends when the signal comes.
    monkeypatch.setattr("pipeline.running.signals.GRACE_SECONDS", 60.0 if when == "after" else 0.0)
    send = partial(os.kill, os.getpid(), signal.SIGTERM)
    late = threading.Timer(0.02, send)
    ways = {"before": send, "after": late.start, "never": lambda: None}
    fail_at(4, error, monkeypatch, ways[when])
    assert tiny.run("retrain", "tiny") == (code if when == "never" else 143)
    talk = capfd.readouterr().err
    assert talk.count("error: ") == 1
    assert ("stopped in retrain, tiny/retrain-state@v4, step 4," in talk) == (when != "never")
    monkeypatch.undo()
    assert tiny.run("retrain", "tiny") == 0
    assert "continues at step 4" in capfd.readouterr().err


def test_a_stop_before_the_first_checkpoint_promises_no_continuing(
    tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    send = partial(os.kill, os.getpid(), signal.SIGTERM)
    fail_at(4, RuntimeError("Broken process pool"), monkeypatch, send)
    assert tiny.run("retrain", "tiny") == 143
    talk = capfd.readouterr().err
    assert "no checkpoint was made" in talk
    assert "hint: the same command starts it again" in talk


@pytest.mark.parametrize(
    ("error", "code"), FOR_ITS_OWN_REASON, ids=lambda value: type(value).__name__
)
def test_what_a_stop_does_not_cause_is_told_after_one_too(
    error: Exception, code: int, tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(4, error, monkeypatch, partial(os.kill, os.getpid(), signal.SIGTERM))
    assert tiny.run("retrain", "tiny") == code


def test_a_stop_before_the_stages_is_told_as_one_too(
    tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a probe's process ended")

    monkeypatch.setattr(Runner, "data_digest", fail)
    assert tiny.run("retrain", "tiny") == 130
    assert "error: stopped (a probe's process ended)" in capfd.readouterr().err


# --- in processes of their own ------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_process_stops_with_the_signals_code_and_continues(
    fork_server: ForkServer,
    derived_folder: Path,
    quick_path: Path,
    loop: str,
    number: signal.Signals,
) -> None:
    place = empty_or_derived(loop, derived_folder, quick_path)
    code, talk = fork_server.run(place.command(loop), signals=[(5, number)])
    assert code == CODES[number], talk
    assert f"stopped at step 5, saved as tiny/{loop}-state@v1" in talk
    assert place.checkpoints(loop) == [5]
    code, talk = fork_server.run(place.command(loop))
    assert code == 0, talk
    version = place.latest(loop)
    assert version is not None
    assert version.id == undisturbed(derived_folder)[loop][0]


@pytest.mark.parametrize("number", SIGNALS)
def test_control_without_the_handler_a_signal_ends_the_process_and_nothing_is_saved(
    fork_server: ForkServer, tiny: TinyPlace, number: signal.Signals
) -> None:
    code, _ = fork_server.run(tiny.command("retrain"), signals=[(5, number)], handlers=False)
    assert code == -number
    assert tiny.checkpoints("retrain") == []


@pytest.mark.parametrize("helper", HELPERS)
def test_what_fails_as_the_groups_signal_ended_another_process_is_the_stop(
    helper: str, fork_server: ForkServer, tiny: TinyPlace
) -> None:
    options = {"helper": helper, "helper_at": 4, "checkpoint_seconds": 0}
    code, talk = fork_server.run(tiny.command("retrain"), **options)
    assert code == 143, talk
    assert "error: stopped in retrain, tiny/retrain-state@v4, step 4, is the last" in talk
    assert tiny.checkpoints("retrain")[-1] == 4
    # Control: where only the other process is ended, that is what is told.
    code, talk = fork_server.run(tiny.command("retrain"), **options, helper_alone=True)
    assert code not in (0, 143), talk
    assert "stopped" not in talk


def test_a_command_that_ended_may_be_the_first_sign_of_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever in what was raised it stands."""
    stop = StopFlag()
    monkeypatch.setattr("pipeline.running.signals.GRACE_SECONDS", 60.0)
    monkeypatch.setattr(
        "pipeline.running.signals.time.sleep", lambda _: setattr(stop, "signal_number", 15)
    )
    ended = ConfigError("it does not compile")
    for context in (subprocess.CalledProcessError(-15, "cc"), ValueError(), KeyError()):
        context.__context__, ended.__context__ = ended.__context__, context
    assert stop.explains(ended, wait=True)
    stop.signal_number = None
    # Control: where no other process can be the reason nobody waits.
    assert not stop.explains(ConfigError("a wrong setting"), wait=True)


def operations_of_a_checkpoint(place: TinyPlace, loop: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many changes to the disk a run makes from its first step to its first checkpoint."""
    counted: list[str] = []
    operation = FileSystem._operation
    with monkeypatch.context() as counting:
        counting.setattr(
            FileSystem,
            "_operation",
            lambda system, kind, path, action: (
                counted.append(kind),
                operation(system, kind, path, action),
            ),
        )
        Sender("in the middle of the step", 0, signal.SIGTERM).install(counting)
        begins = Loop.run
        counting.setattr(Loop, "run", lambda *a: (counted.clear(), begins(*a))[1])
        assert place.run(*place.words(loop)) == 143
    return len(counted)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_signal_while_saving_leaves_at_once_and_damages_nothing(
    loop: str,
    fork_server: ForkServer,
    derived_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with memory_folder(tmp_path) as folder:
        place = empty_or_derived(loop, derived_folder, folder)
        total = operations_of_a_checkpoint(place, loop, monkeypatch)
    assert total > 20
    rounds = count(5, 50)
    for index in range(rounds):
        number = SIGNALS[index % 3]
        with memory_folder(tmp_path) as folder:
            place = empty_or_derived(loop, derived_folder, folder)
            at = 1 + index * (total - 1) // max(1, rounds - 1)
            code, talk = fork_server.run(
                place.command(loop), checkpoint_seconds=0, twice_at=at, twice=number
            )
            assert code == CODES[number], (at, talk)
            assert "stopped at once by a second signal" in talk, at
            store = Store(place.store)
            assert store.verify().damaged == [], at
            assert place.checkpoints(loop) in ([], [1]), at
            store.collect_garbage()
            assert leftovers(store) == [], at
            code, talk = fork_server.run(place.command(loop))
            assert code == 0, (at, talk)
            version = place.latest(loop)
            assert version is not None
            assert version.id == undisturbed(derived_folder)[loop][0], at


def test_control_a_checkpoint_written_in_place_is_damaged_by_a_signal(tmp_path: Path) -> None:
    """What a second signal would do to a writer without staging and rename."""
    target = tmp_path / "state.safetensors"
    target.write_bytes(b"the last good one" * 1000)

    def leave(*_: object) -> None:
        raise StoppedError(signal.SIGTERM, "at once")

    def write_in_place() -> None:
        with target.open("wb") as file:
            file.write(b"half of the next")
            os.kill(os.getpid(), signal.SIGTERM)
            file.write(b" one")

    with signals_handled(leave), pytest.raises(StoppedError):
        write_in_place()
    assert target.read_bytes() == b"half of the next"


# --- export and validation ----------------------------------------------------------------------


def test_an_interrupt_during_export_ends_it_whole(
    exported: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = exported.content()
    with monkeypatch.context() as once:
        sender = Sender("in the export", 0, signal.SIGINT)
        sender.before(once, model_file, "check_model", "in the export")
        assert exported.run("export", "tiny", "--fresh") == 130
        assert sender.sent == 1
    assert "stopped after export, which is done" in capfd.readouterr().err
    assert exported.content() == before  # the same work: the same version, under the same name


def test_an_interrupt_during_validation_leaves_nothing_and_the_next_one_passes(
    exported: TinyPlace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = exported.content()
    places = {"check_parity": judge, "self_test": judge, "time_modes": timing}
    for where, module in places.items():
        with monkeypatch.context() as once:
            sender = Sender(where, 0, signal.SIGINT)
            sender.before(once, module, where, where)
            assert exported.run("validate", "tiny") == 130
            assert sender.sent == 1
        assert "stopped in validate, which starts over" in capfd.readouterr().err
        assert exported.content() == before
        assert leftovers(Store(exported.store)) == []
    assert exported.run("validate", "tiny") == 0

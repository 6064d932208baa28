"""What can be watched while a training runs: rows in a plain file, and TensorBoard's files."""

import json
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils import tensorboard
from toy import Place
from trackers import calls, metrics, stand_in

from d2nas.errors import StoppedError
from d2nas.genotype import Genotype
from pipeline.running import events
from pipeline.running.events import ROWS_FILE, Events
from pipeline.running.runner import _StageHooks
from pipeline.store import Store
from pipeline.tracking import tensorboard as sink
from pipeline.tracking.tensorboard import TensorBoard

STEPS_PER_EPOCH = 719 // 240
SETTINGS = ["epochs=3", "batch_size=240", "device=cpu", "space=S2", "init_channels=2"]
FAST = [word for setting in SETTINGS for word in ("--set", f"search.{setting}")]


def scalars(place: Place, stage: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a stage: (step, value) by name, in the order of writing."""
    reader = EventAccumulator(str(place.store / "events" / "toy" / stage))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def watched(place: Place, stage: str = "search") -> list[dict[str, Any]]:
    """The rows of the plain file."""
    content = (place.store / "events" / "toy" / stage / ROWS_FILE).read_text()
    return [json.loads(line) for line in content.splitlines()]


def rows_of(place: Place, stage: str) -> list[dict[str, Any]]:
    content = Store(place.store).open(f"toy/{stage}").read("metrics.jsonl")
    return [json.loads(line) for line in content.splitlines()]


def assert_shows(place: Place, stage: str) -> None:
    """Every number of every row, once, at its step."""
    rows, shown = rows_of(place, stage), scalars(place, stage)
    for row in rows:
        for name, value in row.items():
            found = {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
            if not isinstance(value, dict):
                found = {name: value}
            for tag, number in found.items():
                if isinstance(number, int | float) and tag != "step":
                    at_step = [v for step, v in shown[tag] if step == row["step"]]
                    assert at_step == [pytest.approx(number, rel=1e-6, abs=1e-7)], tag
    assert {len(points) for points in shown.values()} == {len(rows)}


def test_an_epochs_numbers_can_be_watched(place: Place) -> None:
    assert place.run("search", str(place.preset), *FAST) == 0
    assert_shows(place, "search")
    shown = scalars(place, "search")
    assert {"arch_loss", "weight_accuracy", "temperature", "op_entropy/normal"} <= shown.keys()
    assert [step for step, _ in shown["arch_loss"]] == [
        STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3)
    ]
    assert not any("genotype" in tag for tag in shown)


def test_the_genotype_can_be_watched_as_text(place: Place) -> None:
    assert place.run("search", str(place.preset), *FAST) == 0
    reader = EventAccumulator(str(place.store / "events" / "toy" / "search"))
    reader.Reload()
    for cell in ("normal", "reduce"):
        shown = reader.Tensors(f"genotype/{cell}/text_summary")
        assert [event.step for event in shown] == [STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3)]
        last = Genotype.from_dict(rows_of(place, "search")[-1]["genotype"])
        assert shown[-1].tensor_proto.string_val[0].decode() == last.describe(cell)


def test_a_run_has_a_folder_for_each_loop(finished: Place) -> None:
    folder = finished.store / "events" / "toy"
    assert {path.name for path in folder.iterdir()} == {"search", "retrain"}
    for stage in ("search", "retrain"):
        assert_shows(finished, stage)
        assert watched(finished, stage) == rows_of(finished, stage)


def interrupt(monkeypatch: pytest.MonkeyPatch, *, saved: int, dies: int) -> None:
    """Save a checkpoint at one step, and die at a later one."""
    real = _StageHooks.checkpoint

    def checkpoint(hooks: _StageHooks, step: int, capture: Any) -> None:
        if step == dies:
            raise RuntimeError("killed")
        if step == saved:
            hooks._last_checkpoint = float("-inf")
            real(hooks, step, capture)

    monkeypatch.setattr(_StageHooks, "checkpoint", checkpoint)


def run_interrupted(place: Place, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Die after an epoch that no checkpoint holds yet, and run again to the end."""
    second = 2 * STEPS_PER_EPOCH
    with monkeypatch.context() as patch:
        interrupt(patch, saved=second - 1, dies=second + 1)
        assert place.run("search", str(place.preset), *FAST, *words) == 1
    assert [step for step, _ in scalars(place, "search")["arch_loss"]] == [
        STEPS_PER_EPOCH,
        second,
    ]
    assert place.run("search", str(place.preset), *FAST, *words) == 0


TRACKED = ("--set", 'run.log=["tensorboard", "mlflow", "wandb"]')


def test_a_resumed_run_is_told_to_trackers_once_and_ends_with_its_version(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = stand_in(monkeypatch, tmp_path)
    run_interrupted(place, monkeypatch, *TRACKED)
    assert "no more is logged" not in capfd.readouterr().err
    assert_shows(place, "search")
    rows = rows_of(place, "search")
    losses = [(run, name, v) for run, name, v in metrics(told) if "/arch_loss@" in name]
    assert losses == [("run-0", f"search/arch_loss@{r['step']}", r["arch_loss"]) for r in rows]
    shown = [call["values"] for call in calls(told, "log")]
    assert [one["search/arch_loss"] for one in shown] == [row["arch_loss"] for row in rows]
    ends = [call["status"] for call in calls(told, "set_terminated")]
    assert ends == ["FAILED", "FINISHED"]
    tags = [call["tags"] for call in calls(told, "log_batch") if call["tags"]]
    assert tags[0] == {"search.ended": "failed: killed"}
    version = Store(place.store).open("toy/search")
    assert (tags[1]["search.id"], tags[1]["search.version"]) == (version.id, "toy/search@v1")


def test_trackers_that_fail_or_hang_cost_a_training_nothing_but_a_warning(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert place.run("search", str(place.preset), *FAST) == 0
    plain = Store(place.store).open("toy/search").id
    stand_in(monkeypatch, tmp_path)
    monkeypatch.setattr("pipeline.tracking.isolated.CLOSE_SECONDS", 0.1)
    for how, warning in (("raises", "no route to host"), ("hangs", "did not take all within")):
        monkeypatch.setenv("MISBEHAVES", f"log_batch:{how}")
        words = (*TRACKED, "--fresh") if how == "raises" else (*TRACKED, "--name", how)
        with monkeypatch.context() as patch:
            if how == "raises":
                patch.setattr("pipeline.tracking.isolated.CLOSE_SECONDS", 60.0)
            assert place.run("search", str(place.preset), *FAST, *words) == 0
        warned = [line for line in capfd.readouterr().err.splitlines() if "MLflow" in line]
        assert [warning in line for line in warned if line.startswith("warning")] == [True]
    assert Store(place.store).open("toy/search").id == plain
    assert Store(place.store).open("hangs/search").id == plain


def test_a_tracker_that_is_not_installed_is_told_before_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert place.run("search", str(place.preset), *FAST, *TRACKED) == 2
    error, hint = capfd.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: the package mlflow is not installed")
    assert "pip install" in hint
    assert not (place.store / "versions").exists()


def test_without_tensorboard_in_the_list_it_writes_nothing(place: Place) -> None:
    assert place.run("search", str(place.preset), *FAST, "--set", "run.log=[]") == 0
    folder = place.store / "events" / "toy" / "search"
    assert [path.name for path in folder.iterdir()] == [ROWS_FILE]


def test_a_resumed_run_shows_every_step_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_interrupted(place, monkeypatch)
    assert_shows(place, "search")


def test_a_row_can_be_read_as_soon_as_its_epoch_ends_and_stands_there_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = 2 * STEPS_PER_EPOCH
    with monkeypatch.context() as patch:
        interrupt(patch, saved=second - 1, dies=second + 1)
        assert place.run("search", str(place.preset), *FAST) == 1
    before = watched(place)
    assert [row["step"] for row in before] == [STEPS_PER_EPOCH, second]
    file = place.store / "events" / "toy" / "search" / ROWS_FILE
    number = file.stat().st_ino
    # The checkpoint is of the second epoch's last step but one: its row is made again.
    assert place.run("search", str(place.preset), *FAST) == 0
    assert watched(place) == rows_of(place, "search")
    assert watched(place)[:1] == before[:1]
    assert file.stat().st_ino == number  # or tail would stay with the old one


def test_rows_of_another_training_do_not_stay(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "events" / ROWS_FILE
    for known in ([], [{"loss": 1.0}], [{"loss": 2.0}], [{"loss": 2.0}, {"loss": 3.0}], []):
        with events.Events(file.parent, told.append) as opened:
            assert opened.begin(known) == file
            assert [json.loads(line) for line in file.read_text().splitlines()] == known
            opened.add(9, {"loss": 0.5})
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            assert rows == [*known, {"loss": 0.5}]
    assert told == []


def test_control_without_the_purge_a_step_is_shown_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpurged(folder: Path, _: int) -> Any:
        return tensorboard.SummaryWriter(str(folder))

    monkeypatch.setattr(sink, "_open", unpurged)
    run_interrupted(place, monkeypatch)
    steps = [step for step, _ in scalars(place, "search")["arch_loss"]]
    assert sorted(steps) == [STEPS_PER_EPOCH * epoch for epoch in (1, 2, 2, 3)]


def test_another_run_of_the_stage_replaces_what_is_shown(place: Place) -> None:
    assert place.run("search", str(place.preset), *FAST) == 0
    assert place.run("search", str(place.preset), *FAST, "--set", "search.arch_lr=0.01") == 0
    assert_shows(place, "search")


def test_nothing_is_written_where_tensorboard_is_absent_and_the_version_is_the_same(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with_it = place.json(capfd, "search", str(place.preset), *FAST)
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    capfd.readouterr()
    assert other.run("search", str(other.preset), *FAST, "--json") == 0
    captured = capfd.readouterr()
    folder = other.store / "events" / "toy" / "search"
    assert [path.name for path in folder.iterdir()] == [ROWS_FILE]
    assert watched(other) == rows_of(other, "search")
    assert captured.err.count(f"a row per epoch: tail -f {folder / ROWS_FILE}\n") == 1
    assert "tensorboard" not in captured.err
    warnings = [line for line in captured.err.splitlines() if line.startswith("warning")]
    assert all("the supernet's loss" in line for line in warnings)
    assert list((place.store / "events" / "toy" / "search").glob("*tfevents*"))
    assert json.loads(captured.out)["id"] == with_it["id"]


def test_verify_and_gc_leave_the_events_alone(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in (finished.store / "events").rglob("*") if p.is_file()}
    assert before
    assert finished.json(capfd, "verify")["damaged"] == []
    assert not any("events" in str(row) for row in finished.json(capfd, "gc"))
    Store(finished.store).collect_garbage()
    after = {p: p.read_bytes() for p in (finished.store / "events").rglob("*") if p.is_file()}
    assert after == before


def test_a_disk_that_refuses_them_is_a_warning_and_no_error(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    place.store.mkdir()
    (place.store / "events").write_text("in the way")
    assert place.run("search", str(place.preset), *FAST) == 0
    talk = capfd.readouterr().err
    assert talk.count("no more events are written") == 1
    assert len(rows_of(place, "search")) == 3


@pytest.fixture
def failed_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of threads that end with an error which would be printed."""
    failed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: failed.append(what.exc_type.__name__))
    return failed


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let the system refuse larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def watch(folder: Path, epochs: int = 9) -> list[str]:
    """Write rows as a training does; return what is told of it."""
    told: list[str] = []
    with Events(folder, told.append, [TensorBoard(folder.parent)]) as opened:
        opened.begin([])
        for step in range(epochs):
            opened.add(step, {"loss": float(step)})
    return told


def test_tensorboards_file_meets_a_full_disk_and_it_is_told_once(
    tmp_path: Path, failed_threads: list[str]
) -> None:
    folder = tmp_path / "events" / "toy" / "search"
    with files_of_at_most(300):
        (told,) = watch(folder)
    assert told == f"{folder}: no more events are written: File too large"
    assert failed_threads == []
    (file,) = folder.glob("*tfevents*")
    assert file.stat().st_size <= 300
    assert watch(folder) == []  # the control: with room nothing is told


def test_control_tensorboards_thread_would_print_its_own_error(
    tmp_path: Path, failed_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def print_all(opened: TensorBoard, failed: threading.ExceptHookArgs) -> None:
        opened._print_failed_thread(failed)

    monkeypatch.setattr(TensorBoard, "_leave_out_the_writer", print_all)
    with files_of_at_most(300):
        watch(tmp_path / "events" / "toy" / "search")
    assert failed_threads == ["OSError"]


def test_other_threads_errors_are_printed_as_ever(
    tmp_path: Path, failed_threads: list[str]
) -> None:
    before = threading.excepthook
    boards = [TensorBoard(tmp_path)]
    with Events(tmp_path / "events", failed_threads.append, boards):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert failed_threads == ["ZeroDivisionError"]
    assert threading.excepthook is before


def test_a_tensorboard_that_does_not_work_costs_only_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("Descriptors cannot be created directly.\nRegenerate them")

    folder = tmp_path / "events" / "toy" / "search"
    with monkeypatch.context() as broken:
        broken.setattr(sink, "_open", fail)
        (told,) = watch(folder)
    assert told.endswith(
        "files are not written: Descriptors cannot be created directly. Regenerate them"
    )
    assert len((folder / ROWS_FILE).read_text().splitlines()) == 9

    def stop(*_: object) -> None:
        raise StoppedError(15, "stopped at once by a second signal")

    monkeypatch.setattr(sink, "_open", stop)  # a signal is nothing of TensorBoard's
    with pytest.raises(StoppedError):
        watch(folder)


def test_nothing_is_loaded_before_the_first_row(tmp_path: Path) -> None:
    written: list[str] = []
    boards = [TensorBoard(tmp_path)]
    with events.Events(tmp_path / "events", written.append, boards) as opened:
        opened.add(1, None)
    assert not (tmp_path / "events").exists()
    assert written == []


@pytest.mark.parametrize("link", ["events", "events/toy", "events/toy/search", "rows"])
def test_a_link_out_of_the_store_is_not_followed(link: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "store/events/toy/search"
    place = folder / "rows.jsonl" if link == "rows" else tmp_path / "store" / link
    place.parent.mkdir(parents=True)
    target = outside / folder.relative_to(place) if link != "rows" else outside
    target.mkdir(parents=True)
    precious = target / "rows.jsonl"
    precious.write_text("precious")
    place.symlink_to(precious if link == "rows" else outside)
    said: list[str] = []
    assert Events(folder, said.append).begin([]) is None
    assert "is a symbolic link" in said[0]
    assert precious.read_text() == "precious"
    place.unlink()  # control: a folder of its own is written
    assert Events(folder, said.append).begin([]) == folder / "rows.jsonl"

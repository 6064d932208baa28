"""Trackers: what they are told, once, in a process whose failures cost a warning."""

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from trackers import calls, metrics, stand_in

from d2nas.config import build_config
from d2nas.errors import StoppedError, ValidationFailedError, brief_reason
from pipeline.credentials import reason_without_credentials, without_credentials
from pipeline.own_process import own_command, own_environment
from pipeline.running.outcomes import outcome_of_error, status_of
from pipeline.stages import BY_NAME
from pipeline.tracking import TITLES, isolated
from pipeline.tracking.isolated import Isolated

FACTS = {"key": "k", "fresh": False, "params": {"search.epochs": "3", "search.space": "S0"}}
ROWS = [{"step": 4, "loss": 2.0, "entropy": {"normal": 0.5}}, {"step": 8, "loss": 1.0}]
OUTCOME = {"tags": {"version": "toy/search@v1"}, "metrics": {"params": 12.0}}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-ins of trackers were told."""
    return stand_in(monkeypatch, tmp_path)


class Execution:
    """A stage of the run toy, told to a tracker; ``said`` and ``warned`` are lines for the user."""

    def __init__(self, folder: Path, name: str = "mlflow") -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        folder = folder / "events" / "toy"
        self.sink = Isolated(name, "toy", folder, self.said.append, self.warned.append)

    def tell(
        self,
        rows: Sequence[dict[str, Any]] = ROWS,
        known: Sequence[dict[str, Any]] = (),
        status: str = "finished",
        **facts: Any,
    ) -> "Execution":
        self.sink.begin("search", FACTS | facts)
        self.sink.resume("search", known)
        for row in rows:
            self.sink.add("search", row["step"], row)
        self.sink.end("search", OUTCOME)
        self.sink.close(status)
        return self


def test_mlflow_is_told_settings_rows_outcome_and_status(tmp_path: Path, told: Path) -> None:
    execution = Execution(tmp_path).tell()
    assert execution.warned == []
    assert execution.said == ["MLflow: run run-0 at stand-in"]
    assert [call["call"] for call in calls(told)][:3] == [
        "get_experiment_by_name",
        "create_experiment",
        "create_run",
    ]
    assert calls(told, "create_run")[0]["name"] == "toy"
    params = [call["params"] for call in calls(told, "log_batch") if call["params"]]
    assert params == [FACTS["params"]]
    assert sorted((name, value) for _, name, value in metrics(told)) == [
        ("search/entropy/normal@4", 0.5),
        ("search/loss@4", 2.0),
        ("search/loss@8", 1.0),
        ("search/params@0", 12.0),
    ]
    tags = [call["tags"] for call in calls(told, "log_batch") if call["tags"]]
    assert tags == [{"search.version": "toy/search@v1"}]
    assert [call["status"] for call in calls(told, "set_terminated")] == ["FINISHED"]


def test_weights_and_biases_are_told_the_same_and_nothing_of_the_machine(
    tmp_path: Path, told: Path
) -> None:
    execution = Execution(tmp_path, "wandb").tell(status="failed")
    assert execution.warned == []
    (opened,) = calls(told, "init")
    assert (opened["name"], opened["project"], opened["resume"]) == ("toy", "d2nas", "allow")
    assert opened["dir"] == str(tmp_path / "events" / "toy")
    silent = ("x_disable_stats", "x_disable_meta", "x_disable_machine_info", "disable_git")
    assert all(opened["settings"][name] for name in silent)
    assert not opened["settings"]["save_code"]
    assert calls(told, "config")[0]["values"] == FACTS["params"]
    assert [call["values"] for call in calls(told, "log")] == [
        {"search/loss": 2.0, "search/entropy/normal": 0.5, "search/step": 4},
        {"search/loss": 1.0, "search/step": 8},
    ]
    assert [call["step_metric"] for call in calls(told, "define_metric")] == [None, "search/step"]
    (summary,) = calls(told, "summary")
    assert summary["values"] == {"search.version": "toy/search@v1", "search/params": 12.0}
    assert [call["exit_code"] for call in calls(told, "finish")] == [1]


@pytest.mark.parametrize("name", TITLES)
def test_a_continued_run_is_the_same_and_no_row_is_told_twice(
    name: str, tmp_path: Path, told: Path
) -> None:
    Execution(tmp_path, name).tell(ROWS[:1], status="stopped")
    # The checkpoint is from before the first row, which is made again; a later one was never told.
    Execution(tmp_path, name).tell([*ROWS, {"step": 12, "loss": 0.5}])
    Execution(tmp_path, name).tell([], known=[*ROWS, {"step": 12, "loss": 0.5}])
    if name == "mlflow":
        assert len(calls(told, "create_run")) == 1
        steps = [name for run, name, _ in metrics(told) if "loss" in name]
        assert steps == ["search/loss@4", "search/loss@8", "search/loss@12"]
        assert [call["status"] for call in calls(told, "set_terminated", "update_run")] == [
            *("KILLED", "RUNNING", "FINISHED", "RUNNING", "FINISHED")
        ]
        assert sum(bool(call["params"]) for call in calls(told, "log_batch")) == 1
    else:
        assert [call["id"] for call in calls(told, "init")] == ["run-0"] * 3
        assert [call["values"]["search/step"] for call in calls(told, "log")] == [4, 8, 12]


def test_rows_that_a_tracker_missed_are_told_on_resume(tmp_path: Path, told: Path) -> None:
    Execution(tmp_path).tell([{"step": 12, "loss": 0.5}], known=ROWS)
    steps = [name for _, name, _ in metrics(told) if "loss" in name]
    assert steps == ["search/loss@4", "search/loss@8", "search/loss@12"]


def test_control_without_its_memory_every_row_is_told_again(tmp_path: Path, told: Path) -> None:
    Execution(tmp_path).tell()
    (tmp_path / "events" / "toy" / "mlflow.json").unlink()
    Execution(tmp_path).tell()
    assert [call["run"] for call in calls(told, "create_run")] == ["run-0", "run-1"]
    assert [name for _, name, _ in metrics(told)].count("search/loss@8") == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"[", b'{"id": 1, "params": 3, "stages": []}'])
def test_a_damaged_memory_begins_another_run(damage: bytes, tmp_path: Path, told: Path) -> None:
    Execution(tmp_path).tell()
    (tmp_path / "events" / "toy" / "mlflow.json").write_bytes(damage)
    assert Execution(tmp_path).tell().warned == []
    assert len(calls(told, "create_run")) == 2


@pytest.mark.parametrize(
    "facts",
    [{"key": "another"}, {"fresh": True}, {"params": {"search.epochs": "4"}}],
    ids=["settings", "fresh", "value"],
)
def test_what_contradicts_a_trackers_run_begins_another(
    facts: dict[str, Any], tmp_path: Path, told: Path
) -> None:
    Execution(tmp_path).tell()
    Execution(tmp_path).tell(**facts)
    assert [run for run, name, _ in metrics(told) if name == "search/loss@8"] == ["run-0", "run-1"]


def test_a_run_that_is_gone_from_the_server_is_made_anew(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Execution(tmp_path).tell()
    monkeypatch.setenv("GONE", "run-0")
    assert Execution(tmp_path).tell([], known=ROWS).warned == []
    assert [run for run, name, _ in metrics(told) if name == "search/loss@8"] == ["run-0", "run-1"]


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated", "init", "finish"])
def test_a_tracker_that_raises_is_one_warning_without_credentials(
    call: str, tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISBEHAVES", f"{call}:raises")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    name = "wandb" if call in ("init", "finish") else "mlflow"
    execution = Execution(tmp_path, name).tell()
    assert execution.warned == [f"{TITLES[name]}: no more is logged: no route to host with ***"]


def test_a_tracker_that_dies_is_one_warning(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISBEHAVES", "log_batch:dies")
    execution = Execution(tmp_path)
    execution.sink.begin("search", FACTS)
    assert execution.sink._process is not None
    execution.sink._process.wait()
    for row in ROWS:
        execution.sink.add("search", row["step"], row)
    execution.sink.close("finished")
    assert execution.warned == ["MLflow is not told: its process ended with 9"]


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
def test_a_tracker_that_hangs_is_ended_with_one_warning_and_leaves_nothing(
    call: str, tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISBEHAVES", f"{call}:hangs")
    monkeypatch.setattr(isolated, "CLOSE_SECONDS", 2.0)
    threads = threading.active_count()
    execution = Execution(tmp_path)
    execution.sink.begin("search", FACTS)
    process = execution.sink._process
    assert process is not None
    execution.tell()
    assert execution.warned == ["MLflow did not take all within 2 s"]
    assert process.returncode == -signal.SIGKILL  # by itself it would not have ended
    assert threading.active_count() == threads


def test_calls_that_nobody_takes_are_not_kept(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISBEHAVES", "*:hangs")
    monkeypatch.setattr(isolated, "MAX_WAITING", 8)
    execution = Execution(tmp_path)
    large = {"step": 4, "loss": {f"{n:0500}": 1.0 for n in range(1000)}}  # more than a pipe takes
    execution.tell([large] * 64)
    assert execution.warned == ["MLflow takes nothing: no more is told"]


def test_a_signal_while_a_command_waits_for_a_tracker_ends_that(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISBEHAVES", "*:hangs")
    execution = Execution(tmp_path)
    execution.sink.begin("search", FACTS)
    process = execution.sink._process
    assert process is not None

    real = process.wait

    def second_signal(seconds: float | None = None) -> int:
        if seconds is None:  # that of the end
            return real()
        raise StoppedError(2, "stopped at once by a second signal")

    monkeypatch.setattr(process, "wait", second_signal)
    with pytest.raises(StoppedError):
        execution.sink.close("stopped")
    assert process.returncode == -signal.SIGKILL
    assert execution.warned == []


def test_a_tracker_ends_by_itself_where_its_command_was_killed(tmp_path: Path, told: Path) -> None:
    folder = tmp_path / "events" / "toy"
    folder.mkdir(parents=True)
    with (tmp_path / "answers").open("w+b") as answers:
        number = answers.fileno()
        done = subprocess.run(
            own_command("mlflow", "toy", str(folder), str(number), module="pipeline.tracking"),
            env=own_environment(),
            input=b'["begin","search",{"key":"k","fresh":false,"params":{}}]\n',
            pass_fds=[number],
            start_new_session=True,
        )
    assert done.returncode == 0
    assert [call["status"] for call in calls(told, "set_terminated")] == ["KILLED"]


def test_a_link_in_the_place_of_the_events_is_not_followed(tmp_path: Path, told: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "toy").symlink_to(outside)
    execution = Execution(tmp_path).tell()
    assert len(execution.warned) == 1
    assert "is a symbolic link" in execution.warned[0]
    assert [*outside.iterdir()] == calls(told) == []


def test_where_numbers_go_is_part_of_no_stages_key() -> None:
    plain, logged, other = (
        build_config({}, settings)
        for settings in ([], ['run.log=["mlflow", "wandb"]'], ["run.seed=1"])
    )
    for name, stage in BY_NAME.items():
        if name == "derive":
            continue
        keys = [stage.key(config, {}, "digest") for config in (plain, logged, other)]
        assert keys[0] == keys[1], name
        assert not stage.reads_data(plain) or keys[2] != keys[0]  # the control


def test_credentials_are_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass word")
    monkeypatch.setenv("API_KEY", "abc")  # too short to be one
    text = "hf_secret at https://user:pass@host/x?token=pass word abc"
    assert without_credentials(text) == "*** at https://host/x?token=*** abc"
    addresses = "https://user:p@ssw0rd@host/x and http://user:a@b@c@host:80, by me@host"
    assert without_credentials(addresses) == "https://host/x and http://host:80, by me@host"
    error = RuntimeError("x" * 195 + "hf_secret")
    assert "hf_" in brief_reason(error)  # the control: cut first, half of it is not found
    assert "hf_" not in reason_without_credentials(error)


def test_the_verdict_of_the_gate_and_the_status_follow_from_the_error() -> None:
    refused = ValidationFailedError("accuracy is too low")
    assert outcome_of_error(refused)["tags"] == {"gate": "refused: accuracy is too low"}
    assert outcome_of_error(RuntimeError("x"))["tags"] == {"ended": "failed: x"}
    statuses = [status_of(one) for one in (None, refused, StoppedError(2, ""), KeyboardInterrupt())]
    assert statuses == ["finished", "failed", "stopped", "stopped"]


# --- the packages themselves, where they are installed -------------------------------------------


def absent(package: str) -> bool:
    found = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True)
    return found.returncode != 0


@pytest.mark.skipif(absent("mlflow"), reason="mlflow is not installed: pip install '.[mlflow]'")
def test_mlflow_itself_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert Execution(tmp_path).tell(ROWS[:1], status="stopped").warned == []
    assert Execution(tmp_path).tell().warned == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "d2nas"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "search/loss")
    assert [(metric.step, metric.value) for metric in history] == [(4, 2.0), (8, 1.0)]
    assert run.info.status == "FINISHED"
    assert run.data.params == FACTS["params"]


@pytest.mark.skipif(absent("wandb"), reason="wandb is not installed: pip install '.[wandb]'")
def test_weights_and_biases_themselves_write_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    first = Execution(tmp_path, "wandb").tell(ROWS[:1], status="stopped")
    second = Execution(tmp_path, "wandb").tell()
    assert first.warned == second.warned == []
    names = [path.name for path in (tmp_path / "events/toy/wandb").glob("offline-run-*")]
    assert len({name.rpartition("-")[2] for name in names}) == 1

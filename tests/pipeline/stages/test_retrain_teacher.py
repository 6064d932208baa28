"""Trainings with a teacher, by the commands: key, facts, page, card, resume, plan, a bundle."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from teachers import written
from tiny import TinyPlace, traced
from toy import Place, expect_error

from d2nas.config import build_config
from d2nas.data.images import ImageData, load_data
from d2nas.errors import ConfigError, DamagedArtifactError
from d2nas.train.retrain import Retraining
from pipeline.commands.configuration import configure
from pipeline.onnx_io.served_model import served_model
from pipeline.running import runner
from pipeline.stages import BY_NAME, open_store
from pipeline.stages.stage import training_settings
from pipeline.teacher.opening import open_teacher

NORMALISED = ("--set", "retrain.teacher_mean=[0]", "--set", "retrain.teacher_std=[1]")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(build_config({"data": {"train_images": 200}}).data)


def with_teacher(path: Path) -> tuple[str, ...]:
    return ("--set", f"retrain.teacher={path}", *NORMALISED)


def test_a_training_with_a_teacher_says_so_everywhere(
    tiny: TinyPlace, digits: ImageData, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = with_teacher(written(tmp_path, digits, name="<i>big*.onnx"))
    assert tiny.run("retrain", "tiny", *given) == 0
    assert "teacher <i>big*.onnx: right for" in capfd.readouterr().err
    version = tiny.latest("retrain")
    assert version is not None
    facts = version.manifest.facts["teacher"]
    assert facts["accuracy"] > 0.7
    assert (facts["images"], facts["weight"], facts["temperature"]) == (64, 0.9, 4.0)
    assert str(tmp_path) not in str(version.manifest.config)
    assert version.manifest.config["teacher"]["sha256"] == facts["digest"]
    for stage in ("export", "validate"):
        assert tiny.run(stage, "tiny") == 0
    page = (tiny.exported / "tiny" / "report.html").read_text()
    card = (tiny.exported / "tiny" / "MODEL_CARD.md").read_text()
    assert "&lt;i&gt;big*.onnx" in page
    assert "<i>" not in page
    told = "64 training images; weight 0.9, temperature 4.0; takes float32 NCHW 1 x 8 x 8, gives"
    assert told in page
    assert "Teacher: \\<i\\>big\\*.onnx: " in card
    assert told in card
    capfd.readouterr()
    assert tiny.run("show", "tiny/retrain") == 0
    assert "teacher" in capfd.readouterr().out


def test_what_is_done_is_done_again_only_for_another_teacher(
    tiny: TinyPlace, digits: ImageData, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def executed(*given: str) -> list[str]:
        found: list[str] = tiny.json(capfd, "retrain", "tiny", *given)["executed"]
        return found

    path = written(tmp_path, digits)
    assert executed() == ["retrain"]
    assert executed(*with_teacher(path)) == ["retrain"]
    assert executed(*with_teacher(path)) == []
    moved = path.rename(tmp_path / "moved.onnx")
    assert executed(*with_teacher(moved)) == []
    written(tmp_path, digits, name="moved.onnx", batch=3)
    assert executed(*with_teacher(moved)) == ["retrain"]
    assert executed("--set", "retrain.teacher=none") == []


def test_a_stopped_training_goes_on_to_the_last_bit(
    tiny: TinyPlace, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = with_teacher(written(tmp_path, digits))
    (tmp_path / "whole").mkdir()
    whole = tiny.copy(tmp_path / "whole")
    with monkeypatch.context() as patched:
        wanted = traced(patched)
        assert whole.run("retrain", "tiny", *given) == 0
    real = Retraining.take_step

    def step_and_stop(training: Retraining, step: int) -> None:
        real(training, step)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    trace = None
    with monkeypatch.context() as patched:
        trace = traced(patched)
        patched.setattr(runner, "CHECKPOINT_SECONDS", 1e9)
        with patched.context() as stopping:
            stopping.setattr(Retraining, "take_step", step_and_stop)
            assert tiny.run("retrain", "tiny", *given) == 128 + signal.SIGTERM
        assert tiny.checkpoints("retrain") == [5]
        assert tiny.run("retrain", "tiny", *given) == 0
    assert trace.of_the_same_run(wanted)


def test_a_checkpoint_of_another_teacher_is_told_and_not_continued(
    tiny: TinyPlace,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = written(tmp_path, digits)
    real = Retraining.take_step

    def step_and_stop(training: Retraining, step: int) -> None:
        real(training, step)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Retraining, "take_step", step_and_stop)
        assert tiny.run("retrain", "tiny", *with_teacher(path)) == 128 + signal.SIGTERM
    written(tmp_path, digits, batch=2)
    capfd.readouterr()
    assert tiny.run("retrain", "tiny", *with_teacher(path)) == 0
    assert "retrain starts over (teacher.sha256 is " in capfd.readouterr().err


def test_a_teacher_that_does_not_suit_stops_a_run_before_its_search(
    place: Place, digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, digits, names=[*"abcdefghij"])
    told = expect_error(capfd, place, 2, "run", str(place.preset), *with_teacher(path))
    assert "its classes are not those of the data: without" in told


def test_a_plan_says_that_it_leaves_the_teacher_out(
    place: Place, digits: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, digits)
    plan = place.json(capfd, "run", str(place.preset), "--plan", *with_teacher(path))
    notes = {row["stage"]: row.get("note", "") for row in plan["stages"]}
    assert notes["retrain"].endswith(", without the teacher's answers")


def test_a_bundle_teaches_as_it_is(finished: Place, digits: ImageData) -> None:
    folder = finished.exported / "toy"
    config = build_config({"retrain": {"teacher": str(folder)}}).retrain
    teacher = open_teacher(config, digits, torch.device("cpu"))
    assert teacher.facts["name"] == "toy"
    assert teacher.facts["classes"] == "of the same names"
    report = open_store(finished.store).open("toy/validate").manifest.facts
    assert teacher.facts["accuracy"] > report["accuracy"]["onnx"] - 0.15
    model, _ = served_model(folder)
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(DamagedArtifactError, match="is not the one that its bundle lists"):
        open_teacher(config, digits, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.pbtxt", lambda text: text.replace("[ 1 ]", "[ 2 ]"), "is not the one listed"),
        ("SHA256SUMS", lambda text: text.replace("1/model", "3/model"), "does not list 1/model"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(
    name: str, change: Any, told: str, finished: Place
) -> None:
    file = finished.exported / "toy" / name
    file.write_text(change(file.read_text()))
    with pytest.raises(DamagedArtifactError, match=told):
        served_model(finished.exported / "toy")


def test_keys_of_before_hold_where_there_is_no_teacher() -> None:
    plain = build_config({})
    part = BY_NAME["retrain"].own_config(plain)
    assert part.keys() == {"retrain"}
    assert "teacher" not in str(part)
    unread = build_config({}, ["retrain.teacher_weight=0.2"])
    assert BY_NAME["retrain"].own_config(unread) == part


def test_only_the_final_training_depends_on_the_teacher() -> None:
    settings = ["retrain.teacher=nowhere.onnx", "derive.budget=6"]
    config, plain = configure("small", settings), configure("small", settings[1:])
    for stage in ("search", "derive", "export", "validate"):
        assert BY_NAME[stage].config(config) == BY_NAME[stage].config(plain)
    assert training_settings(config) == training_settings(plain)
    with pytest.raises(ConfigError, match="no such file"):
        BY_NAME["retrain"].config(config)

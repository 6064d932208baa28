"""What a command will write at its end is tried before what takes long, and nothing stays of it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import studies
from tiny import TinyPlace
from toy import Place

from d2nas.errors import ValidationFailedError
from pipeline.store import FileSystem, Store

WORK_BEGINS = "this is where the work begins"


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages fail (exit code 3) as soon as they are run."""

    def refuse(stage: str, context: Any) -> Any:
        raise ValidationFailedError(WORK_BEGINS)

    monkeypatch.setattr("pipeline.running.runner.run_stage", refuse)


def refusing(number: int) -> Callable[[Path, pytest.MonkeyPatch], None]:
    """The system refuses every change at a path and below, as of a read-only or full disk."""

    def obstruct(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = FileSystem._operation
        # Where it does not exist yet, it is made in its parent.
        refused = path if path.exists() else path.parent

        def operation(self: FileSystem, kind: str, changed: Path, action: Any) -> None:
            if changed.is_relative_to(refused):
                raise OSError(number, os.strerror(number), str(changed))
            real(self, kind, changed, action)

        monkeypatch.setattr(FileSystem, "_operation", operation)

    return obstruct


def a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def a_file_above(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_file(path.parent, monkeypatch)


def a_dangling_link(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere")


OBSTACLES = {
    "a file": a_file,
    "a file above": a_file_above,
    "a dangling link": a_dangling_link,
    "read-only": refusing(errno.EROFS),
    "a full disk": refusing(errno.ENOSPC),
}


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("way", ["as it is", "control"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_place_for_bundles_is_tried_before_the_work(
    exported: TinyPlace,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    obstacle: str,
    way: str,
) -> None:
    target = tmp_path / "out" / "bundles"
    (tmp_path / "out").mkdir() if obstacle != "a file above" else None
    OBSTACLES[obstacle](target, monkeypatch)
    if way == "control":
        for module in ("bundle.writing", "commands.execution"):
            monkeypatch.setattr(f"pipeline.{module}.check_place", lambda exported, run: None)
    before = everything_in(tmp_path)
    words = [str(exported.preset), "--set", "run.seed=5"] if command == "run" else ["tiny"]
    exported.exported = target
    code = exported.run(command, *words)
    told = capfd.readouterr().err
    assert (code, WORK_BEGINS in told) == ((7, False) if way == "as it is" else (3, True))
    assert everything_in(tmp_path) == before
    assert "this is a bug" not in told


def test_a_place_that_can_be_written_stays_as_it_was(exported: TinyPlace, tmp_path: Path) -> None:
    exported.exported = tmp_path / "not" / "there" / "yet"
    assert exported.run("validate", "tiny") == 3
    assert everything_in(tmp_path) == []


def test_the_bundles_own_folder_is_tried_too(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything_in(finished.exported)
    assert finished.run("validate", "toy", "--fresh") == 3
    assert everything_in(finished.exported) == before
    real, refused = os.access, finished.exported / "toy" / "1"
    monkeypatch.setattr(os, "access", lambda path, *more: path != refused and real(path, *more))
    capfd.readouterr()
    assert finished.run("validate", "toy", "--fresh") == 7
    assert f"cannot write in {refused}: permission denied" in capfd.readouterr().err
    monkeypatch.undo()


@pytest.mark.parametrize("way", ["as it is", "control"])
@pytest.mark.parametrize(
    "part", ["versions", "names", "runs/tiny/derive", "runs/tiny/search-state"]
)
def test_a_store_is_tried_before_the_work(
    place: Place,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    way: str,
) -> None:
    tiny = TinyPlace(tmp_path)
    a_file(tiny.store / part, monkeypatch)
    if way == "control":
        monkeypatch.setattr(Store, "try_writing", lambda *_: None)
    tried = way == "as it is" and part != "runs/tiny/derive"
    code = tiny.run("search", str(tiny.preset))
    told = capfd.readouterr().err
    assert (code, WORK_BEGINS in told) == ((7, False) if tried else (3, True))


@pytest.mark.parametrize("way", ["as it is", "control"])
def test_a_study_tries_the_store_before_the_work(
    place: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    a_file(place.store / "versions", monkeypatch)
    if way == "control":
        monkeypatch.setattr(Store, "try_writing", lambda *_: None)
    code = place.run("study", str(studies.write(place)))
    told = capfd.readouterr().err
    assert (code, WORK_BEGINS in told) == ((7, False) if way == "as it is" else (3, True))


@pytest.mark.parametrize("way", ["as it is", "control"])
@pytest.mark.parametrize("part", ["a folder", "no folder", "read-only"])
def test_a_drawing_is_tried_before_the_measurement(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    way: str,
) -> None:
    from pipeline.cli import run

    path = tmp_path / "drawing.svg"
    if part == "a folder":
        path.mkdir()
    elif part == "no folder":
        path = tmp_path / "missing" / "drawing.svg"
    else:
        refusing(errno.EROFS)(path, monkeypatch)

    def measure(*_: object, **__: object) -> None:
        raise ValidationFailedError(WORK_BEGINS)

    monkeypatch.setattr("pipeline.onnx_io.profile.profile_model", measure)
    if way == "control":
        monkeypatch.setattr(FileSystem, "try_file", lambda *_: None)
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not read")
    code = run(["bench", "profile", str(model), "--svg", str(path)])
    told = capfd.readouterr().err
    assert (code, WORK_BEGINS in told) == ((7, False) if way == "as it is" else (3, True))

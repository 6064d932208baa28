"""What a checkpoint is not continued with: the change is named, and the checkpoint is not lost."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faults import memory_folder
from image_files import write_classes, write_image
from stops import STOP, empty_or_derived, stop_at
from tiny import TinyPlace

from d2nas.errors import DamagedArtifactError
from d2nas.methods.gdas import Gdas
from d2nas.train.loop import Loop
from d2nas.train.precision import cpu_arithmetic
from d2nas.train.state import TrainState
from pipeline import stages
from pipeline.running import checkpoints, runner
from pipeline.stages import Context, Facts, Stage, run_stage

# Settings of another training, and what is told of them.
OTHERS = {
    "search": {
        "run.seed=1": "run.seed is 1, was 0",
        "data.crop_padding=2": "data.crop_padding is 2, was 1",
        "data.train_images=80": "data.train_images is 80, was 64",
        "search.method=gdas": "search.method is gdas, was d2nas",
        "search.space=S2": "search.space is S2, was few; space.name is S2, was few",
        "search.num_cells=4": "search.num_cells is 4, was 3",
        "search.init_channels=8": "search.init_channels is 8, was 4",
        "search.precision=bf16": "search.precision is bf16, was fp32",
        "search.batch_size=10": "search.batch_size is 10, was 8",
        "search.arch_lr=0.04": "search.arch_lr is 0.04, was 0.05",
        "search.device=cpu": "search.device is cpu, was auto",
    },
    "retrain": {
        "retrain.lr=0.1": "retrain.lr is 0.1, was 0.025",
        "retrain.precision=fp16": "retrain.precision is fp16, was fp32",
        "retrain.seed=3": "retrain.seed is 3, was none",
    },
}


@pytest.fixture(scope="module")
def stopped_folders(
    derived_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """For each loop a place where it was stopped. To be copied."""
    with memory_folder(tmp_path_factory.mktemp("stopped")) as folder:
        found = {}
        for loop in OTHERS:
            found[loop] = folder / loop
            found[loop].mkdir()
            stop_at(empty_or_derived(loop, derived_folder, found[loop]), loop)
        yield found


@pytest.fixture
def stopped(stopped_folders: dict[str, Path], quick_path: Path) -> dict[str, TinyPlace]:
    """A copy of each for the test's own."""
    places = {}
    for loop, folder in stopped_folders.items():
        (quick_path / loop).mkdir()
        places[loop] = TinyPlace(folder).copy(quick_path / loop)
    return places


def continued_from(
    place: TinyPlace, loop: str, *arguments: str, code: int = 4, words: tuple[str, ...] = ()
) -> tuple[list[int | None], str]:
    """The step that a command continues at, None for the beginning; and what it says.

    A spy asks for the checkpoint as the stage would, and ends there. ``words``: another command.
    """
    seen: list[int | None] = []
    said: list[str] = []

    def spy(stage: str, context: Context) -> Facts:
        if stage != loop:
            return run_stage(stage, context)
        state = context.hooks.resume()
        seen.append(None if state is None else state.step)
        raise DamagedArtifactError("the spy stops here")

    with pytest.MonkeyPatch.context() as once:
        once.setattr(runner, "run_stage", spy)
        once.setattr("pipeline.console.Console.warn", lambda _, line: said.append(line))
        once.setattr("pipeline.console.Console.error", lambda _, line, *__: said.append(line))
        assert place.run(*(words or place.words(loop)), *arguments) == code
    return seen, "\n".join(said)


@pytest.mark.parametrize(
    ("loop", "setting"), [(loop, setting) for loop in OTHERS for setting in OTHERS[loop]]
)
def test_another_setting_starts_over_and_is_named_and_the_first_can_go_on(
    stopped: dict[str, TinyPlace], loop: str, setting: str
) -> None:
    place = stopped[loop]
    seen, said = continued_from(place, loop, "--set", setting)
    assert seen == [None]
    assert OTHERS[loop][setting] in said
    assert f"tiny/{loop}-state@v1, step {STOP}, is kept" in said
    seen, said = continued_from(place, loop)
    assert seen == [STOP]
    assert "starts over" not in said


def test_another_genotype_starts_over_and_is_named(stopped: dict[str, TinyPlace]) -> None:
    place = stopped["retrain"]
    given = ("--set", "derive.genotype=DARTS_V1")
    words = ("run", str(place.preset), "--name", "tiny", *given)
    seen, said = continued_from(place, "retrain", words=words)
    assert seen == [None]
    assert "retrain starts over (another derive)" in said
    searched = "tiny/derive@v1"
    assert continued_from(place, "retrain", words=("retrain", searched))[0] == [STOP]


@pytest.mark.parametrize("loop", OTHERS)
def test_other_code_starts_over_and_is_named(
    stopped: dict[str, TinyPlace], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setitem(stages.BY_NAME, loop, replace(stages.BY_NAME[loop], code_schema=99))
    seen, said = continued_from(stopped[loop], loop)
    assert seen == [None]
    assert "code schema 99, was" in said


@pytest.mark.parametrize("loop", OTHERS)
def test_another_major_version_of_torch_is_refused_and_a_minor_one_is_told(
    stopped: dict[str, TinyPlace], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    versions = runner.library_versions()
    monkeypatch.setattr(runner, "library_versions", lambda: versions | {"torch": "99.1.0"})
    seen, said = continued_from(stopped[loop], loop, code=2)
    assert seen == []
    assert f"was made with torch {versions['torch']}, this is torch 99.1.0" in said
    minor = versions["torch"].partition(".")[0] + ".999"
    monkeypatch.setattr(runner, "library_versions", lambda: versions | {"torch": minor})
    seen, said = continued_from(stopped[loop], loop)
    assert seen == [STOP]
    assert f"this is torch {minor}: the result will not equal" in said


@pytest.mark.parametrize("loop", OTHERS)
def test_other_threads_or_instructions_are_told_and_the_same_are_not(
    stopped: dict[str, TinyPlace], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    own = cpu_arithmetic()
    seen, said = continued_from(stopped[loop], loop)
    assert seen == [STOP]
    assert "to the last bit" not in said
    changed = own | {"threads": 99, "instructions": "other"}
    monkeypatch.setattr("d2nas.train.precision.cpu_arithmetic", lambda: changed)
    seen, said = continued_from(stopped[loop], loop)
    assert seen == [STOP]
    for name in own:
        assert f"was made with {own[name]} {name}, now {changed[name]}: the result will not" in said


def test_a_checkpoint_of_before_it_was_recorded_says_nothing_of_threads() -> None:
    version = SimpleNamespace(manifest=SimpleNamespace(facts={"step": 3}), reference="a/b@v1")
    assert checkpoints.arithmetic_warnings(version, {"cpu": cpu_arithmetic(), "processes": 1}) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loop", "entry", "value"),
    [
        ("search", "device", "cuda"),
        ("retrain", "device", "cuda"),
        ("retrain", "precision", "bf16"),
    ],
)
def test_another_kind_of_device_or_precision_is_refused(
    derived_folder: Path,
    quick_path: Path,
    capfd: pytest.CaptureFixture[str],
    loop: str,
    entry: str,
    value: str,
) -> None:
    """``auto`` is one setting and can mean two things."""
    place = empty_or_derived(loop, derived_folder, quick_path)
    setting = ("--set", f"{loop}.precision=auto") if entry == "precision" else ()
    with pytest.MonkeyPatch.context() as elsewhere:
        capture = Loop.capture

        def captured(training: Loop, step: int) -> TrainState:
            return replace(capture(training, step), **{entry: value})

        elsewhere.setattr(Loop, "capture", captured)
        stop_at(place, loop, *setting)
    before = place.content()
    capfd.readouterr()
    assert place.run(*place.words(loop), *setting) == 2
    assert f"the checkpoint was trained {'on' if entry == 'device' else 'in'} {value}" in (
        capfd.readouterr().err
    )
    assert place.content() == before


@pytest.mark.parametrize(
    ("loop", "arguments"),
    [
        *((loop, ("--json",)) for loop in OTHERS),
        *((loop, ("--data-root", "elsewhere")) for loop in OTHERS),
        ("search", ("--set", "data.workers=3")),
    ],
)
def test_what_changes_no_result_continues(
    stopped: dict[str, TinyPlace], loop: str, arguments: tuple[str, ...]
) -> None:
    """Who looks, where the images lie, who reads them. Another number of processes continues too:
    ``test_launch.py``.
    """
    seen, said = continued_from(stopped[loop], loop, *arguments)
    assert seen == [STOP]
    assert "starts over" not in said


def test_another_rhythm_of_checkpoints_continues(
    stopped: dict[str, TinyPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    assert continued_from(stopped["search"], "search")[0] == [STOP]


def test_changed_images_start_over_and_moved_ones_continue(quick_path: Path) -> None:
    place = TinyPlace(quick_path)
    images = write_classes(quick_path / "images", {"cat": 24, "dog": 24})
    settings = ["data.name=folder", "data.image_size=8", "data.train_images=none"]
    options = [word for setting in settings for word in ("--set", setting)]
    stop_at(place, "search", *options, "--data-root", str(images))
    moved = quick_path / "moved"
    images.rename(moved)
    seen, said = continued_from(place, "search", *options, "--data-root", str(moved))
    assert seen == [STOP]
    write_image(moved / "cat" / "000.png", seed=999)
    seen, said = continued_from(place, "search", *options, "--data-root", str(moved))
    assert seen == [None]
    assert f"search starts over (other images); tiny/search-state@v1, step {STOP}, is kept" in said


def test_pictures_of_another_size_start_over_and_the_size_is_named(quick_path: Path) -> None:
    place = TinyPlace(quick_path)
    images = write_classes(quick_path / "images", {"cat": 24, "dog": 24})
    options = ["--set", "data.name=folder", "--set", "data.train_images=none"]
    options += ["--data-root", str(images)]
    stop_at(place, "search", *options)
    for path in images.rglob("*.png"):
        write_image(path, seed=len(str(path)), size=(9, 9))
    seen, said = continued_from(place, "search", *options)
    assert seen == [None]
    assert "search starts over (data.image_size is 9, was 10); tiny/search-state@v1" in said


def test_a_method_of_another_revision_starts_over_and_says_so(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, options = TinyPlace(quick_path), ("--set", "search.method=gdas")
    stop_at(place, "search", *options)
    monkeypatch.setattr(Gdas, "revision", 2)
    seen, said = continued_from(place, "search", *options)
    assert seen == [None]
    assert "search starts over (method_revision is 2, was none); tiny/search-state@v1" in said


def test_work_given_up_for_other_settings_survives_a_training_with_them(
    stopped: dict[str, TinyPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped setting must not cost days: its checkpoints do not push out the others."""
    place = stopped["retrain"]
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", 0.0)
    assert place.run("retrain", "tiny", "--set", "retrain.lr=0.5") == 0
    assert place.checkpoints("retrain") == [STOP, 10, 11]
    assert continued_from(place, "retrain")[0] == [STOP]
    assert place.run("retrain", "tiny") == 0
    # Both are done: of the first settings, which are no longer the newest, nothing need stay.
    assert place.checkpoints("retrain") == [10, 11]


@pytest.mark.parametrize("loop", OTHERS)
def test_control_a_key_that_forgets_the_settings_continues_with_the_wrong_ones(
    stopped: dict[str, TinyPlace], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    place = stopped[loop]
    newest = place.latest(f"{loop}-state")
    assert newest is not None

    def forgetful(*_: Any) -> str:
        return newest.manifest.key

    monkeypatch.setattr(Stage, "key", forgetful)
    setting = next(iter(OTHERS[loop]))
    assert continued_from(place, loop, "--set", setting)[0] == [STOP]

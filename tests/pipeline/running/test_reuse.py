"""Nothing is done twice, and nothing stale is taken for current: which stages a run executes.

The stages are stood in for by what they wrote before, so that all of the runner is real, keys and
commits too, and a run takes no time.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import memory_folder
from tiny import SPACE, TinyPlace

from d2nas.config import Config
from pipeline import stages
from pipeline.commands.configuration import configure
from pipeline.running import runner
from pipeline.running.other_ranks import Silence
from pipeline.running.runner import Reuse, Runner, RunResult
from pipeline.running.signals import StopFlag
from pipeline.stages import STAGES, Context, Facts, Stage
from pipeline.store import Store

# What is changed, and the stages that then run.
CHANGES = {
    "run.seed=1": STAGES,
    "data.crop_padding=2": STAGES,
    "data.train_images=80": STAGES,
    "data.test_fraction=0.3": STAGES,
    "search.arch_lr=0.02": STAGES,
    "search.space=S2": STAGES,
    "search.method=gdas": STAGES,
    "derive.candidates=2": STAGES[1:],
    "derive.budget=6": STAGES[1:],
    "derive.temperature=2.0": (),
    "retrain.epochs=5": STAGES[2:],
    "retrain.device=cpu": STAGES[2:],
    "retrain.seed=1": STAGES[2:],
    "export.opset=19": STAGES[3:],
    "export.precision=fp16": STAGES[3:],
    "validate.latency_samples=15": STAGES[4:],
    "validate.relative_l2=2e-5": STAGES[4:],
    "data.root=elsewhere": (),
    "data.workers=3": (),
}


@pytest.fixture(scope="module")
def whole_folder(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny run with all its stages. To be copied."""
    with memory_folder(tmp_path_factory.mktemp("whole")) as folder:
        place = TinyPlace(exported_folder).copy(folder)
        assert place.run("validate", "tiny") == 0
        yield folder


@pytest.fixture
def whole(whole_folder: Path, quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyPlace:
    """A copy of it, in which stages write what they wrote before."""
    place = TinyPlace(whole_folder).copy(quick_path)

    def write_as_before(stage: str, context: Context) -> Facts:
        before = Store(place.store).open(f"tiny/{stage}@v1")
        for name in before.manifest.files:
            context.work.write(name, before.read(name))
        return dict(before.manifest.facts)

    monkeypatch.setattr(runner, "run_stage", write_as_before)
    return place


def configured(place: TinyPlace, *settings: str) -> Config:
    """The tiny configuration with the space of the first run, wherever that lies now."""
    return configure(str(place.preset), list(settings))


def run(place: TinyPlace, *settings: str, reuse: Reuse = Reuse.EVERYTHING) -> RunResult:
    made = Runner(Store(place.store), Silence(), StopFlag())
    return made.run("tiny", configured(place, *settings), STAGES, reuse)


def test_a_second_run_executes_nothing(whole: TinyPlace) -> None:
    before = whole.content()
    assert run(whole).executed == []
    assert whole.content() == before


@pytest.mark.parametrize("setting", CHANGES)
def test_a_change_executes_exactly_the_stages_that_it_touches(
    whole: TinyPlace, setting: str
) -> None:
    result = run(whole, setting)
    assert result.executed == list(CHANGES[setting])
    kept = [stage for stage in STAGES if stage not in CHANGES[setting]]
    assert all(result.versions[stage].number == 1 for stage in kept)
    # Now both are current, the changed one and the first.
    assert run(whole, setting).executed == []
    assert run(whole).executed == []


def test_other_images_execute_all_stages(whole: TinyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "content_digest", lambda *_, **__: "1" * 64)
    assert run(whole).executed == list(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_other_code_executes_its_stage_and_those_after_it(
    whole: TinyPlace, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setitem(stages.BY_NAME, stage, replace(stages.BY_NAME[stage], code_schema=99))
    assert run(whole).executed == list(STAGES[STAGES.index(stage) :])


def test_the_same_space_in_another_file_executes_nothing(whole: TinyPlace) -> None:
    other = whole.folder / "elsewhere.toml"
    other.write_text(f'name = "few"\n{SPACE}')
    assert run(whole, f"search.space={other}").executed == []
    other.write_text(f'name = "few"\n{SPACE.replace("max_pool_3x3", "avg_pool_3x3")}')
    assert run(whole, f"search.space={other}").executed == list(STAGES)


def test_a_fresh_run_executes_all_and_equal_work_keeps_its_name(whole: TinyPlace) -> None:
    result = run(whole, reuse=Reuse.NOTHING)
    assert result.executed == list(STAGES)
    assert [version.number for version in result.versions.values()] == [1] * len(STAGES)


def test_control_a_key_without_the_settings_reuses_what_is_stale(
    whole: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Stage.key
    first = configured(whole)
    monkeypatch.setattr(Stage, "key", lambda stage, _config, *rest: key(stage, first, *rest))
    stale = [setting for setting, touched in CHANGES.items() if touched]
    assert [run(whole, setting).executed for setting in stale] == [[]] * len(stale)


def test_control_a_key_with_a_clock_in_it_reuses_nothing(
    whole: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count()

    def key(*_: Any) -> str:
        return f"{next(times):064x}"

    monkeypatch.setattr(Stage, "key", key)
    assert run(whole).executed == list(STAGES)

"""Records of the stages: what a run consists of, and what is ready without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from d2nas.config import Config, build_config
from pipeline.running.listing import list_rows
from pipeline.running.other_ranks import Silence
from pipeline.running.runner import Reuse, Runner
from pipeline.running.signals import StopFlag
from pipeline.stages import (
    ALL,
    BY_NAME,
    STAGES,
    STUDY_STAGES,
    Context,
    Facts,
    Stage,
    stages_of_run,
    stages_of_study,
)
from pipeline.store import Store

LISTS = "import sys, pipeline.stages; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"


def test_the_records_are_ready_without_torch() -> None:
    assert subprocess.run([sys.executable, "-c", LISTS], check=False).returncode == 0


def test_control_a_heavy_import_is_seen() -> None:
    code = f"import d2nas.train.search; {LISTS}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_a_run_and_a_study_are_what_their_last_stages_are_made_from() -> None:
    assert STAGES == ("search", "derive", "retrain", "export", "validate")
    assert STUDY_STAGES == ("search", "derive", "retrain", "evaluate")
    given = build_config({"derive": {"genotype": "DARTS_V2"}})
    assert stages_of_run(given) == STAGES[1:]
    assert stages_of_study(given) == STUDY_STAGES[1:]


def test_parents_come_first() -> None:
    before: list[str] = []
    for stage in ALL:
        assert set(stage.parents) <= set(before)
        before.append(stage.name)


def count(context: Context) -> Facts:
    context.work.write("count.txt", b"1")
    return {"step": 1}


def test_a_new_stage_is_a_record_and_a_place_in_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(name="count", parents=(), code_schema=1, run=count)
    monkeypatch.setitem(BY_NAME, "count", stage)
    store = Store(tmp_path, kinds=(*ALL, stage))
    runner = Runner(store, Silence(), StopFlag())
    for executed in (["count"], []):
        result = runner.run("mine", Config(), ("count",), Reuse.EVERYTHING)
        assert result.executed == executed
    (row,) = list_rows(store, "mine")
    assert (row["ref"], row["kind"]) == ("mine/count@v1", "count")
    monkeypatch.setitem(BY_NAME, "count", Stage(name="count", parents=(), code_schema=2, run=count))
    assert runner.run("mine", Config(), ("count",), Reuse.EVERYTHING).executed == ["count"]

"""Records of the stages: what a run consists of, and what is ready without torch."""

import subprocess
import sys

from d2nas.config import build_config
from pipeline.stages import ALL, STAGES, STUDY_STAGES, run_stages, study_stages

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
    assert run_stages(given) == STAGES[1:]
    assert study_stages(given) == STUDY_STAGES[1:]


def test_parents_come_first() -> None:
    before: list[str] = []
    for stage in ALL:
        assert set(stage.parents) <= set(before)
        before.append(stage.name)

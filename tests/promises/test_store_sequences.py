"""The store against a model of it: any sequence of work, crashes, kills, damage and cleaning."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import store_machine
from campaigns import count
from store_children import run_to_end

PARTS = 8
SEQUENCES, STEPS = count(200, 5000) // PARTS, count(30, 50)


def played(
    bug: str, folder: Path, first: int, num_sequences: int, num_steps: int
) -> tuple[Counter[str], list[str]]:
    """Play sequences; return how often what was done, and what went wrong after which steps."""
    script = store_machine.__file__
    counts, *problem = run_to_end(bug, folder, first, num_sequences, num_steps, script=script)
    return Counter(json.loads(counts)), [line for line in problem if line]


@pytest.mark.parametrize("part", range(PARTS))
def test_any_sequence_keeps_the_promises(part: int, quick_path: Path) -> None:
    done, problem = played("none", quick_path, part * SEQUENCES, SEQUENCES, STEPS)
    assert problem == [], "\n".join(problem)
    assert done.pop("sequences") * PARTS >= 200
    assert done.pop("killed") >= 5
    assert sum(done.values()) * PARTS >= 200 * 30
    assert done.keys() == store_machine.WEIGHTS.keys()


FOUND = {
    "liveness": "live work is gone",
    "lock-file": "gc left or took a staging folder's lock",
    "reachability": "a version is not there|gc left or took a version",
    "absence": "gc did not miss what is out of sight",
    "store-lock": "no such file or directory|a version is not there",
    "run-lock": "two hold a run",
}


@pytest.mark.parametrize("bug", FOUND)
def test_control_a_bug_is_found(bug: str, quick_path: Path) -> None:
    _, problem = played(bug, quick_path, 0, 200, 30)
    assert re.search(FOUND[bug], problem[0])

"""``python -m benchmarks serve``: what its rows count. No test reads the clock."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.serve import BLOCKS, _check, _measure, _row, _Way, table_rows
from d2nas.errors import ValidationFailedError

LOGITS = np.ones((1, 3), np.float32)


def test_rows_say_who_asked_how_often(
    finished_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = str(finished_folder / "exported" / "toy")
    command = ["serve", bundle, "--clients", "2", "--requests", "11", "--device", "cpu"]
    capfd.readouterr()
    assert main([*command, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    names = [row["way"] for row in rows]
    assert names[0].startswith("direct, CPU ")
    assert names[1:] == ["HTTP, binary tensors", "HTTP, JSON"]
    for row in rows:
        assert (row["clients"], row["requests"], row["blocks"]) == (2, 2 * 10, BLOCKS)
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        low, high = row["requests_per_second_min"], row["requests_per_second_max"]
        assert 0 < low <= row["requests_per_second"] <= high


def test_blocks_alternate_and_every_client_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    calls: list[str] = []

    def way(name: str) -> _Way:
        def call() -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
            calls.append(name)
            return LOGITS

        return _Way(name, [call] * 2)

    ways = [way("a"), way("b")]
    _measure(ways, 3)
    assert "".join(calls) == ("a" * 6 + "b" * 12 + "a" * 6) * 2 + "a" * 6 + "b" * 6
    row = _row(ways[0], 2)
    assert row["requests"] == 2 * 3 * BLOCKS
    assert table_rows([row])[0][:3] == ("a", "2", "30")


def test_a_wrong_answer_ends_the_benchmark() -> None:
    _check("HTTP, JSON", LOGITS, LOGITS)
    with pytest.raises(ValidationFailedError, match="HTTP, JSON: the answer is not the session's"):
        _check("HTTP, JSON", LOGITS + 0.01, LOGITS)


def test_too_few_requests_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--requests", "4"]) == 2
    assert "4 requests: at least 5 are needed" in capfd.readouterr().err

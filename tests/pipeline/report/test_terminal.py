"""Rows of a terminal: names that somebody else chose do not command it."""

import re

import pytest
from page_facts import HOSTILE, hostile_report

from d2nas.genotype import Genotype
from pipeline import console as console_module
from pipeline.console import Console
from pipeline.report.terminal import fact_rows, report_rows


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a run's end and ``show`` write of hostile data."""
    report = hostile_report() | {"genotype": Genotype.published("DARTS_V2").to_dict()}
    report["latency"][0]["batch"] = 7
    described = {
        "ref": "run/search@v1",
        "facts": dict.fromkeys(HOSTILE[:5], HOSTILE[5]),
        "files": {HOSTILE[5]: 1},
        "config": {HOSTILE[4]: HOSTILE[5]},
        "seed": 0,
        "libraries": {},
        "note": {"command": list(HOSTILE)},
    }
    for rows in (report_rows(report, HOSTILE[0]), fact_rows(described)):
        Console().facts("title", rows)
    return capfd.readouterr().out.removesuffix("\n").split("\n")


def orders(lines: list[str]) -> list[str]:
    """Characters that a terminal would obey, and lines that do not begin with a name of ours."""
    found = re.findall("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join(lines))
    return found + [line for line in lines if line.startswith(("#", "- "))]


def test_hostile_names_are_shown_and_not_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd)
    assert orders(lines) == []
    assert "\\x1b[31m\\ud800" in "".join(lines)


def test_control_as_they_are_they_would_be(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "_printable_line", lambda text: text.replace("\ud800", ""))
    assert {"\x1b", "\u202e", "- "} <= {one[:2] for one in orders(told(capfd))}

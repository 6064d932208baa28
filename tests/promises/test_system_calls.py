"""Each command with each of its calls of the operating system failing, in turn.

Whatever fails ends in a message and an exit code that is documented, never as a bug; what was
stored stays as it was; and an answer that is given in spite of a refusal is the whole answer.
"""

import errno
import hashlib
import io
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import count
from faults import memory_folder
from image_files import write_image
from PIL import Image
from system_calls import SystemCalls, failing
from toy import Place

from pipeline import cli
from pipeline.serving import lifecycle
from pipeline.store import audit, locks, references

REFUSALS = ("EIO", "EACCES")
"""What says nothing about what is stored; each call fails with the one or the other."""
OTHERS = ("ENOTDIR", "ESTALE", "ENOMEM", "EMFILE", "ENOSPC", "EROFS", "ELOOP", "EINTR")
TOLD = {2, 4, 6, 7, 8}
"""Exit codes that say what is wrong: usage, damage, memory, storage, another process."""


COMMANDS = {
    "ls": "ls --store STORE",
    "show": "show toy/validate --store STORE",
    "config": "show --config PLACE/toy.toml",
    "verify": "verify --store STORE",
    "verify bundle": "verify EXPORTED/toy --store STORE",
    "gc": "gc --store STORE",
    "plan": "run PLACE/toy.toml --plan --store STORE",
    "run": "run PLACE/toy.toml --store STORE --exported EXPORTED",
    "search": "search PLACE/toy.toml --store STORE",
    "derive": "derive toy --store STORE",
    "validate": "validate toy --store STORE --exported EXPORTED",
    "predict": "predict EXPORTED/toy PLACE/grey.png",
    "predict a folder": "predict EXPORTED/toy PLACE/labelled --json",
    "evaluate": "evaluate EXPORTED/toy PLACE/labelled --json",
    "serve": "serve EXPORTED/toy --port 0",
    "study": "study PLACE/study.toml --plan --store STORE",
    "doctor": "doctor --store STORE",
}
"""Of every kind, on a finished run; they compute nothing anew."""
NUM_CALLS = {"doctor": 3, "config": 5}
"""How many calls there are at least; of the others 30."""


@pytest.fixture(scope="module")
def target(finished_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A finished run that no command changes, with what commands read beside it."""
    with memory_folder(tmp_path_factory.mktemp("calls")) as folder:
        shutil.copytree(finished_folder, folder / "place")
        place = Place(folder / "place")
        Image.new("L", (9, 7), 80).save(place.folder / "grey.png")
        for label in range(3):
            write_image(place.folder / "labelled" / str(label) / "a.png", seed=label, mode="L")
        study = 'methods = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n'
        (place.folder / "study.toml").write_text(study)
        yield place


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STORE_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(locks, "BUNDLE_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(lifecycle.Serving, "run", lambda _: None)  # ready, and stopped at once


def stored(place: Place) -> dict[str, str]:
    """The digest of every file that is stored; what comes and goes is left out."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("store/versions", "store/runs", "store/names", "exported/toy")
        for path in (place.folder / folder).rglob("*")
        if path.is_file()
    }


def outcome(arguments: list[str], calls: SystemCalls) -> tuple[int, str, str]:
    """Run a command with these calls failing; return its code, its answer and its talk."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with failing(calls):
            code = cli.run(arguments)
    for stream in streams:
        stream.flush()
    out, talk = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return code, out, talk


class Sweep:
    """One command, and its calls when nothing fails."""

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.name = place, name
        places = {"STORE": place.store, "EXPORTED": place.exported, "PLACE": place.folder}
        words = COMMANDS[name]
        for part, path in places.items():
            words = words.replace(part, str(path))
        self.arguments = words.split()
        outcome(self.arguments, self.calls())  # imports and caches
        clean = self.calls()
        code, self.answer, talk = outcome(self.arguments, clean)
        assert code == 0, talk
        self.num_calls = len(clean.log)
        self.before = stored(place)

    def calls(self, fail_at: int = 0, number: int = 0, *, lasting: bool = False) -> SystemCalls:
        return SystemCalls((self.place.folder,), fail_at, number, lasting=lasting)

    def problem(self, fail_at: int, error: str, *, lasting: bool = False) -> str | None:
        """Return what is wrong when this call fails."""
        calls = self.calls(fail_at, getattr(errno, error), lasting=lasting)
        code, answer, talk = outcome(self.arguments, calls)
        failed = calls.log[fail_at - 1] if len(calls.log) >= fail_at else "nothing"
        where = f"{self.name}: call {fail_at}, {failed}, {error}: exit code {code}"
        if "bug" in talk or code not in {0, *TOLD}:
            return f"{where}: {talk[-300:]}"
        if code and ("error: " not in talk or "Traceback" in talk):
            return f"{where} without a message"
        if error in REFUSALS and code not in (0, 2, 7):
            return f"{where}, which no refusal is: {talk[-300:]}"
        # What the system calls absent may be: another process removes names.
        whole = error not in REFUSALS or answer == self.answer or self.name in ("doctor", "ls")
        if code == 0 and not whole:
            return f"{where}, with another answer"
        if stored(self.place) != self.before:
            return f"{where}, and what is stored changed"
        return None

    def problems(self) -> list[str]:
        """Fail some calls, drawn by seed, or in the long campaign each, in four ways: refused,
        absent, with another error, and refused for good.
        """
        draw = random.Random(self.name)
        chosen = draw.sample(range(self.num_calls), min(count(3, self.num_calls), self.num_calls))
        found = []
        for number in sorted(chosen):
            refusal, other = draw.choice(REFUSALS), draw.choice(OTHERS)
            found += [self.problem(number + 1, error) for error in (refusal, "ENOENT", other)]
            found.append(self.problem(number + 1, "EIO", lasting=True))
        return [problem for problem in found if problem is not None]


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_fails_is_told_and_changes_nothing(name: str, target: Place) -> None:
    sweep = Sweep(target, name)
    assert sweep.num_calls > NUM_CALLS.get(name, 30)
    assert sweep.problems() == []


def test_control_an_error_that_nobody_translates_is_found(
    target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "explained", lambda _: None)
    sweep = Sweep(target, "verify bundle")
    found = [sweep.problem(number, "EIO") for number in range(1, 6)]  # is it a bundle?
    assert any("this is a bug" in (problem or "") for problem in found)


def test_a_version_that_cannot_be_looked_at_is_not_called_missing(
    target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(target, "verify")
    clean = sweep.calls()
    outcome(sweep.arguments, clean)
    looks = [
        number
        for number, call in enumerate(clean.log, 1)
        if call.startswith("lstat") and "store/versions/" in call
    ]
    assert len(looks) > 20
    assert [sweep.problem(number, "EIO") for number in looks] == [None] * len(looks)
    monkeypatch.setattr(audit, "is_there", os.path.lexists)  # control
    found = [sweep.problem(number, "EIO") for number in looks]
    assert any("which no refusal is" in (problem or "") for problem in found)


@pytest.mark.parametrize("name", ["verify", "show", "gc"])
def test_control_a_name_that_is_unreadable_taken_for_damaged_is_found(
    name: str, target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(target, name)
    monkeypatch.setattr(references.Damage, "of", lambda *words: references.Damage(*words[:2], ""))
    calls = sweep.calls()
    outcome(sweep.arguments, calls)
    names = [number for number, call in enumerate(calls.log, 1) if "v1.json" in call]
    found = [sweep.problem(number, "EIO") for number in names]
    expected = "another answer" if name == "show" else "which no refusal is"
    assert any(expected in (problem or "") for problem in found)


def test_control_a_change_of_what_is_stored_is_found(
    target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(target, "ls")
    monkeypatch.setitem(sweep.before, "another file", "")
    assert "what is stored changed" in (sweep.problem(10**6, "EIO") or "")

"""Hostile files: nothing in them runs, nothing outside is read, and one line says what is wrong."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import Case, corpus, pickled_command
from toy import Place

from pipeline.cli import run

STARTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class")
MAX_GROWTH = 200 * 2**20
MAX_SECONDS = 30.0  # a hang, not a limit of speed


class Watch:
    """Notes every file that this process opens while it is on (an audit hook cannot be removed)."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.started: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            self.opened.append(os.fsdecode(arguments[0]))
        elif event in STARTS:
            self.started.append(event)


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def peak_memory() -> int | None:
    """The highest resident memory since ``forget_peak``, in bytes; None where it is not told."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def words_of(case: Case, place: Place) -> list[str]:
    """The command with this place's store."""
    return [*case.command, "--store", str(place.store)]


def problems_of(
    case: Case, place: Place, capfd: pytest.CaptureFixture[str], watch: Watch, marker: Path
) -> list[str]:
    """What is wrong with how ``case`` ended; nothing, if all is well."""
    capfd.readouterr()
    watch.opened.clear()
    watch.started.clear()
    began, watch.on = time.monotonic(), True
    try:
        code = run(words_of(case, place))
    finally:
        watch.on = False
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    found = []
    if code != case.code:
        found.append(f"code {code}, not {case.code}: {errors}")
    if len(errors) != 1 or "Traceback" in captured.err or len(errors[0]) > 600:
        found.append(f"not one line: {captured.err[-500:]!r}")
    if captured.out:
        found.append("data on stdout")
    if marker.exists() or watch.started:
        found.append(f"something ran: {watch.started}")
    if any(path in ("/etc/passwd", "/etc/shadow") for path in watch.opened):
        found.append("a file outside was read")
    if time.monotonic() - began > MAX_SECONDS:
        found.append("too slow")
    return found


def test_every_bad_file_is_refused_in_one_line(
    place: Place, capfd: pytest.CaptureFixture[str], watch: Watch, tmp_path: Path
) -> None:
    marker = tmp_path / "something-ran"
    cases = list(corpus(place, marker))
    assert len(cases) >= 110
    assert len({case.name for case in cases}) == len(cases)
    # What is imported once is no growth.
    assert place.run("search", str(place.preset), "--set", "search.epochs=1") == 0
    measured = forget_peak()
    before = peak_memory()
    failures = {
        case.name: found
        for case in cases
        if (found := problems_of(case, place, capfd, watch, marker))
    }
    assert not failures, "\n".join(f"{name}: {found}" for name, found in failures.items())
    if measured and before is not None:
        after = peak_memory()
        assert after is not None
        assert after - before < MAX_GROWTH
    outside = {path.name for path in tmp_path.parent.iterdir()} | {
        path.name for path in place.folder.parent.iterdir()
    }
    assert "outside" not in outside


def test_control_what_runs_is_seen(tmp_path: Path, watch: Watch) -> None:
    """The marker and the watch notice a pickle that is loaded."""
    import pickle

    marker = tmp_path / "something-ran"
    watch.started.clear()
    watch.on = True
    try:
        pickle.loads(pickled_command(marker))  # noqa: S301 - that is the point
    finally:
        watch.on = False
    assert marker.exists()
    assert "os.system" in watch.started


def test_a_sample_through_the_command_line(place: Place, tmp_path: Path) -> None:
    marker = tmp_path / "something-ran"
    cases = list(corpus(place, marker))
    for case in cases[:: len(cases) // 10]:
        done = subprocess.run(
            [sys.executable, "-m", "d2nas", *words_of(case, place)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == case.code, (case.name, done.stderr)
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr
    assert not marker.exists()
